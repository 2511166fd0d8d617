"""What work on an index tells while it runs and when it has ended; only the command line draws it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from indexer.documents import JsonValue


class Phase(StrEnum):
    """What is being done to an index."""

    CHECK = "check"
    COPY = "copy"
    LOAD = "load"
    ENCODE = "encode"
    INDEX = "index"
    TUNE = "tune"
    DONE = "done"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where the work stands; of documents, only what is committed or found unchanged counts.

    `fraction` is the share of the phase, in [0, 1], that is done with, None when that is not known, as with a source of
    unknown size; `warnings` are lines that the user should see now.
    """

    phase: Phase
    n_documents: int = 0
    n_encoded: int = 0
    n_tokens: int = 0
    fraction: float | None = None
    warnings: tuple[str, ...] = ()


OnProgress: TypeAlias = Callable[[Progress], None]
OnShare: TypeAlias = Callable[[float], None]
"""Told the share, in [0, 1], of some work that is done; an interrupt raised in it is safe."""


class Stopwatch:
    """Adds up the busy seconds of named stages."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def total_s(self) -> float:
        """Return the seconds since this was made."""
        return time.perf_counter() - self._start


@dataclass(kw_only=True, slots=True)
class BuildReport:
    """What a build did; the counts but `documents` and `passages` are of this run.

    Args:
        documents: documents in the index now.
        passages: passages in the index now.
        encoded: texts that went through the model.
        duplicates: passages whose vector was copied from an identical text.
        unchanged: records that the index had already, to the letter.
        updated: documents whose text or metadata changed.
        deleted: documents taken out.
        truncated: documents that lost tokens at the model's maximum length.
        tokens: tokens of the encoded texts, before truncation; estimated for texts longer than 32 characters a token of
            the maximum length, exact below.
        tokens_lost: tokens that truncation took from the documents that this run added; estimated where `tokens` is.
        skipped: records left out, by reason.
        rejected: records that could not be used, listed in the rejects file.
        seconds: busy seconds by stage; stages overlap or leave gaps, `total` is the wall clock.
        bytes: size of the index directory.
        warnings: what the user should know, one line each.
    """

    documents: int = 0
    passages: int = 0
    encoded: int = 0
    duplicates: int = 0
    unchanged: int = 0
    updated: int = 0
    deleted: int = 0
    truncated: int = 0
    tokens: int = 0
    tokens_lost: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: int = 0
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the report as the command line prints it with --json."""
        return {
            "documents": self.documents,
            "passages": self.passages,
            "encoded": self.encoded,
            "duplicates": self.duplicates,
            "unchanged": self.unchanged,
            "updated": self.updated,
            "deleted": self.deleted,
            "truncated": self.truncated,
            "tokens": self.tokens,
            "tokens_lost": self.tokens_lost,
            "skipped": dict(self.skipped),
            "rejected": self.rejected,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "bytes": self.bytes,
            "warnings": list(self.warnings),
        }


def part_of(on_progress: OnProgress, phase: Phase, start: float = 0.0, stop: float = 1.0) -> OnShare:
    """Return what tells how far the work is that makes [start, stop] of a phase."""
    return lambda share: on_progress(Progress(phase=phase, fraction=start + (stop - start) * float(share)))


def tell_nobody(_progress: Progress) -> None:
    """Take the place of a callback that nobody gave."""
