"""What one commit does to an index, and what the writer knows before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from indexer.documents import Document


@dataclass(frozen=True, slots=True)
class Known:
    """A document that the index has: row, source, content hash, and whether its text is the one asked about."""

    row_id: int
    source: int
    content_hash: bytes
    same_text: bool


class PassageRow(NamedTuple):
    """One passage to store, as the table has it after slot and document.

    `start` and `end` (characters) are None when it is the whole document.
    """

    start: int | None
    end: int | None
    text_key: int
    n_tokens: int
    n_tokens_lost: int


class NewDocument(NamedTuple):
    """A document to append with its passages; `replaces` is the row of the version it takes the place of."""

    document: Document
    source: int
    passages: Sequence[PassageRow]
    replaces: int | None = None


@dataclass(slots=True)
class Changes:
    """What one commit does, in order: rows gone, metadata rewritten (row, document, source), documents appended."""

    gone: list[int] = field(default_factory=list)
    rewritten: list[tuple[int, Document, int]] = field(default_factory=list)
    appended: list[NewDocument] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.gone or self.rewritten or self.appended)


@dataclass(frozen=True, slots=True)
class Twin:
    """A slot whose passage has the same text, so that its vector can be copied."""

    slot: int
    n_tokens: int
    n_tokens_lost: int
