"""SQLite, the reader's side: one consistent view of an index through stdlib sqlite3; nothing is ever written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.documents import JsonValue, is_storable
from indexer.errors import IndexCorruptError
from indexer.filters import CompiledFilter, Field
from indexer.storage.database import Meta, connect_reader, roll_back_journal, stored_json, transaction, translated
from indexer.storage.files import DATABASE, mend
from indexer.storage.generations import GenerationRow, read_generations
from indexer.storage.metadata import table_columns
from indexer.storage.seal import check_seal
from indexer.storage.totals import Totals, read_totals
from indexer.storage.vectors import VectorLayout

_FEW = 32  # an index is used for filters that less than one passage in so many meets


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What an index was at one commit, but for its documents.

    `seq` grows with every commit; `dead` are the slots of deleted and replaced passages, int64 ascending; slots from
    0 to `n_rows` are the committed ones.
    """

    seq: int
    n_rows: int
    is_complete: bool
    vector_file: str
    layout: VectorLayout
    dead: NDArray[np.int64]
    generations: tuple[GenerationRow, ...]
    fields: dict[str, Field]

    @property
    def generation(self) -> GenerationRow | None:
        """The newest generation that belongs to the vector file, None when all slots are the tail."""
        return next((row for row in self.generations if row.vector_file == self.vector_file), None)

    @property
    def n_passages(self) -> int:
        """How many slots are live."""
        return self.n_rows - len(self.dead)


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage with its document, as it is returned: `start` and `end` are None when it is the whole document."""

    slot: int
    id: str
    text: str
    metadata: dict[str, JsonValue]
    start: int | None
    end: int | None


class SnapshotReader:
    """Reads an index; each method that reads several things does so in one transaction.

    Threads take turns with transactions: of one process, SQLite lets transactions overlap although a writer of another
    waits, which they would keep waiting for as long as one always follows.
    """

    def __init__(self, directory: Path, database: str = DATABASE) -> None:
        """Open an index, or a copy that is not ready, whose database has another name.

        Raises:
            IndexNotFoundError: there is no index at the path.
            IndexFormatError: this version cannot read it.
            IndexCorruptError: the database is damaged.
        """
        self.directory = directory
        self._path = directory / database
        self._sql = connect_reader(directory, database)
        self._newest: Snapshot | None = None
        self._turn = RLock()

    def close(self) -> None:
        """Close the database, after the transaction of another thread."""
        with self._turn:
            self._sql.close()

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """Hold one view of the database for a block, and give its seq; a block within a block shares its view.

        Keep it short: the writer's COMMIT waits for it.
        """
        with self._turn, nullcontext() if self._sql.in_transaction else self._begin():
            yield Meta(self._sql, self._path)["seq"]

    @contextmanager
    def _begin(self) -> Iterator[None]:
        with translated(self._path):
            try:
                self._sql.execute("SELECT 1 FROM meta").fetchone()
            except sqlite3.OperationalError as error:  # a writer was killed in its commit while this was open
                if not roll_back_journal(self._path, error):
                    raise
        with transaction(self._sql, self._path):
            yield

    def seq(self) -> int:
        """Return the number of the newest commit."""
        with self.transaction() as seq:
            return seq

    def setting(self, key: str) -> Any:  # noqa: ANN401 - JSON
        """Return a setting of the index that is kept as JSON."""
        with self.transaction():
            check_seal(self._sql, self._path)
            return Meta(self._sql, self._path).json(key)

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot."""
        with self.transaction():
            self._newest = read_snapshot(self._sql, self._path, self._newest)
            return self._newest

    def totals(self) -> Totals:
        """Return how many documents and tokens there are, and how many truncation cost."""
        with self.transaction():
            return read_totals(self._sql, self._path)

    def matching_slots(self, condition: CompiledFilter) -> NDArray[np.int64]:
        """Return the live slots whose document meets a filter, ascending. Call it within `transaction`."""
        found = self.indexed_slots(condition)
        return self._slots(_slots_query(condition, "NOT INDEXED"), condition.parameters) if found is None else found

    def indexed_slots(self, condition: CompiledFilter, most: int | None = None) -> NDArray[np.int64] | None:
        """Return what `matching_slots` does where an SQL index gives it; None without one, or if there are so many."""
        query = _slots_query(condition)
        plan = self._sql.execute(f"EXPLAIN QUERY PLAN {query}", condition.parameters)
        if not any(step.startswith("SEARCH m USING") and "INDEX metadata_" in step for *_, step in plan):
            return None
        # SQLite takes whatever index there is, but where many documents meet a filter, a scan is faster.
        n_few = count_slots(self._sql) // _FEW
        n_few = n_few if most is None else min(most, n_few)
        found = self._slots(f"{query} LIMIT {n_few:d}", condition.parameters)
        return found if len(found) < n_few else None

    def _slots(self, query: str, parameters: tuple[str | int | float, ...]) -> NDArray[np.int64]:
        found = np.fromiter((row[0] for row in self._sql.execute(query, parameters)), np.int64)
        found.sort()
        return found

    def meeting(self, slots: NDArray[np.int64], condition: CompiledFilter) -> NDArray[np.int64]:
        """Return those of some slots whose document meets a filter, ascending. Call it within `transaction`."""
        query = f"""SELECT p.slot FROM json_each(?) AS j CROSS JOIN passages AS p ON p.slot = j.value
            CROSS JOIN metadata AS m ON m.document = p.document {_documents(condition)} WHERE {condition.sql}"""
        return self._slots(query, (json.dumps(slots.tolist()), *condition.parameters))

    def matching_rows(self, condition: CompiledFilter) -> NDArray[np.int64]:
        """Return the rows of the documents that meet a filter, int64 ascending."""
        query = (
            f"SELECT m.document FROM metadata AS m {_documents(condition)} WHERE {condition.sql} ORDER BY m.document"
        )
        with self.transaction():
            return np.fromiter((row[0] for row in self._sql.execute(query, condition.parameters)), np.int64)

    def passages(self, slots: Sequence[int]) -> dict[int, StoredPassage]:
        """Return the live passages of some slots. Call it within `transaction`."""
        rows = self._sql.execute(
            """SELECT p.slot, d.id, d.text, d.metadata, p.char_start, p.char_end FROM json_each(?) AS j
            JOIN passages AS p ON p.slot = j.value JOIN documents AS d ON d.row_id = p.document""",
            (json.dumps([int(slot) for slot in slots]),),
        )
        return {
            slot: StoredPassage(slot, id_, text, self._metadata(metadata), start, end)
            for slot, id_, text, metadata, start, end in rows
        }

    def document_slots(self, id_: str) -> list[int]:
        """Return the slots of a document, none when the index does not have the id."""
        if not is_storable(id_):
            return []
        with self.transaction():
            rows = self._sql.execute(
                "SELECT p.slot FROM documents AS d JOIN passages AS p ON p.document = d.row_id WHERE d.id = ?", (id_,)
            )
            return [row[0] for row in rows]

    def field_values(self, field: str) -> list[tuple[int, JsonValue]]:
        """Return the first slot of each document, in the order of the ids, with its value of a field or None."""
        with self.transaction():
            rows = self._sql.execute(
                """SELECT min(p.slot), d.metadata FROM documents AS d JOIN passages AS p ON p.document = d.row_id
                GROUP BY d.row_id ORDER BY d.id"""
            )
            return [(slot, self._metadata(metadata).get(field)) for slot, metadata in rows]

    def known_ids(self, ids: Sequence[str], condition: CompiledFilter | None = None) -> set[str]:
        """Return those ids that the index has, with a filter those whose document meets it.

        A filter must have been compiled for this very commit: call it within `transaction`.
        """
        wanted = json.dumps([id_ for id_ in ids if is_storable(id_)])
        query = "SELECT d.id FROM json_each(?) AS j JOIN documents AS d ON d.id = j.value"
        parameters: tuple[str | int | float, ...] = (wanted,)
        if condition is not None:
            query += f" JOIN metadata AS m ON m.document = d.row_id WHERE {condition.sql}"
            parameters += condition.parameters
        with self.transaction():
            return {row[0] for row in self._sql.execute(query, parameters)}

    def _metadata(self, text: str) -> dict[str, JsonValue]:
        value = stored_json(text, self._path)
        if not isinstance(value, dict):
            msg = f"{self._path} is damaged: the metadata of a document are no JSON object; {mend(self.directory)}"
            raise IndexCorruptError(msg)
        return value

    def blocks(self) -> list[tuple[int, int, int]]:
        """Return first slot, number of rows and CRC-32 of each block of the vector file, ascending."""
        with self.transaction():
            return read_blocks(self._sql)

    def field_types(self) -> dict[str, list[str]]:
        """Return the JSON types of every metadata field, both in alphabetical order."""
        return {name: sorted(field.types) for name, field in sorted(self.snapshot().fields.items())}


def _slots_query(condition: CompiledFilter, how: str = "") -> str:
    return f"""SELECT p.slot FROM metadata AS m {how} {_documents(condition)}
        JOIN passages AS p ON p.document = m.document WHERE {condition.sql}"""


def _documents(condition: CompiledFilter) -> str:
    """Return the join of the documents, for what stands in their JSON alone: it costs half of a broad filter."""
    return "JOIN documents AS d ON d.row_id = m.document" if "d.metadata" in condition.sql else ""


def read_snapshot(sql: sqlite3.Connection, path: Path, before: Snapshot | None = None) -> Snapshot:
    """Return the snapshot that a connection to the database at `path` sees; the caller holds a transaction.

    With one of `before`, the dead slots are read only if there are more now: a dead slot stays dead until compaction.
    """
    meta = Meta(sql, path)
    n_rows = meta.count("n_rows")
    if count_slots(sql) != n_rows:
        msg = f"{path} is damaged: n_rows is {n_rows}, but the passages end elsewhere; {mend(path.parent)}"
        raise IndexCorruptError(msg)
    return Snapshot(
        seq=meta.count("seq"),
        n_rows=n_rows,
        is_complete=bool(meta["complete"]),
        vector_file=meta.text("vector_file"),
        layout=VectorLayout.of(meta, path),
        dead=_dead_slots_since(before, sql, meta.text("vector_file")),
        generations=tuple(read_generations(sql, path)),
        fields=_read_fields(sql),
    )


def _dead_slots_since(before: Snapshot | None, sql: sqlite3.Connection, vector_file: str) -> NDArray[np.int64]:
    if before is not None and before.vector_file == vector_file and count_dead(sql) == len(before.dead):
        return before.dead
    return read_dead_slots(sql)


def count_slots(sql: sqlite3.Connection) -> int:
    """Return how many passages there are, dead ones too: slots have no gaps, and to count them takes a pass."""
    return int(sql.execute("SELECT coalesce(max(slot) + 1, 0) FROM passages").fetchone()[0])


def count_dead(sql: sqlite3.Connection) -> int:
    """Return of how many passages the document is gone; an SQL index finds them."""
    return int(sql.execute("SELECT count(*) FROM passages WHERE document IS NULL").fetchone()[0])


def read_blocks(sql: sqlite3.Connection) -> list[tuple[int, int, int]]:
    """Return first slot, number of rows and CRC-32 of each block of the vector file, ascending."""
    return sql.execute("SELECT first_slot, n_rows, crc32 FROM blocks ORDER BY first_slot").fetchall()


def read_dead_slots(sql: sqlite3.Connection) -> NDArray[np.int64]:
    """Return the slots of passages whose document is gone, int64 ascending."""
    rows = sql.execute("SELECT slot FROM passages WHERE document IS NULL ORDER BY slot")
    return np.fromiter((row[0] for row in rows), np.int64)


def _read_fields(sql: sqlite3.Connection) -> dict[str, Field]:
    columns = set(table_columns(sql))
    types: dict[str, set[str]] = {}
    for name, kind in sql.execute("SELECT name, type FROM fields"):
        types.setdefault(name, set()).add(kind)
    return {
        name: Field(name=name, types=frozenset(kinds), column=name if name in columns else None)
        for name, kinds in types.items()
    }
