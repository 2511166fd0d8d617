"""Queries and judgements from files: BEIR's queries.jsonl, and qrels as BEIR or TREC write them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from indexer.errors import CorpusError

_BEIR_COLUMNS = 3
_TREC_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked; `id` is None for a query from the command line."""

    id: str | None
    text: str


def read_queries(path: str) -> list[Query]:
    """Return the queries of a JSONL file (`-` is stdin) with `_id` or `id`, and `text`.

    Raises:
        CorpusError: a line that is no query, with file and line.
    """
    queries = []
    seen: dict[str, int] = {}
    with _lines(path) as lines:
        for number, line in lines:
            query = _query(path, number, line)
            if query.id in seen:
                raise CorpusError(path, number, f"query id {query.id!r} stands twice, first on line {seen[query.id]}")
            seen[str(query.id)] = number
            queries.append(query)
    return queries


def _query(path: str, number: int, line: str) -> Query:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(path, number, f"not valid JSON ({getattr(error, 'msg', error)})") from error
    if not isinstance(record, dict):
        raise CorpusError(path, number, "not a JSON object")
    id_, text = record.get("_id", record.get("id")), record.get("text")
    if isinstance(id_, bool) or not isinstance(id_, (str, int)) or id_ == "":
        raise CorpusError(path, number, "a query needs an _id or id that is a string or an integer")
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(path, number, "a query needs a text that is not empty")
    return Query(str(id_), text)


def read_qrels(path: str) -> dict[str, dict[str, int]]:
    """Return judgements, query id -> document id -> relevance (0 = not relevant), of a qrels file.

    The file is tab or space separated: BEIR's `query-id corpus-id score`, with or without that header, or TREC's
    `query-id 0 document-id relevance`.

    Raises:
        CorpusError: a line that is no judgement, with file and line.
    """
    judged: dict[str, dict[str, int]] = {}
    with _lines(path) as lines:
        for number, line in lines:
            parts = line.split("\t") if "\t" in line else line.split()
            if number == 1 and parts[-1].strip().lower() in {"score", "relevance", "rel"}:
                continue
            if len(parts) not in (_BEIR_COLUMNS, _TREC_COLUMNS):
                raise CorpusError(path, number, f"{len(parts)} columns; a judgement has 3 (BEIR) or 4 (TREC)")
            try:
                relevance = int(parts[-1])
            except ValueError as error:
                raise CorpusError(path, number, f"the relevance {parts[-1].strip()[:20]!r} is no integer") from error
            judged.setdefault(parts[0], {})[parts[-2]] = relevance
    return judged


@contextmanager
def _lines(path: str) -> Iterator[Iterator[tuple[int, str]]]:
    """Give the lines of a UTF-8 file that are not blank, numbered from 1."""
    try:
        opened = nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise CorpusError(path, None, f"cannot be read ({error.strerror})") from error
    with opened as file:
        yield _decoded(path, file)


def _decoded(path: str, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(file, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise CorpusError(path, number, f"not UTF-8 (byte {error.start + 1} of the line)") from error
        if line.strip():
            yield number, line
