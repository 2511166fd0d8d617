"""The tables of index.db, format 1, as sqlite-utils migrations; docs/format.md explains every column."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from indexer.database import APPLICATION_ID, FORMAT_VERSION

if TYPE_CHECKING:
    from sqlite_utils import Database

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
    "CREATE TABLE metadata (document INTEGER PRIMARY KEY REFERENCES documents (row_id))",
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
