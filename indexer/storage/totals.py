"""What an index holds, in numbers that every commit keeps up: to count them takes a pass over all documents."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from indexer.errors import IndexCorruptError
from indexer.storage.changes import NewDocument
from indexer.storage.database import Meta
from indexer.storage.files import mend

_KEY = "totals"


@dataclass(frozen=True, slots=True)
class Totals:
    """Of live documents: how many, their tokens before truncation, tokens lost to it, documents that lost some."""

    documents: int
    tokens: int
    tokens_lost: int
    truncated: int

    @classmethod
    def of(cls, documents: Sequence[NewDocument]) -> Totals:
        """Return those of documents to append."""
        passages = [passage for new in documents for passage in new.passages]
        return cls(
            documents=len(documents),
            tokens=sum(passage.n_tokens for passage in passages),
            tokens_lost=sum(passage.n_tokens_lost for passage in passages),
            truncated=sum(any(passage.n_tokens_lost for passage in new.passages) for new in documents),
        )

    def after(self, gone: Totals, appended: Totals) -> Totals:
        """Return those of an index that had these, once some documents are gone and others appended."""
        changes = zip(astuple(self), astuple(gone), astuple(appended), strict=True)
        return Totals(*(n - n_gone + n_appended for n, n_gone, n_appended in changes))


def read_totals(sql: sqlite3.Connection, path: Path) -> Totals:
    """Return what the last commit kept; an index from before there were totals is counted.

    Raises:
        IndexCorruptError: they are nothing that a commit keeps.
    """
    meta = Meta(sql, path)
    if _KEY not in meta:
        return count_totals(sql)
    kept = meta.json(_KEY)
    try:
        totals = Totals(**kept)
    except TypeError as error:
        raise _damaged(path, kept) from error
    if any(type(n) is not int or n < 0 for n in astuple(totals)):
        raise _damaged(path, kept)
    return totals


def _damaged(path: Path, kept: object) -> IndexCorruptError:
    return IndexCorruptError(f"{path} is damaged: {_KEY} is {str(kept)[:40]!r}; {mend(path.parent)}")


def count_totals(sql: sqlite3.Connection, rows: Sequence[int] | None = None) -> Totals:
    """Count over all documents, or over some, given by their rows."""
    chosen = "IS NOT NULL" if rows is None else "IN (SELECT value FROM json_each(?1))"
    (counted,) = sql.execute(
        f"""SELECT (SELECT count(*) FROM documents WHERE row_id {chosen}),
            coalesce(sum(n_tokens), 0), coalesce(sum(n_tokens_lost), 0),
            count(DISTINCT CASE WHEN n_tokens_lost > 0 THEN document END)
        FROM passages WHERE document {chosen}""",
        () if rows is None else (json.dumps(rows),),
    )
    return Totals(*counted)


def keep_totals(sql: sqlite3.Connection, totals: Totals) -> None:
    """Store totals; the caller holds the transaction that makes them true."""
    sql.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_KEY, json.dumps(asdict(totals))))
