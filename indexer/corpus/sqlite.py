"""A SELECT statement on an SQLite file, streamed, the file opened read-only. Stdlib sqlite3 alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import quote

from indexer.corpus.parts import Part, RawRecord, Reject
from indexer.corpus.records import short
from indexer.errors import CorpusError

PREFIX = "sqlite:"

_SEPARATOR = "?sql="


class _Text(bytes):
    """Text as SQLite has it; kept apart from blobs and decoded here, so that bad UTF-8 costs one record only."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What `sqlite:FILE?sql=SELECT…` says; the statement is taken as it stands, nothing is percent-decoded."""

    path: Path
    sql: str

    @property
    def name(self) -> str:
        """The source without its statement, as places and errors call it."""
        return f"{PREFIX}{self.path}"


def parse_query(source: str) -> Query:
    """Take a source apart.

    Args:
        source: `sqlite:FILE?sql=SELECT…`.

    Raises:
        CorpusError: a part is missing.
    """
    file, separator, sql = source.removeprefix(PREFIX).partition(_SEPARATOR)
    if not file or not separator or not sql.strip():
        raise CorpusError(f"{PREFIX}{file}", None, "give a file and a statement: sqlite:FILE?sql=SELECT …")
    return Query(path=Path(file).expanduser(), sql=sql)


def check_query(query: Query) -> None:
    """Compile the statement without running it.

    Args:
        query: file and statement.

    Raises:
        CorpusError: the file is missing or no database, or the statement cannot be run on it.
    """
    with closing(_connect(query)) as connection:
        _execute(connection, query, f"EXPLAIN {query.sql}").close()


def query_part(query: Query) -> Part:
    """Return the rows of a query as a part of a corpus.

    Args:
        query: file and statement.
    """

    def read(reject: Reject) -> Generator[RawRecord]:
        return _read(query, reject)

    return Part(name=query.name, read=read)


def _read(query: Query, reject: Reject) -> Generator[RawRecord]:
    """Yield the rows; the values are those of SQLite: null, integer, real, text, and blobs as bytes."""
    with closing(_connect(query)) as connection, closing(_execute(connection, query, query.sql)) as cursor:
        if cursor.description is None:
            raise CorpusError(query.name, None, "the statement gives no rows; it must be a SELECT")
        columns = [column[0] for column in cursor.description]
        for index, column in enumerate(columns):
            if column in columns[:index]:
                reason = f"the statement gives two columns named {short(column)}; rename one with AS"
                raise CorpusError(query.name, None, reason)
        number = 0
        while (row := _next_row(cursor, query, number)) is not None:
            number += 1
            record = dict(zip(columns, row, strict=True))
            field = None
            try:
                for field, value in record.items():
                    if type(value) is _Text:
                        record[field] = value.decode()
            except UnicodeDecodeError as error:
                reject(number, f"field {short(str(field))} is not valid UTF-8, at byte {error.start + 1}")
                continue
            yield number, record, number


def _next_row(cursor: sqlite3.Cursor, query: Query, n_before: int) -> tuple[object, ...] | None:
    try:
        return cast("tuple[object, ...] | None", cursor.fetchone())
    except sqlite3.Error as error:
        raise CorpusError(
            query.name, n_before + 1, f"the statement fails at this record or the next: {error}"
        ) from error


def _connect(query: Query) -> sqlite3.Connection:
    """Open the file so that nothing can be written, here or in another file."""
    if not query.path.is_file():
        raise CorpusError(query.name, None, "no such file")
    uri = f"file:{quote(str(query.path.absolute()))}?mode=ro"
    try:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise CorpusError(query.name, None, f"cannot be opened: {error}") from error
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.text_factory = _Text
    return connection


def _execute(connection: sqlite3.Connection, query: Query, sql: str) -> sqlite3.Cursor:
    try:
        return connection.execute(sql)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise CorpusError(query.name, None, f"the statement cannot be run: {error}") from error
