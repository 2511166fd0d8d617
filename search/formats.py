"""How hits are printed: a table for people, jsonl, json and TREC runs for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum

from indexer.errors import UsageError
from search.hits import Hits
from search.queries import Query

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Format(StrEnum):
    """TABLE is for people; JSON one list; JSONL one hit a line; TREC `qid Q0 docid rank score tag`."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    TREC = "trec"


def render(
    form: Format, queries: Sequence[Query], answers: Sequence[Hits], *, width: int, hidden: Collection[str] = ()
) -> Iterator[str]:
    """Yield the lines of some answers.

    Args:
        form: how.
        queries: what was asked; a query with an id has it in its hits as `query_id`.
        answers: the hits of each.
        width: columns of the terminal, for the table.
        hidden: metadata fields that the table leaves out, such as the parts of a text joined from several fields.
    """
    match form:
        case Format.TABLE:
            for query, hits in zip(queries, answers, strict=True):
                yield from _table(query, hits, width, hidden)
        case Format.JSON:
            yield json.dumps(list(_rows(queries, answers)), ensure_ascii=False)
        case Format.JSONL:
            yield from (json.dumps(row, ensure_ascii=False) for row in _rows(queries, answers))
        case Format.TREC:
            yield from list(_run(queries, answers))  # all ids are looked at before the first line is printed


def _rows(queries: Sequence[Query], answers: Sequence[Hits]) -> Iterator[dict[str, object]]:
    for query, hits in zip(queries, answers, strict=True):
        named: dict[str, object] = {} if query.id is None else {"query_id": query.id}
        for hit in hits:
            yield {**named, **hit.to_json()}


def _run(queries: Sequence[Query], answers: Sequence[Hits]) -> Iterator[str]:
    for query, hits in zip(queries, answers, strict=True):
        for hit in hits:
            yield f"{_column(query.id or '1')} Q0 {_column(hit.id)} {hit.rank} {hit.score:.6f} clsindex"


def _column(id_: str) -> str:
    if len(id_.split()) != 1 or id_.strip() != id_:
        msg = f"the id {id_[:80]!r} holds white space, which TREC runs cannot carry; use --format jsonl"
        raise UsageError(msg)
    return id_


def _table(query: Query, hits: Hits, width: int, hidden: Collection[str]) -> Iterator[str]:
    if query.id is not None:
        yield _line(f"{query.id}: {query.text}")
    if not hits:
        yield "no hits"
    id_width = max((len(hit.id) for hit in hits), default=0)
    id_width = min(id_width, max(12, width // 4))
    indent = " " * 13
    for hit in hits:
        name = f"{_cut(_line(hit.id), id_width):<{id_width}}"
        yield f"{hit.rank:>3}  {hit.score:6.3f}  {name}  {_cut(_line(hit.text or ''), width - id_width - 15)}"
        facts = (_line(f"{name}={_value(value)}") for name, value in hit.metadata.items() if name not in hidden)
        if line := "  ".join(facts):
            yield _cut(f"{indent}{line}", width)
    if query.id is not None:
        yield ""


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line(text: str) -> str:
    """Return a text on one line, without control characters, which could command the terminal."""
    return _CONTROL.sub(" ", " ".join(text.split()))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 1)] + "…"
