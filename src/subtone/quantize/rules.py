"""Recipes: which weights get how many bits, as rules in a strict TOML file; the first match wins.

    name = "w4-but-head"
    method = "linear"

    [[rules]]
    pattern = "head.*"        # a glob over parameter paths; default "*"
    bits = 8

    [[rules]]
    kinds = ["pointwise", "linear"]
    bits = 4
    granularity = "group"
    group_size = 64
    activations = "dynamic"

    [[rules]]
    keep_float = true

Nothing is left to chance: a weight that no rule matches, a pattern that matches nothing, a key
that does not exist and settings that contradict each other are errors of one line. A rule without
a pattern selects by kind alone; its kinds come from a closed list and cannot be misspelt, so it may
find nothing in a model that has none of them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field
from torch import nn

from subtone import numerics
from subtone.qtensor import check_group_size
from subtone.quantize.errors import one_line
from subtone.quantize.weights import (
    COMPENSATED_KINDS,
    PER_FRAME_KINDS,
    UNGROUPED_KINDS,
    Kind,
    Weight,
    quantizable_weights,
)

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
RANGES_OF_GRID = {
    "symmetric": ("absmax", "percentile", "clip_search", "octav"),
    "asymmetric": ("minmax", "percentile", "clip_search", "octav"),
    "codebook": ("absmax", "percentile"),
}
"""Ranges that fit each grid; the first is the default."""
CLIP_DEFAULTS = {"clip_low": 0.5, "clip_high": 1.0, "clip_step": 0.05, "error": "mae"}
"""The search of the 2-bit Conformer, section 2.4 (its section 4.1 uses 0.8 to 1.0 by 0.02)."""


class Settings(pydantic.BaseModel):
    """How one weight is stored and which activations it meets; frozen, contradictions refused.

    * `bits` 1 to 8, or `keep_float`.
    * `grid`: "symmetric" (1 bit: plus and minus the mean magnitude), "asymmetric", "codebook".
    * `granularity`: one scale per "tensor", "channel", or "group" of `group_size` inputs.
    * `range`: "absmax" (symmetric, codebook), "minmax" (asymmetric), "percentile" (of magnitudes;
      asymmetric: of both ends), "clip_search", "octav" (uniform grids; ranges.py says what they do).
    * `rounding`: "nearest", or "compensated": each column of a product takes up the error of those
      rounded before it (compensation.py; needs calibration); or "refined": from there codes, scales and
      codebook in turn to the least error of the product (refinement.py; the same).
    * `bias_correction`: shift each output by what rounding took from its mean (needs calibration).
    * `activations`: "float", or "dynamic" with `activation_bits` for weights that meet one frame at
      a time; a kernel that spans frames keeps float activations (docs/numerics.md, section 3).
    * `activation_clip`: "pact" clips dynamic activations, before they are rounded, at a magnitude
      that method native learns for each product (pact.py).

    What is left out is filled in, so that `model_dump` says all that holds.
    """

    model_config = STRICT

    bits: int | None = None
    keep_float: bool = False
    grid: Literal["symmetric", "asymmetric", "codebook"] = "symmetric"
    granularity: Literal["tensor", "channel", "group"] = "channel"
    group_size: int | None = None
    range: Literal["absmax", "minmax", "percentile", "clip_search", "octav"] | None = None
    percentile: float | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    clip_step: float | None = None
    error: Literal["mae", "mse"] | None = None
    rounding: Literal["nearest", "compensated", "refined"] = "nearest"
    bias_correction: bool = False
    activations: Literal["float", "dynamic"] = "float"
    activation_bits: int | None = None
    activation_clip: Literal["pact"] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("keep_float"):
            return values
        filled = dict(values)
        grid = filled.get("grid", "symmetric")
        if filled.get("range") is None and grid in tuple(RANGES_OF_GRID):
            filled["range"] = RANGES_OF_GRID[grid][0]
        defaults: dict[str, Any] = CLIP_DEFAULTS if filled.get("range") == "clip_search" else {}
        if filled.get("activations") == "dynamic":
            defaults = {**defaults, "activation_bits": 8}
        return {**filled, **{key: value for key, value in defaults.items() if filled.get(key) is None}}

    @pydantic.model_validator(mode="after")
    def _check(self) -> Settings:
        if self.keep_float:
            others = sorted(self.model_fields_set - {"keep_float"})
            _require(
                not others,
                f"keep_float=true contradicts {' and '.join(others)}; remove one or the other",
            )
            return self
        if self.bits is None:
            raise ValueError("bits is missing; give 1 to 8, or keep_float = true")
        numerics.check_bits(self.bits)
        self._check_range()
        self._check_granularity()
        self._check_activations()
        return self

    def _check_range(self) -> None:
        fitting = RANGES_OF_GRID[self.grid]
        _require(
            self.range in fitting,
            f"range={self.range!r} does not fit grid={self.grid!r}; use {_either(fitting)}",
        )
        _require(
            not (self.bits == 1 and self.grid == "symmetric" and self.range != "absmax"),
            f"range={self.range!r} has no effect at bits=1, where the mean magnitude sets the scale; leave it out",
        )
        _needs_exactly(self.range == "percentile", "percentile", self.percentile, "range='percentile'")
        for name in CLIP_DEFAULTS:
            _needs_exactly(self.range == "clip_search", name, getattr(self, name), "range='clip_search'")
        if self.percentile is not None:
            _require(
                50 < self.percentile <= 100,
                f"percentile={self.percentile} must lie above 50 and up to 100; 99.9 is usual",
            )
        if self.clip_low is not None and self.clip_high is not None and self.clip_step is not None:
            _require(
                0 < self.clip_low <= self.clip_high <= 1,
                f"clip_low={self.clip_low} and clip_high={self.clip_high} must ascend within (0, 1]",
            )
            _require(
                0.001 <= self.clip_step <= 1,
                f"clip_step={self.clip_step} must lie within 0.001 and 1; 0.05 is usual",
            )

    def _check_granularity(self) -> None:
        is_grouped = self.granularity == "group"
        _needs_exactly(is_grouped, "group_size", self.group_size, "granularity='group'")
        _require(
            self.group_size is None or self.group_size >= 1,
            f"group_size={self.group_size} must be at least 1; 64 is usual",
        )
        _require(
            not (is_grouped and self.grid == "codebook"),
            "granularity='group' does not fit grid='codebook'; use 'channel' or 'tensor'",
        )

    def _check_activations(self) -> None:
        _needs_exactly(
            self.activations == "dynamic", "activation_bits", self.activation_bits, "activations='dynamic'"
        )
        _require(
            self.activation_bits is None or 2 <= self.activation_bits <= 8,
            f"activation_bits={self.activation_bits} has no signed grid; use 2 to 8",
        )
        _require(
            self.activation_clip is None or self.activations == "dynamic",
            f"activation_clip={self.activation_clip!r} has no effect without activations='dynamic'; add that or "
            "remove activation_clip",
        )

    @property
    def is_symmetric(self) -> bool:
        return self.grid == "symmetric"

    @property
    def hears(self) -> str | None:
        """The first setting that needs calibration, as `name=value`; None if nothing does.

        >>> Settings(bits=4, rounding="compensated").hears
        "rounding='compensated'"
        """
        if self.rounding != "nearest":
            return f"rounding={self.rounding!r}"
        return "bias_correction=true" if self.bias_correction else None

    def activation_bits_for(self, kind: Kind) -> int:
        """Bits of the activations that a weight of `kind` meets at run time; 0 is float."""
        return (self.activation_bits or 0) if kind in PER_FRAME_KINDS else 0

    def clips_for(self, kind: Kind) -> bool:
        """Whether the activations that a weight of `kind` meets are clipped at a learned magnitude."""
        return self.activation_clip is not None and bool(self.activation_bits_for(kind))


class Rule(pydantic.BaseModel):
    """Settings for the weights whose path matches `pattern` and whose kind is among `kinds`."""

    model_config = STRICT

    pattern: str = "*"
    kinds: Annotated[tuple[Kind, ...], Field(strict=False)] | None = None
    settings: Settings

    @pydantic.model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, values: Any) -> Any:
        """A rule is written flat, its settings beside its pattern."""
        if not isinstance(values, Mapping) or isinstance(values.get("settings"), Settings):
            return values
        own = {name: values[name] for name in ("pattern", "kinds") if name in values}
        return {**own, "settings": {name: value for name, value in values.items() if name not in own}}

    @pydantic.model_validator(mode="after")
    def _check(self) -> Rule:
        _require(self.pattern != "", "pattern='' matches nothing; leave it out to match every path")
        if self.kinds is not None:
            _require(bool(self.kinds), "kinds=[] matches nothing; leave it out to match every kind")
            for kind in self.kinds:
                _check_kind(kind, self.settings)
        return self

    def matches(self, path: str, kind: Kind) -> bool:
        return fnmatchcase(path, self.pattern) and (self.kinds is None or kind in self.kinds)


class Recipe(pydantic.BaseModel):
    """A method, its options and its rules, as one TOML file says them.

    `options` are the method's own (a schedule, the weight of a penalty); the method checks them.
    `training` says how long and how fast a checkpoint is trained meanwhile; subtone.train checks it.
    `integer` makes the packed model integer-only, calibrated as it says; quantize.static checks it.
    """

    model_config = STRICT

    name: str
    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    integer: dict[str, Any] | None = None
    rules: Annotated[tuple[Rule, ...], Field(strict=False)]

    @classmethod
    def load(cls, path: Path | str) -> Recipe:
        """The recipe in the TOML file `path`; every mistake in it is a ValueError of one line."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"recipe {path} does not exist")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"recipe {path} is not UTF-8 text") from error
        return cls.from_toml(text, source=str(path))

    @classmethod
    def from_toml(cls, text: str, *, source: str = "recipe") -> Recipe:
        """The recipe that `text` says; `source` stands in errors.

        >>> Recipe.from_toml('name = "x"\\nmethod = "linear"\\n[[rules]]\\nbits = 9')
        Traceback (most recent call last):
        ValueError: recipe: rules[0]: bits=9 cannot be stored; use 1 to 8
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{source} is not TOML: {error}") from error
        return cls.from_dict(document, source=source)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """The recipe of a parsed file, or of `resolved()`."""
        try:
            recipe = cls.model_validate(document)
        except pydantic.ValidationError as error:
            raise ValueError(f"{source}: {one_line(error, (cls, Rule, Settings))}") from error
        if not recipe.rules:
            raise ValueError(f"{source}: rules is empty; give at least one [[rules]]")
        return recipe

    def resolved(self) -> dict[str, Any]:
        """The whole recipe with every default filled in, as plain JSON: it travels in checkpoints,
        packed files and results. `from_dict` reads it again."""
        rules = []
        for rule in self.rules:
            own = rule.model_dump(mode="json", exclude={"settings"}, exclude_none=True)
            if rule.settings.keep_float:
                rules.append({**own, "keep_float": True})
            else:
                rules.append(
                    {
                        **own,
                        **rule.settings.model_dump(mode="json", exclude={"keep_float"}, exclude_none=True),
                    }
                )
        tables = {"options": self.options, "training": self.training}
        given = {name: table for name, table in tables.items() if table}
        if self.integer is not None:
            given["integer"] = self.integer
        return {"name": self.name, "method": self.method, **given, "rules": rules}


def assign(recipe: Recipe, model: nn.Module) -> dict[str, Settings]:
    """Parameter path -> settings, for every quantizable weight of `model`.

    ValueError: a weight without a rule, a pattern that matches nothing or comes too late, settings
    that do not fit the weight (a group that does not divide its inputs).
    """
    weights = quantizable_weights(model)
    if not weights:
        raise ValueError(f"recipe {recipe.name}: the model has no weight that can be quantized")
    assigned: dict[str, Settings] = {}
    matched: set[int] = set()
    applied: set[int] = set()
    for path, weight in weights.items():
        matching = [index for index, rule in enumerate(recipe.rules) if rule.matches(path, weight.kind)]
        if not matching:
            raise ValueError(
                f"recipe {recipe.name}: no rule matches {path} ({weight.kind}); add one, with keep_float = true "
                "if it is to stay float"
            )
        matched.update(matching)
        applied.add(matching[0])
        settings = recipe.rules[matching[0]].settings
        try:
            _check_weight(path, weight, settings)
        except ValueError as error:
            raise ValueError(f"recipe {recipe.name}: rules[{matching[0]}]: {error}") from error
        assigned[path] = settings
    for index, rule in enumerate(recipe.rules):
        if index in applied:
            continue
        where = f"recipe {recipe.name}: rules[{index}].pattern={rule.pattern!r}"
        if index in matched:
            raise ValueError(f"{where} comes too late: earlier rules take all it matches; move it up")
        if rule.pattern == "*":
            continue  # by kind alone, and this model has none of these
        raise ValueError(f"{where} matches no weight of this model{_nearest_path(rule, weights)}")
    return assigned


def _check_weight(path: str, weight: Weight, settings: Settings) -> None:
    if settings.keep_float:
        return
    _check_kind(weight.kind, settings, name=path)
    if settings.group_size is not None:
        check_group_size(weight.shape, settings.group_size, name=path)


def _check_kind(kind: Kind, settings: Settings, name: str = "") -> None:
    of = f" of {name}" if name else ""
    _require(
        not (settings.granularity == "group" and kind in UNGROUPED_KINDS),
        f"granularity='group' does not fit the {kind} weights{of}, which have no inputs to group; use 'channel'",
    )
    _require(
        not (settings.bias_correction and kind in ("lstm", "embedding")),
        f"bias_correction=true does not fit the {kind} weights{of}; only products whose inputs can be watched",
    )
    _require(
        settings.rounding == "nearest" or kind in COMPENSATED_KINDS,
        f"rounding={settings.rounding!r} does not fit the {kind} weights{of}, only {', '.join(COMPENSATED_KINDS)}; "
        "use 'nearest'",
    )
    _require(
        not (settings.activation_clip and kind == "lstm"),
        f"activation_clip={settings.activation_clip!r} does not fit the lstm weights{of}, whose recurrence keeps its "
        "activations to itself; add a rule for them without it",
    )


def _nearest_path(rule: Rule, weights: Mapping[str, Weight]) -> str:
    if any(fnmatchcase(path, rule.pattern) for path in weights):
        return f" of kinds {', '.join(rule.kinds or ())}; correct its kinds"
    near = difflib.get_close_matches(rule.pattern, weights, n=1, cutoff=0.0)
    return f"; its weights are called like {near[0]}"


def _needs_exactly(is_meant: bool, name: str, value: object, where: str) -> None:
    """`name` is given where it is meant and only there."""
    if is_meant:
        _require(value is not None, f"{where} needs {name}; give it")
    else:
        _require(value is None, f"{name}={value!r} has no effect without {where}; add that or remove {name}")


def _either(names: tuple[str, ...]) -> str:
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
