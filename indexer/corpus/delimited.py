"""Delimited text: CSV and TSV with the quoting of RFC 4180, every value a string. Stdlib only."""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator
from pathlib import Path

from indexer.corpus.lines import Blocks, bad_utf8, open_blocks, read_lines
from indexer.corpus.parts import RawRecord, Reject, stopper
from indexer.corpus.records import short
from indexer.errors import CorpusError

MAX_FIELD_CHARACTERS = 16 << 20


class _Feed:
    """Gives the csv module its lines and remembers what it cannot know.

    Attributes:
        number: line given last.
        position: position in the raw file after it.
        problem: why a line since the last `take_problem` is not text.
        ended: the file was read to its end.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.number = 0
        self.position = 0.0
        self.problem: str | None = None
        self.ended = False
        # A line that is left out could stand inside quotes, so that its record would change: reading ends there.
        self._lines = read_lines(blocks, stopper(blocks.name))

    def __iter__(self) -> Iterator[str]:
        for number, line, position in self._lines:
            self.number, self.position = number, position
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                # The line still goes through, so that its quotes are counted and the next record is found.
                self.problem = bad_utf8(error)
                text = line.decode(errors="replace")
            yield text + "\n"
        self.ended = True

    def take_problem(self) -> str | None:
        problem, self.problem = self.problem, None
        return problem


def read_delimited(
    path: Path, name: str, delimiter: str, columns: tuple[str, ...] | None, reject: Reject
) -> Generator[RawRecord]:
    """Read records of strings; blank lines are passed over, backslashes and line ends inside quotes stay.

    Args:
        path: the file.
        name: the file as the user named it.
        delimiter: "," or a tab.
        columns: field names of a file without a header line, None when the first line has them.
        reject: told of records with malformed quoting, bytes that are not UTF-8 or a wrong number of fields.

    Yields:
        Line where the record starts, the record, and position in bytes.

    Raises:
        CorpusError: the header cannot be used, a quote is never closed, or the file cannot be read to its end.
    """
    # A limit of the whole process, 128 KiB by default; it is only ever raised.
    if csv.field_size_limit() < MAX_FIELD_CHARACTERS:
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with open_blocks(path, name) as blocks:
        feed = _Feed(blocks)
        rows = csv.reader(iter(feed), delimiter=delimiter, strict=True)
        header = columns or _header(feed, rows, name)
        for line, row in _rows(feed, rows, name, reject):
            if len(row) != len(header):
                whence = "--columns names" if columns else "the header has"
                reject(line, f"{_count(len(row))} where {whence} {len(header)}")
            else:
                yield line, dict(zip(header, row, strict=True)), feed.position


def _rows(feed: _Feed, rows: Iterator[list[str]], name: str, reject: Reject) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that can be read, each with the line where it starts."""
    while True:
        line = feed.number + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            if feed.ended:
                reason = "a quote that is opened in the record starting here is never closed"
                raise CorpusError(name, line, reason) from error
            if "field limit" in str(error):
                reason = f"a field is longer than {MAX_FIELD_CHARACTERS >> 20} MiB, or its quote is never closed"
                raise CorpusError(name, line, reason) from error
            feed.take_problem()
            reject(line, f"malformed quoting or line end ({str(error).partition(' - ')[0]})")
            continue
        if row is None:
            return
        if problem := feed.take_problem():
            reject(line, problem)
        elif row:
            yield line, row


def _header(feed: _Feed, rows: Iterator[list[str]], name: str) -> tuple[str, ...]:
    """Return the field names of the first row; a value under a repeated name would be lost."""
    line, row = next(_rows(feed, rows, name, stopper(name)), (1, []))
    for number, column in enumerate(row, 1):
        if not column:
            reason = f"column {number} has no name in the header; give names with --columns if there is no header"
            raise CorpusError(name, line, reason)
        if column in row[: number - 1]:
            raise CorpusError(name, line, f"the header names {short(column)} twice; give names with --columns")
    return tuple(row)


def _count(n_fields: int) -> str:
    return f"{n_fields} field" if n_fields == 1 else f"{n_fields} fields"
