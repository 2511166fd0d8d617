"""What a query gives back."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from indexer.documents import JsonValue

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Hit:
    """One result.

    Args:
        rank: 1 for the nearest.
        id: of the document.
        score: cosine similarity in [-1, 1], larger is nearer.
        text: of the document, or of the passage when `span` is given; None when texts were left out.
        metadata: the other fields of the record, with the JSON types they came with.
        span: characters [start, end) of the document that `text` is, None for a whole document.
    """

    rank: int
    id: str
    score: float
    text: str | None
    metadata: Mapping[str, JsonValue]
    span: tuple[int, int] | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """Return the hit as the command line and the service print it."""
        row: dict[str, JsonValue] = {"rank": self.rank, "id": self.id, "score": round(self.score, 6)}
        if self.text is not None:
            row["text"] = self.text
        row["metadata"] = dict(self.metadata)
        if self.span is not None:
            row["span"] = list(self.span)
        return row


class Hits(list[Hit]):
    """The hits of one query, nearest first, at most k: a list.

    `plan` says in words how they were found, `exact` whether they are certainly the nearest.
    """

    def __init__(self, hits: Iterable[Hit], *, plan: str, exact: bool) -> None:
        super().__init__(hits)
        self.plan = plan
        self.exact = exact

    def __repr__(self) -> str:
        lines = [f"{len(self)} hits ({self.plan})"]
        lines += [f"{hit.rank:>3}  {hit.score:+.4f}  {hit.id}  {_short(hit.text)}" for hit in self]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return a table for notebooks; every value is escaped."""
        names = list(dict.fromkeys(name for hit in self for name in hit.metadata))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ["rank", "score", "id", "text", *names])
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td>{html.escape(str(cell))}</td>"
                for cell in [
                    hit.rank,
                    f"{hit.score:.4f}",
                    hit.id,
                    _short(hit.text),
                    *(hit.metadata.get(name, "") for name in names),
                ]
            )
            + "</tr>"
            for hit in self
        )
        return f"<table><caption>{html.escape(self.plan)}</caption><tr>{head}</tr>{rows}</table>"


def _short(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"
