"""What one commit writes of documents: their rows, those of their passages, and the metadata derived from them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from indexer.documents import Document
from indexer.storage.changes import NewDocument
from indexer.storage.metadata import MetadataTable


class DocumentRows:
    """The tables `documents` and `passages` within one transaction; `finish` ends what they do to the metadata."""

    def __init__(self, sql: sqlite3.Connection) -> None:
        self._sql = sql
        self._metadata = MetadataTable(sql)

    def remove(self, row_ids: Sequence[int]) -> None:
        """Remove documents by their rows; their passages stay as dead slots."""
        if not row_ids:
            return
        self._metadata.remove(row_ids)
        chosen, parameter = "SELECT value FROM json_each(?)", (json.dumps(row_ids),)
        self._sql.execute(f"UPDATE passages SET document = NULL WHERE document IN ({chosen})", parameter)
        self._sql.execute(f"DELETE FROM documents WHERE row_id IN ({chosen})", parameter)

    def rewrite(self, rewritten: Sequence[tuple[int, Document, int]]) -> None:
        """Give documents, by row, other metadata and another source; their texts are the same."""
        if not rewritten:
            return
        self._metadata.remove([row_id for row_id, _, _ in rewritten])
        self._sql.executemany(
            "UPDATE documents SET metadata = ?, content_hash = ?, source = ?, line = ? WHERE row_id = ?",
            [(d.metadata_json(), d.content_hash(), source, d.place.line, row_id) for row_id, d, source in rewritten],
        )
        self._metadata.add([(row_id, document.metadata) for row_id, document, _ in rewritten])

    def append(self, appended: Sequence[NewDocument], first_row: int, first_slot: int) -> None:
        """Append documents with their passages, rows and slots ascending from the first of each."""
        if not appended:
            return
        numbered = list(enumerate(appended, first_row))
        self._sql.executemany(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (row_id, d.id, d.text, d.metadata_json(), d.content_hash(), new.source, d.place.line)
                for row_id, new in numbered
                for d in (new.document,)
            ],
        )
        owners = ((row_id, passage) for row_id, new in numbered for passage in new.passages)
        self._sql.executemany(
            "INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(slot, row_id, *passage) for slot, (row_id, passage) in enumerate(owners, first_slot)],
        )
        self._metadata.add([(row_id, new.document.metadata) for row_id, new in numbered])

    def finish(self) -> None:
        """Write what was counted of the fields."""
        self._metadata.finish()
