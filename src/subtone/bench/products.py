"""What is measured: products y = W x of the papers' models, with weights that every width and every peer can share.

Codes of fewer bits are the upper bits of the same 8-bit codes, so all widths multiply about the same matrix, and a
peer whose format is given the codes themselves multiplies exactly ours. Speed does not depend on their values.

Letters: T frames, N outputs, K inputs of a product.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import zlib

import numpy as np
from numpy.typing import NDArray

from subtone.program import MAX_INTEGER_INPUTS, MAX_SIZE
from subtone.qtensor import QTensor, check_group_size

SEED = 2022
LARGEST_CODES = 2**28
"""Of a product: more would not fit beside a dozen peers' copies of it."""
LARGEST_FRAMES = 2**16
OUR_BITS = tuple(range(1, 9))
SHAPES = (
    (4096, 4096), (4096, 1024), (4480, 1120), (4352, 1088), (512, 2048), (2048, 512), (1536, 512), (2501, 512),
)  # fmt: skip
"""(N, K) of the papers' models: gates and joints of S8BQAT's M-I and M-III, feed-forward and attention of Conformers, word pieces."""

LSTM_INPUTS = (192, 1024, 2048, 1024, 1024, 512, 1024)
"""Of the five encoder and two predictor layers of M-I; the third sees two frames at once."""
M_I = (
    *(shape for inputs in LSTM_INPUTS for shape in ((4096, inputs), (4096, 1024))),
    *((512, 1024), (512, 1024), (2501, 512)),
)
"""Every product of a step of S8BQAT's M-I (61.0 M weights, of which the embedding's 1.3 M are looked up, not multiplied)."""


@dataclasses.dataclass(frozen=True)
class Granularity:
    """Which numbers share a scale, and whether levels are spread evenly: "channel", "codebook" or "groupN".

    >>> Granularity.of("group64").group_size, str(Granularity.of("codebook"))
    (64, 'codebook')
    """

    kind: str
    group_size: int = 0

    @classmethod
    def of(cls, text: str) -> Granularity:
        """ValueError where `text` is none of the three."""
        if text in ("channel", "codebook"):
            return cls(text)
        if (found := re.fullmatch(r"group([1-9][0-9]{0,5})", text)) is None:
            raise ValueError(
                f"granularity={text} is not known; use channel, codebook or a group such as group64"
            )
        return cls("group", int(found[1]))

    def __str__(self) -> str:
        return f"{self.kind}{self.group_size or ''}"


@dataclasses.dataclass(frozen=True)
class Product:
    """`frames` rows of `inputs` by a weight of `outputs` rows; everything in it follows from these and SEED.

    `place` tells products of one size apart: peers find equal weights in a graph and keep one of them, so that
    a model's 60 MB would be read from a cache.

    >>> Product(8, 16, 1).weight(4, Granularity("channel")).codes.shape
    (8, 16)
    """

    outputs: int
    inputs: int
    frames: int
    place: int = 0

    def __post_init__(self) -> None:
        for name, size, highest in (
            ("outputs", self.outputs, MAX_SIZE),
            ("inputs", self.inputs, MAX_INTEGER_INPUTS),
            ("frames", self.frames, LARGEST_FRAMES),
        ):
            if not 1 <= size <= highest:
                raise ValueError(f"{name}={size} of a product is out of range; use 1 to {highest}")
        if self.outputs * self.inputs > LARGEST_CODES:
            raise ValueError(
                f"shape={self} has {self.outputs * self.inputs} weights; use at most {LARGEST_CODES}"
            )

    def __str__(self) -> str:
        return f"{self.outputs}x{self.inputs}"

    @property
    def macs(self) -> int:
        """Multiplications of one run."""
        return self.frames * self.outputs * self.inputs

    @property
    def value_bytes(self) -> int:
        """Of the float32 that come and go."""
        return 4 * self.frames * (self.inputs + self.outputs)

    @functools.cached_property
    def x(self) -> NDArray[np.float32]:
        """(M, K), normal: about as many of each sign, and one outlier in none."""
        return self._random("x").standard_normal((self.frames, self.inputs), np.float32)

    @functools.cached_property
    def codes(self) -> NDArray[np.uint8]:
        """(N, K) of 8 bits."""
        return self._random("codes").integers(0, 256, (self.outputs, self.inputs), np.uint8)

    @functools.cached_property
    def scale(self) -> NDArray[np.float32]:
        """(N, 1), of 8-bit levels: a peer that used one scale for all rows would be found out."""
        return (self._random("scale").uniform(0.5, 1.5, (self.outputs, 1)) / 1024).astype(np.float32)

    def codes_of(self, bits: int) -> NDArray[np.uint8]:
        return self.codes >> np.uint8(8 - bits)

    def scale_of(self, bits: int) -> NDArray[np.float32]:
        """(N, 1), of levels of `bits`: as far apart as they mean more."""
        return (self.scale * 2 ** (8 - bits)).astype(np.float32)

    def weight(self, bits: int, granularity: Granularity) -> QTensor:
        """Ours; ValueError where groups do not divide the inputs."""
        if bits not in OUR_BITS:
            raise ValueError(f"bits={bits} is not a width of ours; use 1 to 8")
        shape, codes, scale = (self.outputs, self.inputs), self.codes_of(bits), self.scale_of(bits)
        if granularity.kind == "codebook":
            levels = np.linspace(-128, 127, 2**bits).round().astype(np.int8)  # all that there are at 8 bits
            nothing = np.zeros((1, 1), np.float32)
            return QTensor(
                codes=codes, shape=shape, bits=bits, codebook=levels, scale=self.scale, zero_point=nothing
            )
        middle = np.float32(0.5 if bits == 1 else 2 ** (bits - 1))
        if granularity.kind == "group":
            groups = check_group_size(shape, granularity.group_size, name=f"the shape {self}")
            scale = np.broadcast_to(scale, (self.outputs, groups))
            stored = np.float32 if groups == 1 else np.float16
            scale = (scale * self._random("groups").uniform(0.5, 1.5, scale.shape)).astype(stored)
        return QTensor(
            codes=codes, shape=shape, bits=bits, scale=scale, zero_point=np.full_like(scale, middle)
        )

    def _random(self, what: str) -> np.random.Generator:
        return np.random.default_rng([SEED, zlib.crc32(what.encode()), self.outputs, self.inputs, self.place])


def shape_of(text: str) -> tuple[int, int]:
    """(N, K) of "NxK"; ValueError where it is nothing of the kind.

    >>> shape_of("4096x1024")
    (4096, 1024)
    """
    found = re.fullmatch(r"([0-9]{1,8})x([0-9]{1,8})", text)
    if found is None:
        raise ValueError(f"shape={text} is not OUTPUTSxINPUTS; write it as 4096x1024")
    return int(found[1]), int(found[2])
