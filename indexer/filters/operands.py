"""The values that a filter compares with: what may stand where, and how a message shows what may not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from indexer.errors import FilterError
from indexer.filters.nodes import Scalar, ScalarKind
from indexer.scalars import json_scalar


def scalar(value: object, place: str) -> Scalar:
    """Return a JSON scalar with its kind.

    Args:
        value: what stands in the filter; dates, scalars of numpy and the like count for what they are in a record.
        place: where it stands, to begin the message with.

    Returns:
        The value; an integer beyond 64 bits stays one until it is bound.

    Raises:
        FilterError: a list, an object, NaN, Inf, a number beyond the doubles, invalid Unicode, or no JSON value.
    """
    value = json_scalar(value)
    match value:
        case None:
            return Scalar(ScalarKind.NULL, None)
        case bool():
            return Scalar(ScalarKind.BOOLEAN, value)
        case str():
            check_unicode(value, place)
            return Scalar(ScalarKind.STRING, value)
        case int() | float():
            return Scalar(ScalarKind.NUMBER, _check_finite(value, place))
        case _:
            advice = "use $in for one of several values, $contains for a member of a list"
            msg = f"{place}: {show(value)} cannot be compared; {advice}"
            raise FilterError(msg)


def bound(value: object, place: str) -> Scalar:
    """Return a scalar that can be the bound of a range: a number or a string.

    Raises:
        FilterError: as `scalar`, and for true, false and null.
    """
    value = json_scalar(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        msg = f"{place} takes a number or a string, not {show(value)}"
        raise FilterError(msg)
    return scalar(value, place)


def _check_finite(value: float, place: str) -> float:
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        msg = f"{place}: {show(value)} is not a finite 64-bit number"
        raise FilterError(msg)
    return value


def check_unicode(text: str, place: str) -> None:
    """Refuse text that cannot be written as UTF-8.

    Raises:
        FilterError: it holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"{place}: {show(text)} is not valid Unicode (a lone surrogate at character {error.start})"
        raise FilterError(msg) from error


def show(value: object) -> str:
    """Return a value as a message shows it: short, printable, on one line, and never failing."""
    match value:
        case None | bool():
            return json.dumps(value)
        case str():
            return repr(value) if len(value) <= 60 else f"{value[:60]!r}…"
        case int() if not -(10**20) < value < 10**20:
            return "a number beyond 20 digits"
        case int() | float():
            return repr(value)
        case list() | tuple():
            return "a list" if value else "an empty list"
        case Mapping():
            return "an object" if value else "an empty object"
        case _:
            return f"a value of type {type(value).__name__}"
