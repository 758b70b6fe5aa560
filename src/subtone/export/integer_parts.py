"""A transducer made integer-only: encoder, predictor and joiner, each calibrated on what it hears of the others.

The encoder's frames and the predictor's rows come out on the grids on which the joiner takes them, so that no number
changes its scale between two parts; labels enter the predictor as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from subtone.export.integer import integer_program
from subtone.export.making import Grid, Grids
from subtone.export.ranges import MinMax, Observer, Range, observe
from subtone.program import Constant, Constants, Program
from subtone.runtime.engine import load_engine

ENCODER, PREDICTOR, JOINER = "encoder", "predictor", "joiner"
Example = tuple[NDArray[np.float32], Sequence[int]]
"""Features (T, F) of a recording, and the labels of its words."""
Ranges = dict[str, dict[str, Range]]
"""Of every value of every part."""


def observe_parts(
    programs: Mapping[str, Program],
    constants: Constants,
    examples: Iterable[Example],
    *,
    new_observer: Callable[[], Observer] = MinMax,
) -> Ranges:
    """The range of every value of the float `programs` of a transducer, by part.

    The predictor hears the blank and then the labels, as a search begins; the joiner every frame with every row.

    ValueError: parts that are not an encoder, a predictor and a joiner; what `observe` refuses.
    """
    _require_parts(programs)
    heard = list(examples)
    labels = [
        np.array([[programs[JOINER].output_width - 1], *([each] for each in of)], np.float32)
        for _, of in heard
    ]
    features = [each for each, _ in heard]
    engines = [load_engine(programs[name], constants) for name in (ENCODER, PREDICTOR)]
    pairs = (
        (np.repeat(frames, len(rows), axis=0), np.tile(rows, (len(frames), 1)))
        for frames, rows in (
            (engines[0].run(of_sound), engines[1].run(of_words))
            for of_sound, of_words in zip(features, labels, strict=True)
        )
    )
    return {
        name: observe(programs[name], constants, given, new_observer=new_observer)
        for name, given in ((ENCODER, features), (PREDICTOR, labels), (JOINER, pairs))
    }


def integer_parts(
    programs: Mapping[str, Program], constants: Constants, ranges: Ranges, *, grids: Grids | None = None
) -> tuple[dict[str, Program], dict[str, Constant]]:
    """`programs` of a transducer without a floating-point number, and the constants of all; `ranges` by `observe_parts`.

    ValueError as `integer_program`, which names the part.
    """
    _require_parts(programs)
    made: dict[str, Program] = {}
    integers: dict[str, Constant] = {}
    doors: dict[str, Grid | None] = {JOINER: None}
    for name in (JOINER, ENCODER, PREDICTOR):
        try:
            made[name], own = integer_program(
                programs[name], constants, ranges[name], grids=grids, output=doors[name], prefix=f"{name}/"
            )
        except ValueError as error:
            raise ValueError(f"the {name}: {error}") from error
        integers |= own
        if name == JOINER:
            frames, rows = (Grid(scale=door.scale, low=door.low, high=door.high) for door in made[name].doors)
            doors |= {ENCODER: frames, PREDICTOR: rows}
    return made, integers


def _require_parts(programs: Mapping[str, Program]) -> None:
    if set(programs) != {ENCODER, PREDICTOR, JOINER}:
        raise ValueError(
            f"the parts are {', '.join(sorted(programs))}; a transducer has {ENCODER}, {JOINER} and {PREDICTOR}"
        )
