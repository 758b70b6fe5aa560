"""JSON without its loopholes: what a packed file may say, on the way in and on the way out.

Python's parser lets through what other parsers refuse or understand differently: a key twice, NaN,
1e999, half a surrogate pair, whole numbers of any size, nesting until the stack ends.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 32
_MAX_PLACE = 200


def dump_json(document: object) -> str:
    """`document` as the file holds it: no spaces, UTF-8, no key sorted, NaN refused."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def parse_json(text: str) -> Any:
    """`text` as JSON, ValueError on all that docs/file-format.md does not allow."""
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_json(document, "it")
    return document


def check_json(value: object, where: str, depth: int = 0) -> None:
    """ValueError that names the place, unless `value` survives JSON unchanged.

    Text, whole numbers of 64 bits, finite floats, true, false, null, lists (a tuple becomes one) and
    dicts with text keys, at most 32 deep.
    """
    where = where[:_MAX_PLACE]  # a hostile file's keys may be megabytes long
    _require(depth < MAX_DEPTH, f"{where} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, part in value.items():
            _require(isinstance(key, str), f"{where} has the key {key!r:.80}, which is not text")
            check_json(key, f"a key of {where}", depth + 1)
            check_json(part, f"{where}.{key:.40}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            check_json(part, f"{where}[{index}]", depth + 1)
    elif type(value) is str:
        _require(not re.search("[\ud800-\udfff]", value), f"{where} holds half a surrogate pair")
    elif type(value) is int:
        _require(-(2**63) <= value < 2**63, f"{where} is a number beyond 64 bits")
    elif type(value) is float:
        _require(math.isfinite(value), f"{where} is {value}; only finite numbers are stored")
    else:
        _require(
            value is None or type(value) is bool,
            f"{where} is a {type(value).__name__}; use text, numbers, lists and dicts",
        )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    _require(len(document) == len(pairs), "a key is there twice")
    return document


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
