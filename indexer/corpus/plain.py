"""Plain text: one document a line, or one document a file. Stdlib only."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from indexer.corpus.lines import decode, open_blocks, read_lines
from indexer.corpus.parts import MAX_RECORD_BYTES, SIZE_LIMIT_TEXT, BadRecordError, RawRecord, Reject


def read_txt(path: Path, name: str, reject: Reject) -> Generator[RawRecord]:
    """Read one document a line, as the text loader of `datasets` does; an empty line is an empty text.

    Args:
        path: the file.
        name: the file as the user named it.
        reject: told of lines that are not UTF-8.

    Yields:
        Line, {"text": line}, and position in bytes.

    Raises:
        CorpusError: the file cannot be read to its end.
    """
    with open_blocks(path, name) as blocks:
        for number, line, position in read_lines(blocks, reject):
            try:
                text = decode(line.removesuffix(b"\r"))
            except BadRecordError as error:
                reject(number, str(error))
                continue
            yield number, {"text": text}, position


def read_md(path: Path, name: str, id_: str, reject: Reject) -> Generator[RawRecord]:
    """Read a file as one document, its text unchanged.

    Args:
        path: the file.
        name: the file as the user named it.
        id_: the id of the document.
        reject: told of a file that is not UTF-8, or too large for one record.

    Yields:
        1, {"id": id_, "text": content}, and the size in bytes; nothing for a rejected file.

    Raises:
        CorpusError: the file cannot be read to its end.
    """
    with open_blocks(path, name) as blocks:
        content = bytearray()
        for block in blocks:
            content += block
            blocks.line += block.count(b"\n")
            if len(content) > MAX_RECORD_BYTES:
                reject(1, f"the file is longer than {SIZE_LIMIT_TEXT}; one document is made of it")
                return
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            line_start = content.rfind(b"\n", 0, error.start) + 1
            line = content.count(b"\n", 0, error.start) + 1
            reject(line, f"not valid UTF-8 at byte {error.start - line_start + 1} of the line")
            return
        yield 1, {"id": id_, "text": text}, blocks.end
