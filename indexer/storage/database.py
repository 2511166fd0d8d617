"""Connections to index.db: pragmas and transactions that both sides rely on, errors in our words. Stdlib only."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from indexer.errors import IndexCorruptError, IndexerError, IndexFormatError, IndexNotFoundError, StorageError
from indexer.storage.files import DATABASE, mend, open_regular, read_error
from indexer.storage.schema import APPLICATION_ID, FORMAT_VERSION, strangers

BUSY_TIMEOUT_S = 10.0
# A reader may go through millions of documents in one transaction: a commit waits for it a minute, in six tries.
_COMMIT_TRIES = 6
# A commit keeps readers out while it waits, and for as long as the disk takes; only that of a compaction is large.
READER_TIMEOUT_S = 120.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_LONGEST_VALUE_BYTES = 1 << 28
_LONGEST_SETTING = 1 << 20
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


class CommitError(StorageError):
    """SQLite could not end a COMMIT; whether it happened only opening the database again tells."""


def connect_writer(path: Path, *, creates: bool = False) -> sqlite3.Connection:
    """Open index.db for writing: rollback journal TRUNCATE, synchronous FULL, explicit transactions.

    WAL is not used: WAL with synchronous=NORMAL loses acknowledged commits at power loss, and SQLite before 3.51.3
    carries the WAL-reset bug (https://www.sqlite.org/wal.html#walresetbug). DELETE leaves the removal of the journal
    unsynced; TRUNCATE with FULL does not.

    Args:
        path: of the database.
        creates: it may be missing, or hold nothing yet.

    Raises:
        IndexNotFoundError: nothing was ever committed to it.
        IndexFormatError: another application's database, or a newer format; nothing was touched.
        IndexCorruptError: the file is damaged.
    """
    check_place(path)
    if not (creates or path.exists()):
        raise _no_index(path)
    with translated(path):
        connection = sqlite3.connect(
            _uri(path, "rwc" if creates else "rw"),
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _set_limits(connection)
            if not creates:
                _check_application(connection, path)
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
        except BaseException:
            connection.close()
            raise
    return connection


def connect_reader(directory: Path, name: str = DATABASE) -> sqlite3.Connection:
    """Open the database of an index, of another name in a copy that is not ready, read-only.

    A commit that was cut off leaves a hot journal, which a read-only connection may not roll back. SQLite does it
    through a connection of its own that is opened for writing and changes nothing else.

    Raises:
        IndexNotFoundError: there is no index at the path.
        IndexFormatError: the format is newer than this version, or it is another application's database.
        IndexCorruptError: the file is damaged.
    """
    path = directory / name
    check_place(path)
    if not path.exists():
        raise _no_index(path)
    with translated(path):
        try:
            return _checked_reader(path)
        except sqlite3.OperationalError as error:
            if not roll_back_journal(path, error):
                raise
        return _checked_reader(path)


def _no_index(path: Path) -> IndexNotFoundError:
    directory = path.parent
    msg = f"{directory} is not an index (no {DATABASE} in it); build one with: index build SOURCE --out {directory}"
    return IndexNotFoundError(msg)


def check_place(path: Path) -> None:
    """Refuse a database that lies where SQLite would write through to other files.

    SQLite follows links, and it removes a file that a journal names as its super-journal; an index has neither.

    Raises:
        IndexCorruptError: the database or a file beside it is a link or no file, or is none that an index has.
    """
    for name, is_allowed in (("", True), ("-journal", True), ("-wal", False), ("-shm", False)):
        each = path.with_name(path.name + name)
        try:
            mode = each.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise read_error(each, error) from error
        if not stat.S_ISREG(mode):
            msg = f"{each}: not a regular file; {mend(path.parent)}"
            raise IndexCorruptError(msg)
        if not is_allowed:
            msg = f"{each} is there: the database is in WAL mode; run: sqlite3 {path} 'PRAGMA journal_mode = DELETE'"
            raise IndexCorruptError(msg)
        if name == "-journal" and _names_super_journal(each):
            msg = f"{each} names another journal, which the journal of an index never does; {mend(path.parent)}"
            raise IndexCorruptError(msg)


def _names_super_journal(journal: Path) -> bool:
    # https://www.sqlite.org/fileformat.html#the_rollback_journal: such a name stands at the end, before the magic.
    try:
        descriptor = open_regular(journal, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        size = os.fstat(descriptor).st_size
        return size > len(_JOURNAL_MAGIC) and os.pread(descriptor, 8, size - 8) == _JOURNAL_MAGIC
    finally:
        os.close(descriptor)


def _set_limits(connection: sqlite3.Connection) -> None:
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE_BYTES),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 0),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        connection.setlimit(limit, value)


def roll_back_journal(path: Path, error: sqlite3.Error) -> bool:
    """Let SQLite roll back a commit that was cut off, if that is what a reader's error means; tell whether it is."""
    if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_CANTOPEN):
        return False
    check_place(path)
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
        text = self[key]
        if not isinstance(text, str) or len(text) > _LONGEST_SETTING:
            raise self._wrong(key)
        return stored_json(text, self._path)

    def count(self, key: str, least: int = 0, most: int = 1 << 48) -> int:
        """Return a setting that is a whole number in a range."""
        value = self[key]
        if not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key)
        return value

    def text(self, key: str) -> str:
        """Return a setting that is a text."""
        value = self[key]
        if not isinstance(value, str):
            raise self._wrong(key)
        return value

    def _wrong(self, key: str) -> IndexCorruptError:
        return IndexCorruptError(
            f"{self._path} is damaged: {key} is {str(self[key])[:40]!r}; {mend(self._path.parent)}"
        )


def stored_json(text: str, path: Path) -> Any:  # noqa: ANN401 - JSON
    """Return the value of a JSON text of the database at `path`.

    Raises:
        IndexCorruptError: it is not JSON, or nested deeper than any that an index writes.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        msg = f"{path} is damaged: a value that should be JSON is not ({type(error).__name__}); {mend(path.parent)}"
        raise IndexCorruptError(msg) from error


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"


def _checked_reader(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        _uri(path, "ro"), uri=True, timeout=READER_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    _set_limits(connection)
    try:
        for pragma in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
            connection.execute(f"PRAGMA {pragma}")
        _check_application(connection, path)
        check_tables(connection, path)
    except sqlite3.OperationalError:
        connection.close()
        raise
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _translate(path, error) from error
    except (IndexerError, UnicodeDecodeError):
        connection.close()
        raise
    return connection


def check_tables(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database of ours that has other tables than an index.

    Raises:
        IndexCorruptError: it has other tables, or anything beside them.
    """
    if stranger := next(strangers(connection), None):
        hint = "" if stranger.startswith("no ") else ": if you made it, DROP it and keep it in a database of its own"
        msg = f"{path} has not the tables of an index ({stranger}{hint}); {mend(path.parent)}"
        raise IndexCorruptError(msg)


def _check_application(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that is not ours, or newer than this version; its tables may be damaged.

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
    except UnicodeDecodeError as error:  # a name in a damaged schema
        msg = f"{path} is damaged ({error}); {mend(path.parent)}"
        raise IndexCorruptError(msg) from error


def _translate(path: Path, error: sqlite3.Error) -> IndexerError:
    # Python's own complaint about bytes in a text has no code.
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED or "Could not decode to UTF-8" in str(error):
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
            _commit(connection, path)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _commit(connection: sqlite3.Connection, path: Path) -> None:
    """End a transaction; wait for readers."""
    for tries_left in reversed(range(_COMMIT_TRIES)):
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if not connection.in_transaction:
                raise CommitError(f"{path}: {error}") from error
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            if not tries_left:
                msg = (
                    f"{path}: somebody has been reading it in one transaction for longer than a commit waits, "
                    f"{_COMMIT_TRIES * BUSY_TIMEOUT_S:.0f} s; what was committed before stands, run again"
                )
                raise StorageError(msg) from error
        else:
            return
