"""Connections to index.db: pragmas and transactions that both sides rely on, errors in our words. Stdlib only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from indexer.errors import IndexCorruptError, IndexerError, IndexFormatError, IndexNotFoundError, StorageError
from indexer.files import DATABASE, mend

APPLICATION_ID = 0x636C7378  # "clsx"
FORMAT_VERSION = 1
BUSY_TIMEOUT_S = 10.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class CommitError(StorageError):
    """SQLite could not end a COMMIT; whether it happened only opening the database again tells."""


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open or create index.db for writing: rollback journal TRUNCATE, synchronous FULL, explicit transactions.

    WAL is not used: WAL with synchronous=NORMAL loses acknowledged commits at power loss, and SQLite before 3.51.3
    carries the WAL-reset bug (https://www.sqlite.org/wal.html#walresetbug). DELETE leaves the removal of the journal
    unsynced; TRUNCATE with FULL does not.
    """
    with translated(path):
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        for pragma in (
            "journal_mode = TRUNCATE",
            "synchronous = FULL",
            "cache_spill = OFF",  # a spill would take the exclusive lock before COMMIT and keep readers waiting
            "cache_size = -32768",
            "temp_store = MEMORY",
            "trusted_schema = OFF",
            "cell_size_check = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
    return connection


def connect_reader(directory: Path) -> sqlite3.Connection:
    """Open the index.db of an index read-only.

    A commit that was cut off leaves a hot journal, which a read-only connection may not roll back. SQLite does it
    through a connection of its own that is opened for writing and changes nothing else.

    Raises:
        IndexNotFoundError: there is no index at the path.
        IndexFormatError: the format is newer than this version, or it is another application's database.
        IndexCorruptError: the file is damaged.
    """
    path = directory / DATABASE
    if not path.is_file():
        msg = f"{directory} is not an index (no {DATABASE} in it); build one with: index build SOURCE --out {directory}"
        raise IndexNotFoundError(msg)
    try:
        return _checked_reader(path)
    except sqlite3.OperationalError as error:
        if not roll_back_journal(path, error):
            raise _translate(path, error) from error
    with translated(path):
        return _checked_reader(path)


def roll_back_journal(path: Path, error: sqlite3.Error) -> bool:
    """Let SQLite roll back a commit that was cut off, if that is what a reader's error means; tell whether it is."""
    if error.sqlite_errorcode not in (sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_CANTOPEN):
        return False
    with translated(path), closing(sqlite3.connect(_uri(path, "rw"), uri=True, timeout=BUSY_TIMEOUT_S)) as recovering:
        recovering.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return True


class Meta(dict[str, Any]):
    """The settings of an index by their keys; one that is missing means damage."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(connection.execute("SELECT key, value FROM meta"))
        self._path = path

    def __missing__(self, key: str) -> Any:  # noqa: ANN401 - JSON
        msg = f"{self._path} is damaged: the setting {key!r} is missing; {mend(self._path.parent)}"
        raise IndexCorruptError(msg)

    def json(self, key: str) -> Any:  # noqa: ANN401 - JSON
        """Return a setting that is kept as JSON."""
        return json.loads(self[key])


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"


def _checked_reader(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        _uri(path, "ro"), uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        for pragma in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
            connection.execute(f"PRAGMA {pragma}")
        check_format(connection, path)
    except sqlite3.OperationalError:
        connection.close()
        raise
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _translate(path, error) from error
    except IndexerError:
        connection.close()
        raise
    return connection


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that is not ours, or newer than this version.

    Raises:
        IndexNotFoundError: a build was cut off before anything was committed.
        IndexFormatError: another application's database, or a newer format.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        msg = f"{path.parent} is not an index yet: its build was cut off before anything was committed; run it again"
        raise IndexNotFoundError(msg)
    if application != APPLICATION_ID:
        msg = f"{path} is a database of another application (application_id {application}); choose another directory"
        raise IndexFormatError(msg)
    if version > FORMAT_VERSION:
        msg = f"{path} has format {version}, this version reads up to {FORMAT_VERSION}; upgrade clsindex"
        raise IndexFormatError(msg)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into errors of ours, one line each."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, error) from error


def _translate(path: Path, error: sqlite3.Error) -> IndexerError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
        return IndexCorruptError(f"{path} is damaged ({error}); {mend(path.parent)}")
    return StorageError(f"{path}: {error}; what was committed before stands")


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path, kind: str = "DEFERRED") -> Iterator[None]:
    """Run a block in one transaction; kind IMMEDIATE takes the write lock at once.

    A deferred transaction that later writes could fail with SQLITE_BUSY_SNAPSHOT whatever the timeout, so writers ask
    for IMMEDIATE (https://www.sqlite.org/lang_transaction.html).

    Raises:
        CommitError: COMMIT failed, and may have happened all the same.
        StorageError: SQLite refused a statement; nothing of the block is committed.
    """
    with translated(path):
        connection.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if not connection.in_transaction:
                raise CommitError(f"{path}: {error}") from error
            connection.execute("ROLLBACK")  # a reader kept it waiting too long
            raise
