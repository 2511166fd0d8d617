"""A JSON file that is one list of objects, or one object, read without holding the list. Stdlib only."""

from __future__ import annotations

import codecs
from collections.abc import Generator
from json import JSONDecodeError, JSONDecoder
from pathlib import Path

from indexer.corpus.jsontext import LENIENT, STRICT, not_json, parse_value
from indexer.corpus.lines import Blocks, open_blocks
from indexer.corpus.parts import MAX_RECORD_BYTES, SIZE_LIMIT_TEXT, BadRecordError, RawRecord, Reject
from indexer.errors import CorpusError

_SPACE = " \t\r\n"
# Errors of a value that was cut lie this close to the end: no literal or escape is longer ("-Infinity" has 9).
_CUT_CHARACTERS = 16


class _Window:
    """A stretch of the file's text that moves on as values are taken.

    Attributes:
        text: the stretch.
        at: position in `text` up to which everything is taken.
        line: 1-based line of `at`.
        ended: `text` goes to the end of the file.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.text = ""
        self.at = 0
        self.line = 1
        self._blocks = blocks
        self._iterator = iter(blocks)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._n_decoded = 0
        self._n_left_of_line = 0
        self._position = 0.0
        self.ended = False

    @property
    def position(self) -> float:
        """Position in the raw file, in bytes, interpolated inside the stretch."""
        share = self.at / len(self.text) if self.text else 1.0
        return self._position + (self._blocks.end - self._position) * share

    def next_character(self) -> str:
        """Pass over white space and return the character there, "" at the end of the file."""
        while True:
            rest = self.at
            while rest < len(self.text) and self.text[rest] in _SPACE:
                rest += 1
            self.take(rest)
            if rest < len(self.text):
                return self.text[rest]
            if not self.grow():
                return ""

    def take(self, end: int) -> None:
        """Move on to a position in the text."""
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def grow(self) -> bool:
        """Drop what is taken and at least double the rest, so that parsing it anew stays linear; False at the end."""
        if self.ended:
            return False
        self._position = self.position
        last_line = self.text.rfind("\n", 0, self.at) + 1
        self._n_left_of_line = self.at - last_line + (0 if last_line else self._n_left_of_line)
        rest = self.text[self.at :]
        if len(rest) > MAX_RECORD_BYTES:
            raise self.error(self.at, f"the value is longer than {SIZE_LIMIT_TEXT}")
        self._blocks.line = self.line - 1 + rest.count("\n")
        pieces = [rest]
        n_new = 0
        while not self.ended and n_new <= len(rest):
            pieces.append(self._decoded(next(self._iterator, b"")))
            n_new += len(pieces[-1])
        self.text, self.at = "".join(pieces), 0
        return n_new > 0

    def error(self, at: int, reason: str) -> CorpusError:
        """Return the error for a position in the text."""
        return CorpusError(self._blocks.name, self.line + self.text.count("\n", self.at, at), reason)

    def not_json(self, error: JSONDecodeError) -> CorpusError:
        """Return the error for malformed JSON, with its column."""
        last_line = self.text.rfind("\n", 0, error.pos) + 1
        column = error.pos - last_line + 1 + (0 if last_line else self._n_left_of_line)
        return self.error(error.pos, not_json(column, error.msg))

    def is_cut(self, error: JSONDecodeError) -> bool:
        """Tell whether the text may be malformed only because it ends too early."""
        margin = 0 if self.ended else _CUT_CHARACTERS
        return error.pos >= len(self.text.rstrip(_SPACE)) - margin or error.msg.startswith("Unterminated string")

    def _decoded(self, block: bytes) -> str:
        self.ended = not block
        try:
            text = self._decoder.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            line = self._blocks.line + 1 + error.object.count(b"\n", 0, error.start)
            pending = len(error.object) - len(block)
            reason = f"not valid UTF-8 at byte {self._n_decoded - pending + error.start + 1} of the file"
            raise CorpusError(self._blocks.name, line, reason) from error
        self._n_decoded += len(block)
        self._blocks.line += text.count("\n")
        return text


def read_json(path: Path, name: str, reject: Reject) -> Generator[RawRecord]:
    """Read the values of a list, or one object.

    Args:
        path: the file.
        name: the file as the user named it.
        reject: told of values in the list that are JSON but cannot be used; after malformed JSON reading ends.

    Yields:
        Line where the value starts, the value, and position in bytes.

    Raises:
        CorpusError: the file is not JSON, is truncated, has more behind its value or cannot be read to its end.
    """
    with open_blocks(path, name) as blocks:
        window = _Window(blocks)
        match window.next_character():
            case "[":
                yield from _list(window, reject)
                more = "more follows after the closing bracket"
            case "{":
                yield from _value(window, reject)
                more = "more follows after the object; a file with one object a line is named .jsonl"
            case "":
                raise window.error(0, "the file is empty; expected a list of objects, or one object")
            case _:
                raise window.error(window.at, "expected a list of objects, or one object")
        if window.next_character():
            raise window.error(window.at, more)


def _list(window: _Window, reject: Reject) -> Generator[RawRecord]:
    """Yield the values of the list that begins here."""
    window.take(window.at + 1)
    if window.next_character() == "]":
        window.take(window.at + 1)
        return
    while True:
        if not window.next_character():
            raise window.error(window.at, "the file ends inside its list; it is truncated")
        yield from _value(window, reject)
        follows = window.next_character()
        if follows not in {",", "]"}:
            reason = "the list goes on without a comma" if follows else "the file ends inside its list; it is truncated"
            raise window.error(window.at, reason)
        window.take(window.at + 1)
        if follows == "]":
            return


def _value(window: _Window, reject: Reject) -> Generator[RawRecord]:
    """Yield the value that begins here, or reject it and move on behind it."""
    line = window.line
    try:
        value, end = _parse(window, STRICT)
    except BadRecordError as error:
        reject(line, str(error))
        try:
            _, end = _parse(window, LENIENT)
        except BadRecordError as deep:
            raise window.error(window.at, str(deep)) from deep
        window.take(end)
        return
    window.take(end)
    yield line, value, window.position


def _parse(window: _Window, decoder: JSONDecoder) -> tuple[object, int]:
    """Return the value that begins here and the position behind it, with as much more text as it takes."""
    while True:
        try:
            value, end = parse_value(decoder, window.text, window.at)
        except JSONDecodeError as error:
            if not window.is_cut(error):
                raise window.not_json(error) from error
            if window.ended:
                raise window.error(window.at, "the file ends inside the value that starts here") from error
            window.grow()
            continue
        # A number goes on where the text was cut.
        if end < len(window.text) or isinstance(value, dict | list | str) or not window.grow():
            return value, end
