"""Blocks and lines of a text file, plain or gzip, with positions in the raw file. Stdlib only."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Protocol, cast

from indexer.corpus.parts import MAX_RECORD_BYTES, SIZE_LIMIT_TEXT, BadRecordError, Reject
from indexer.errors import CorpusError

BLOCK_BYTES = 1 << 18

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"
# The UTF-32 little-endian mark begins with the UTF-16 one, so it is looked for first.
_WIDE_BOMS = (
    (b"\xff\xfe\x00\x00", "UTF-32LE"),
    (b"\x00\x00\xfe\xff", "UTF-32BE"),
    (b"\xff\xfe", "UTF-16LE"),
    (b"\xfe\xff", "UTF-16BE"),
)


class _Readable(Protocol):
    """What blocks are read from; `read1` gives what precedes damage before it raises."""

    def read1(self, size: int, /) -> bytes: ...


class Blocks:
    """The bytes of a text file in blocks, without a byte order mark.

    Attributes:
        line: complete lines read so far, kept by the consumer; errors name the line after it.
        start, end: position in the raw file, in bytes, before and after the block that was given last.
    """

    def __init__(self, name: str, raw: BufferedReader, *, gzipped: bool, seekable: bool) -> None:
        self.name = name
        self.line = 0
        self.start = 0
        self.end = 0
        self._raw = raw
        self._gzipped = gzipped
        self._seekable = seekable
        self._file = cast("_Readable", gzip.GzipFile(fileobj=raw, mode="rb") if gzipped else raw)

    def __iter__(self) -> Iterator[bytes]:
        block = self._first()
        while block:
            self.start, self.end = self.end, self._raw.tell() if self._seekable else 0
            yield block
            block = self._read()

    def _first(self) -> bytes:
        """Read the first block, long enough to tell what the file is, and take the byte order mark off."""
        if self._gzipped and self._raw.peek(2)[:2] != _GZIP_MAGIC:
            raise CorpusError(self.name, None, "not a gzip file, although its name ends in .gz")
        block = self._read()
        while 0 < len(block) < 4 and (more := self._read()):
            block += more
        if block.startswith(_GZIP_MAGIC):
            reason = "the data is gzip-compressed; let the file's name end in .gz, or pipe it through gunzip -c"
            raise CorpusError(self.name, 1, reason)
        for mark, encoding in _WIDE_BOMS:
            if block.startswith(mark):
                reason = f"the text is {encoding}, not UTF-8; convert it: iconv -f {encoding[:6]} -t UTF-8"
                raise CorpusError(self.name, 1, reason)
        if block.startswith(_UTF8_BOM):
            return block[len(_UTF8_BOM) :] or self._read()
        return block

    def _read(self) -> bytes:
        """Read one block, b"" at the end; damage becomes an error that says how far the file was good."""
        try:
            return self._file.read1(BLOCK_BYTES)
        except EOFError as error:
            reason = f"the gzip data is truncated after line {self.line}; fetch the file again"
            raise CorpusError(self.name, self.line + 1, reason) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            reason = f"the gzip data is corrupt after line {self.line} ({error}); fetch the file again"
            raise CorpusError(self.name, self.line + 1, reason) from error
        except OSError as error:
            reason = f"cannot be read after line {self.line}: {error.strerror or error}"
            raise CorpusError(self.name, self.line + 1, reason) from error


@contextmanager
def open_blocks(path: Path | None, name: str) -> Iterator[Blocks]:
    """Open a text file, gzip when its name ends in .gz, for reading in blocks.

    Args:
        path: the file, None for standard input, which stays open afterwards.
        name: the file as the user named it.

    Yields:
        The blocks; closed when the context ends.

    Raises:
        CorpusError: the file cannot be opened.
    """
    if path is None:
        yield Blocks(name, cast("BufferedReader", sys.stdin.buffer), gzipped=False, seekable=False)
        return
    try:
        raw = path.open("rb")
    except OSError as error:
        raise CorpusError(name, None, f"cannot be opened: {error.strerror}") from error
    with raw:
        yield Blocks(name, raw, gzipped=path.suffix.lower() == ".gz", seekable=raw.seekable())


def read_lines(blocks: Blocks, reject: Reject) -> Iterator[tuple[int, bytes, float]]:
    r"""Split a file at b"\n" alone: U+2028, NEL and a lone carriage return may stand in a text.

    Args:
        blocks: the file.
        reject: told of lines longer than MAX_RECORD_BYTES, which are passed over.

    Yields:
        The 1-based number of the line, its bytes without the line feed, and the position in the raw file after it,
        which inside a block of compressed data is interpolated.
    """
    number = 0
    held: list[bytes] = []
    n_held = 0
    for block in blocks:
        *lines, tail = block.split(b"\n")
        scale = (blocks.end - blocks.start) / len(block)
        offset = -n_held
        if lines:
            if n_held > MAX_RECORD_BYTES:
                number += 1
                offset += n_held + len(lines.pop(0)) + 1
                _reject_long(number, reject)
            elif held:
                lines[0] = b"".join((*held, lines[0]))
            held.clear()
            n_held = 0
        for line in lines:
            number += 1
            offset += len(line) + 1
            yield number, line, blocks.start + scale * offset
        blocks.line = number
        n_held += len(tail)
        if n_held > MAX_RECORD_BYTES:
            held.clear()
        elif tail:
            held.append(tail)
    if n_held > MAX_RECORD_BYTES:
        _reject_long(number + 1, reject)
    elif held:
        yield number + 1, b"".join(held), blocks.end


def decode(line: bytes) -> str:
    """Return a line as text.

    Raises:
        BadRecordError: the bytes are not UTF-8; the message has the 1-based byte.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadRecordError(bad_utf8(error)) from error


def bad_utf8(error: UnicodeDecodeError) -> str:
    """Return the reason for bytes that are not UTF-8."""
    return f"not valid UTF-8 at byte {error.start + 1} of the line (0x{error.object[error.start]:02x})"


def _reject_long(number: int, reject: Reject) -> None:
    reject(number, f"the line is longer than {SIZE_LIMIT_TEXT}")
