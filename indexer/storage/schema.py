"""The tables of index.db, format 1: how they are made, and whether a database has these and nothing else."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

APPLICATION_ID = 0x636C7378  # "clsx"
FORMAT_VERSION = 1
# Columns and SQL indexes of the derived metadata come and go with the fields; expressions have no place in them.
_METADATA = "CREATE TABLE metadata (document INTEGER PRIMARY KEY REFERENCES documents (row_id)"
_METADATA_COLUMNS = re.compile(r'(, "[A-Za-z_][A-Za-z0-9_]*")*\)')
_METADATA_INDEX = re.compile(
    r'CREATE INDEX ["\[]?metadata_\w+["\]]? ON "?metadata"? ?\( ?"?\w+"?(, ?"?\w+"?)* ?\)', re.ASCII
)
# SQLite's own, and what sqlite-utils keeps of migrations.
_OTHER_TABLE = re.compile(r"sqlite_(sequence|stat1|stat4)|_sqlite_migrations")
_PLAIN = re.compile(r"""CREATE (TABLE|UNIQUE INDEX) [\w"\[\] ]+\([\w"\[\] ,]*\)""", re.ASCII)


_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE documents (
        row_id INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        text TEXT NOT NULL,
        metadata TEXT NOT NULL,
        content_hash BLOB NOT NULL,
        source INTEGER NOT NULL REFERENCES sources (source),
        line INTEGER NOT NULL
    )""",
    f"{_METADATA})",
    """CREATE TABLE passages (
        slot INTEGER PRIMARY KEY,
        document INTEGER REFERENCES documents (row_id),
        char_start INTEGER,
        char_end INTEGER,
        text_key INTEGER NOT NULL,
        n_tokens INTEGER NOT NULL,
        n_tokens_lost INTEGER NOT NULL
    )""",
    "CREATE INDEX passages_document ON passages (document)",
    "CREATE INDEX passages_text_key ON passages (text_key)",
    "CREATE TABLE sources (source INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE fields (name TEXT, type TEXT, n INTEGER NOT NULL, PRIMARY KEY (name, type)) WITHOUT ROWID",
    "CREATE TABLE blocks (first_slot INTEGER PRIMARY KEY, n_rows INTEGER NOT NULL, crc32 INTEGER NOT NULL)",
    """CREATE TABLE generations (
        name TEXT PRIMARY KEY,
        vector_file TEXT NOT NULL,
        kind TEXT NOT NULL,
        n_slots INTEGER NOT NULL,
        n_bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        details TEXT NOT NULL,
        created_at TEXT NOT NULL
    )""",
    "CREATE TABLE canaries (position INTEGER PRIMARY KEY, text TEXT NOT NULL, vector BLOB NOT NULL)",
)


def strangers(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield what a database has beside the tables of the format, or lacks of them, e.g. `trigger evil`.

    Views, triggers and columns with expressions would run what somebody else wrote.
    """
    wanted = {_name(statement): _normal(statement) for statement in _TABLES}
    for kind, name, table, statement in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"):
        said = _normal(statement or "")
        if not (said == wanted.get(name) or _is_known(kind, name, table, said)):
            yield f"{kind} {name!r}"
        wanted.pop(name, None)
    yield from (f"no {'index' if name.startswith('passages_') else 'table'} {name!r}" for name in wanted)


def _is_known(kind: str, name: str, table: str, statement: str) -> bool:
    match kind, table:
        case "table", "metadata":
            rest = statement.removeprefix(_METADATA)
            return rest != statement and _METADATA_COLUMNS.fullmatch(rest) is not None
        case "index", "metadata" if name.startswith("metadata_"):
            return _METADATA_INDEX.fullmatch(statement) is not None
        case (("table" | "index"), _) if _OTHER_TABLE.fullmatch(table):
            return not statement or _PLAIN.fullmatch(statement) is not None
        case "index", _:
            return not statement  # SQLite's own, of a key
        case _:
            return False


def _name(statement: str) -> str:
    return statement.split()[2]


def _table(index: str) -> str:
    return index.split()[4]


def _normal(statement: str) -> str:
    return " ".join(statement.split())


def create_derived(connection: sqlite3.Connection) -> None:
    """Make the derived tables `metadata` and `fields` anew, empty; the caller holds a transaction."""
    for statement in _TABLES:
        if _name(statement) in {"metadata", "fields"}:
            connection.execute(f"DROP TABLE IF EXISTS {_name(statement)}")
            connection.execute(statement)


def create_missing_indexes(connection: sqlite3.Connection) -> list[str]:
    """Make those SQL indexes of the format that are not there, and return their names; in the caller's transaction."""
    query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'index')"
    there = {name for (name,) in connection.execute(query)}
    made = []
    for statement in _TABLES:
        if statement.startswith("CREATE INDEX") and _name(statement) not in there and _table(statement) in there:
            connection.execute(statement)
            made.append(_name(statement))
    return made


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database to the current format; the caller holds a transaction, so all of it happens or nothing."""
    # sqlite_utils takes half a second to import; only writers pay it.
    from sqlite_utils import Database, Migrations

    migrations = Migrations("clsindex")

    @migrations()
    def m001_format_1(database: Database) -> None:
        for statement in _TABLES:
            database.execute(statement)

    migrations.apply(Database(connection))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
