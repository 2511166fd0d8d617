"""JSON lines: one object a line. Stdlib only."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from indexer.corpus.jsontext import parse_text
from indexer.corpus.lines import decode, open_blocks, read_lines
from indexer.corpus.parts import BadRecordError, RawRecord, Reject


def read_jsonl(path: Path | None, name: str, reject: Reject) -> Generator[RawRecord]:
    """Read one JSON value a line; blank lines are passed over.

    Args:
        path: the file, None for standard input.
        name: the file as the user named it.
        reject: told of lines that are not UTF-8 or not strict JSON.

    Yields:
        Line, value, and position in bytes.

    Raises:
        CorpusError: the file cannot be read to its end.
    """
    with open_blocks(path, name) as blocks:
        for number, line, position in read_lines(blocks, reject):
            if not line or line.isspace():
                continue
            try:
                record = parse_text(decode(line))
            except BadRecordError as error:
                reject(number, str(error))
                continue
            yield number, record, position
