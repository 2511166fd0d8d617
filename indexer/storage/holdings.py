"""What the writer's side asks of the database; nothing here writes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.documents import Document, JsonValue, is_storable, text_key
from indexer.errors import IndexCorruptError
from indexer.storage.changes import Known, Twin
from indexer.storage.database import Meta, translated
from indexer.storage.generations import GenerationRow, read_generations
from indexer.storage.snapshot import count_dead, count_slots, read_blocks, read_dead_slots
from indexer.storage.totals import read_totals

_POSITIONS_THERE = "SELECT j.key FROM json_each(?) AS j WHERE EXISTS (SELECT 1 FROM passages WHERE text_key = j.value)"
# The first of any number of copies will do.
_TWIN = """
    SELECT p.slot, p.n_tokens, p.n_tokens_lost FROM passages AS p JOIN documents AS d ON d.row_id = p.document
    WHERE p.text_key = ? AND ? = CASE WHEN p.char_start IS NULL THEN d.text
        ELSE substr(d.text, p.char_start + 1, p.char_end - p.char_start) END
    LIMIT 1
"""


class Holdings:
    """The documents, passages and files that an index holds, as its one writer sees them."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Ask the database at `path` through a connection."""
        self._path = path
        self._sql = connection

    def setting(self, key: str) -> Any:  # noqa: ANN401 - JSON
        """Return a setting given at creation."""
        with translated(self._path):
            return Meta(self._sql, self._path).json(key)

    def canaries(self) -> list[tuple[str, NDArray[np.float32]]]:
        """Return the canary texts with the vectors, (d,) float32, that they had at creation."""
        with translated(self._path):
            rows = self._sql.execute("SELECT text, vector FROM canaries ORDER BY position").fetchall()
        return [(text, np.frombuffer(vector, "<f4")) for text, vector in rows]

    def find(self, documents: Sequence[Document]) -> list[Known | None]:
        """Return what the index has under the ids of some documents, in their order."""
        ids = json.dumps([document.id for document in documents])
        with translated(self._path):
            rows = self._sql.execute(
                """SELECT j.key, d.row_id, d.source, d.content_hash, d.text FROM json_each(?) AS j
                JOIN documents AS d ON d.id = j.value""",
                (ids,),
            )
            found = {
                position: Known(row_id, source, content_hash, text == documents[position].text)
                for position, row_id, source, content_hash, text in rows
            }
        return [found.get(position) for position in range(len(documents))]

    def last_row_id(self) -> int:
        """Return the highest row that a document ever had, 0 when there was none."""
        with translated(self._path):
            row = self._sql.execute("SELECT seq FROM sqlite_sequence WHERE name = 'documents'").fetchone()
        return row[0] if row else 0

    def rows_of_source(self, name: str) -> NDArray[np.int64]:
        """Return the rows of the documents that came from a source, int64 ascending."""
        query = "SELECT row_id FROM documents JOIN sources USING (source) WHERE name = ? ORDER BY row_id"
        with translated(self._path):
            return np.fromiter((row[0] for row in self._sql.execute(query, (name,))), np.int64)

    def row_ids(self, ids: Sequence[str]) -> list[int]:
        """Return the rows of those ids that the index has."""
        query = "SELECT row_id FROM documents WHERE id = ?"
        with translated(self._path):
            found = (self._sql.execute(query, (id_,)).fetchone() for id_ in ids if is_storable(id_))
            return [row[0] for row in found if row is not None]

    def place_of(self, row_id: int) -> tuple[str, int]:
        """Return source name and line that a document came from."""
        with translated(self._path):
            source, line = self._sql.execute(
                "SELECT s.name, d.line FROM documents AS d JOIN sources AS s USING (source) WHERE row_id = ?", (row_id,)
            ).fetchone()
        return source, line

    def twins(self, texts: Sequence[str]) -> dict[str, Twin]:
        """Return for those texts that a live passage has, letter by letter, a slot that holds their vector."""
        found = {}
        keys = [text_key(text) for text in texts]
        with translated(self._path):
            # Most texts are new; one statement tells that of all of them, one for each took longer than to read them.
            for (position,) in self._sql.execute(_POSITIONS_THERE, (json.dumps(keys),)).fetchall():
                row = self._sql.execute(_TWIN, (keys[position], texts[position])).fetchone()
                if row is not None:
                    found[texts[position]] = Twin(*row)
        return found

    def generations(self) -> list[GenerationRow]:
        """Return the generations that the database names."""
        with translated(self._path):
            return read_generations(self._sql, self._path)

    def blocks(self) -> list[tuple[int, int, int]]:
        """Return first slot, number of rows and CRC-32 of each block of the vector file, ascending."""
        with translated(self._path):
            return read_blocks(self._sql)

    def block_of(self, slot: int) -> tuple[int, int, int]:
        """Return the block that a committed slot lies in, as `blocks` does."""
        query = "SELECT first_slot, n_rows, crc32 FROM blocks WHERE first_slot <= ? ORDER BY first_slot DESC LIMIT 1"
        with translated(self._path):
            block: tuple[int, int, int] = self._sql.execute(query, (slot,)).fetchone()
        return block

    def live_slots(self) -> NDArray[np.int64]:
        """Return the slots of passages whose document stands, int64 ascending."""
        with translated(self._path):
            rows = self._sql.execute("SELECT slot FROM passages WHERE document IS NOT NULL ORDER BY slot")
            return np.fromiter((row[0] for row in rows), np.int64)

    def dead_slots(self) -> NDArray[np.int64]:
        """Return the slots of passages whose document is gone, int64 ascending."""
        with translated(self._path):
            return read_dead_slots(self._sql)

    def n_dead(self) -> int:
        """Return how many dead slots there are, without counting anything else."""
        with translated(self._path):
            return count_dead(self._sql)

    def asked(self) -> JsonValue:
        """Return what was last asked of a generation, None when that is not known."""
        with translated(self._path), suppress(IndexCorruptError):  # it can be asked again
            asked: JsonValue = Meta(self._sql, self._path).json("asked")
            return asked
        return None

    def passage_texts(self, slots: NDArray[np.int64]) -> list[str]:
        """Return the texts of live passages in the order of their slots."""
        with translated(self._path):
            rows = self._sql.execute(
                """SELECT CASE WHEN p.char_start IS NULL THEN d.text
                    ELSE substr(d.text, p.char_start + 1, p.char_end - p.char_start) END
                FROM json_each(?) AS j JOIN passages AS p ON p.slot = j.value
                JOIN documents AS d ON d.row_id = p.document ORDER BY p.slot""",
                (json.dumps([int(slot) for slot in slots]),),
            )
            return [row[0] for row in rows]

    def counts(self) -> dict[str, int]:
        """Return how many documents, passages (live slots) and dead slots there are."""
        with translated(self._path):
            documents = read_totals(self._sql, self._path).documents
            dead = count_dead(self._sql)
            passages = count_slots(self._sql) - dead
        return {"documents": documents, "passages": passages, "dead": dead}
