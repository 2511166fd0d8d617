"""Part: one thing to read, and what passes between its reader and `read_corpus`. Stdlib only."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from indexer.errors import CorpusError

MAX_RECORD_BYTES = 64 << 20
SIZE_LIMIT_TEXT = f"{MAX_RECORD_BYTES >> 20} MiB"

RawRecord: TypeAlias = tuple[int, object, float]
"""What a reader yields: the line or record number, the record as found, and the position in the part after it."""

Reject: TypeAlias = Callable[[int, str], None]
"""Takes the line and the reason of a bad record; raises when the run is to stop, else the reader goes on."""

Reader: TypeAlias = Callable[[Reject], Generator[RawRecord]]


class BadRecordError(Exception):
    """Why a record cannot be used; becomes a CorpusError where its place is known and never leaves the package."""


class Unit(StrEnum):
    """What the size of a part, and the positions in it, count."""

    BYTES = "bytes"
    RECORDS = "records"


def stopper(name: str, on_reject: Callable[[CorpusError], None] | None = None) -> Reject:
    """Return what a reader tells of bad records.

    Args:
        name: the part as places call it.
        on_reject: gets the error; None lets it be raised.
    """

    def reject(line: int, reason: str) -> None:
        error = CorpusError(name, line, reason)
        if on_reject is None:
            raise error
        on_reject(error)

    return reject


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file, table or stream: `name` is how places call it, `size` is None when it is not known beforehand."""

    name: str
    read: Reader
    size: int | None = None
    unit: Unit = Unit.RECORDS
    delimited: bool = False
