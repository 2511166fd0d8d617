"""Values of Python that JSON has no form of its own for, as JSON has them; what is left is refused with its record."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType

from indexer.corpus.records import MAX_DEPTH
from indexer.scalars import json_scalar

_SCALARS = (NoneType, bool, int, float, str)


def json_types(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row with tuples as lists, and single values as `json_scalar` has them; all else is left as it is.

    Args:
        row: values as pyarrow, `datasets` or a caller give them.
    """
    return {name: value if type(value) in _SCALARS else _json_type(value, 1) for name, value in row.items()}


def _json_type(value: object, depth: int) -> object:
    match value:
        case dict() | list() | tuple() if depth > MAX_DEPTH:
            return value  # refused with its record
        case dict():
            return {key: _json_type(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_json_type(item, depth + 1) for item in value]
    return json_scalar(value)
