"""The derived side of metadata: untyped columns that SQL can search, and a catalogue of fields with their types.

The JSON column of `documents` is the truth that is returned; all of this can be made again from it.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from types import NoneType

from indexer.documents import JsonValue, Metadata

MAX_COLUMNS = 64
# Below, a scan takes a few milliseconds; above, an index would keep readers waiting while it is committed, and memory.
INDEXED_DOCUMENTS = range(100_000, 4_000_000)
_MAX_INDEXED = 4
_N_SAMPLED = 2_000
_MOST_MEETING = _LEAST_HAVING = 0.1  # shares of the documents
_MAX_MEAN_CHARACTERS = 64
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = {"document", "rowid", "oid", "_rowid_"}
_INT64 = range(-(2**63), 2**63)


_JSON_TYPES: dict[type, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
    dict: "object",
    list: "array",
}
_SCALARS = {"string", "integer", "number", "boolean"}


def json_type(value: JsonValue) -> str:
    """Return the JSON type of a value: string, integer, number, boolean, null, array or object."""
    return _JSON_TYPES[type(value)]


def column_value(value: JsonValue) -> str | int | float | None:
    """Return a metadata value as the derived table holds it; None for what it does not hold."""
    if isinstance(value, str | float):
        return value
    if isinstance(value, int):
        return int(value) if value in _INT64 else _nearest_float(value)
    return None


def _nearest_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


class MetadataTable:
    """Keeps the tables `metadata` and `fields` in step with `documents`, inside the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection
        self._columns = table_columns(connection)
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, rows: Sequence[tuple[int, Metadata]]) -> None:
        """Add the metadata of some documents, given with their rows."""
        found = _count_types(metadata for _, metadata in rows)
        self._counts.update(found)
        self._add_columns(found)
        marks = ", ".join("?" * (1 + len(self._columns)))
        self._sql.executemany(
            f"INSERT INTO metadata VALUES ({marks})",
            [(row_id, *map(column_value, map(metadata.get, self._columns))) for row_id, metadata in rows],
        )

    def remove(self, row_ids: Sequence[int]) -> None:
        """Take out the metadata of some documents, which still stand in `documents` with what was added."""
        chosen = "SELECT value FROM json_each(?)"
        parameter = (json.dumps(row_ids),)
        removed = self._sql.execute(f"SELECT metadata FROM documents WHERE row_id IN ({chosen})", parameter)
        self._counts.subtract(_count_types(json.loads(metadata) for (metadata,) in removed))
        self._sql.execute(f"DELETE FROM metadata WHERE document IN ({chosen})", parameter)

    def finish(self) -> None:
        """Bring the catalogue of fields up to date; the last step before COMMIT."""
        self._sql.executemany(
            """INSERT INTO fields VALUES (?, ?, ?)
            ON CONFLICT (name, type) DO UPDATE SET n = n + excluded.n""",
            [(name, kind, n) for (name, kind), n in self._counts.items() if n],
        )
        self._sql.execute("DELETE FROM fields WHERE n = 0")

    def _add_columns(self, found: Iterable[tuple[str, str]]) -> None:
        for name, kind in found:
            if name in self._columns or kind not in _SCALARS or len(self._columns) >= MAX_COLUMNS:
                continue
            taken = _RESERVED | {column.lower() for column in self._columns}
            if _PLAIN_NAME.fullmatch(name) and name.lower() not in taken:
                self._sql.execute(f'ALTER TABLE metadata ADD COLUMN "{name}"')
                self._columns.append(name)


def _count_types(several: Iterable[Metadata]) -> Counter[tuple[str, str]]:
    """Count fields by name and JSON type, in the order in which they come."""
    return Counter((name, json_type(value)) for metadata in several for name, value in metadata.items())


def table_columns(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the derived columns."""
    return [row[1] for row in connection.execute("PRAGMA table_info(metadata)")][1:]


def create_indexes(connection: sqlite3.Connection, names: Sequence[str]) -> list[str]:
    """Index derived columns, each as `metadata_<column>`, and return the names that are no such column."""
    columns = set(table_columns(connection))
    for name in names:
        if name in columns:
            connection.execute(f'CREATE INDEX IF NOT EXISTS "metadata_{name}" ON metadata ("{name}")')
    return [name for name in names if name not in columns]


def indexed_columns(connection: sqlite3.Connection) -> list[str]:
    """Return the derived columns that have an SQL index."""
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    return [name for name in table_columns(connection) if f"metadata_{name}" in there]


def selective_columns(connection: sqlite3.Connection) -> list[str]:
    """Return columns without an index that it would pay to index: few documents share a value, as for a user or a date.

    A sample tells: at least a tenth of the documents have a value, short strings or integers, and at most a tenth of
    all pairs of documents are equal. None is indexed by itself where four are indexed already.
    """
    columns = table_columns(connection)
    # Asked for both at once, SQLite goes through the whole table (https://www.sqlite.org/optoverview.html#minmax).
    first, last = connection.execute(
        "SELECT (SELECT min(document) FROM metadata), (SELECT max(document) FROM metadata)"
    ).fetchone()
    if not columns or first is None or last - first + 1 not in INDEXED_DOCUMENTS:
        return []
    step = max((last - first + 1) // _N_SAMPLED, 1)
    names = ", ".join(f'"{name}"' for name in columns)
    rows = connection.execute(
        f"SELECT {names} FROM metadata WHERE document IN (SELECT value FROM json_each(?))",
        (json.dumps(list(range(first, last + 1, step))),),
    ).fetchall()
    shares = {name: _share_equal(values) for name, *values in zip(columns, *rows, strict=True)}
    chosen = sorted((share, name) for name, share in shares.items() if share is not None and share <= _MOST_MEETING)
    there = indexed_columns(connection)
    new = [name for _, name in chosen if name not in there]
    return new[: max(_MAX_INDEXED - len(there), 0)]


def _share_equal(values: Sequence[object]) -> float | None:
    """Return the share of pairs of documents with equal values, None for a column that no index should have."""
    there = [value for value in values if value is not None]
    n_characters = sum(len(str(value)) for value in there)
    if (
        not there
        or len(there) < _LEAST_HAVING * len(values)
        or n_characters > _MAX_MEAN_CHARACTERS * len(there)
        or any(isinstance(value, float) for value in there)
    ):
        return None
    n_equal = sum(n * (n - 1) for n in Counter(there).values())
    return n_equal / max(len(values) * (len(values) - 1), 1)
