"""Strict JSON: what Python's reader lets pass or drops silently is an error with its reason. Stdlib only."""

from __future__ import annotations

from json import JSONDecodeError, JSONDecoder
from typing import Never

from indexer.corpus.parts import BadRecordError
from indexer.corpus.records import short

_SPACE = " \t\r"


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object, unless a key stands twice and a value would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                msg = f"the key {short(key)} stands twice in one object"
                raise BadRecordError(msg)
            seen.add(key)
    return found


def _constant(name: str) -> Never:
    msg = f"{name} is not JSON; write null, or leave the field out"
    raise BadRecordError(msg)


STRICT = JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
LENIENT = JSONDecoder(parse_int=float)
"""Finds the end of a value that STRICT refused."""


def parse_value(decoder: JSONDecoder, text: str, start: int) -> tuple[object, int]:
    """Read the JSON value that begins at a position.

    Args:
        decoder: STRICT or LENIENT.
        text: JSON text, from which the value may be a part.
        start: where the value begins, white space behind.

    Returns:
        The value and the position after it.

    Raises:
        JSONDecodeError: the text is not JSON, or ends too early.
        BadRecordError: it is, but the value cannot be used.
    """
    try:
        return decoder.raw_decode(text, start)
    except JSONDecodeError:
        raise
    except RecursionError as error:
        msg = "the value is nested too deeply"
        raise BadRecordError(msg) from error
    except ValueError as error:
        msg = "an integer has more digits than can be read (4,300)"
        raise BadRecordError(msg) from error


def parse_text(text: str) -> object:
    """Return the one JSON value of a text.

    Raises:
        BadRecordError: the text is not JSON, with the column, or its value cannot be used.
    """
    try:
        value, end = parse_value(STRICT, text, len(text) - len(text.lstrip(_SPACE)))
    except JSONDecodeError as error:
        raise BadRecordError(not_json(error.pos + 1, error.msg)) from error
    if rest := text[end:].lstrip(_SPACE):
        raise BadRecordError(not_json(len(text) - len(rest) + 1, "Extra data"))
    return value


def not_json(column: int, problem: str) -> str:
    """Return the reason for malformed JSON."""
    return f"not valid JSON at column {column} ({problem.rstrip(': ')})"
