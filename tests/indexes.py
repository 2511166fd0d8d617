"""Small indexes for tests: built by an encoder without a model, searched beside a brute-force oracle."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from fakes import FakeEncoder, fake_vector

from indexer.build import BuildOptions, run_build
from indexer.config import EncoderOptions
from indexer.progress import BuildReport
from search import Hits, Searcher

Record = dict[str, Any]


def records(n: int, first: int = 0) -> list[Record]:
    """Return n records with texts of their own, and some metadata."""
    return [
        {"id": f"d{i}", "text": f"text number {i}", "n": i, "even": i % 2 == 0, "tags": ["all", f"t{i % 3}"]}
        for i in range(first, first + n)
    ]


def build(
    out: Path,
    *sources: object,
    encoder: FakeEncoder | None = None,
    encoder_options: EncoderOptions | None = None,
    on_progress: Callable | None = None,
    **options: Any,
) -> BuildReport:
    """Build, resume or update an index of some sources with an encoder without a model."""
    load = (encoder or FakeEncoder()).load
    chosen = BuildOptions(encoder=encoder_options or EncoderOptions(), **options)
    return run_build(list(sources), out, chosen, load_encoder=load, on_progress=on_progress)


@contextmanager
def searching(out: Path) -> Iterator[Searcher]:
    """Open a searcher that embeds queries as `build` embeds texts."""
    with patch("search.searcher.open_query_encoder", lambda *_, **__: FakeEncoder()), Searcher.open(out) as searcher:
        yield searcher


def sql(out: Path, statement: str, *parameters: object) -> list[tuple]:
    """Run a statement in the database of an index, behind its back."""
    with closing(sqlite3.connect(out / "index.db")) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


def only(out: Path, pattern: str) -> Path:
    """Return the one file of an index that a pattern names."""
    (path,) = out.glob(pattern)
    return path


def flip_byte(path: Path, offset: int) -> None:
    """Damage one byte of a file; an offset below 0 counts from its end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


class Oracle:
    """What an index should hold and answer: a dict, and cosines of all its vectors, computed one way only."""

    def __init__(self, dtype: type[np.floating] = np.float16) -> None:
        self.dtype = dtype
        self.held: dict[str, tuple[int, Record]] = {}
        self._age = 0

    def put(self, source: Iterable[Mapping[str, Any]]) -> Oracle:
        """Add or update documents; a new text makes a document the youngest."""
        for record in source:
            age, old = self.held.get(record["id"], (0, None))
            if old is None or old["text"] != record["text"]:
                self._age += 1
                age = self._age
            self.held[record["id"]] = (age, dict(record))
        return self

    def delete(self, ids: Iterable[str]) -> None:
        """Take documents out."""
        for id_ in ids:
            self.held.pop(id_, None)

    def nearest(self, query: np.ndarray, k: int, keep: Callable[[Record], bool]) -> list[tuple[str, float]]:
        """Return ids and cosines of the k nearest, the older of two equal ones first."""
        candidates = [(age, record) for age, record in self.held.values() if keep(record)]
        vectors = np.array([fake_vector(record["text"]) for _, record in candidates]).reshape(-1, len(query))
        scores = (vectors.astype(self.dtype).astype(np.float64) * query.astype(np.float64)).sum(axis=1)
        order = sorted(range(len(candidates)), key=lambda i: (-scores[i], candidates[i][0]))[:k]
        return [(candidates[i][1]["id"], min(1.0, scores[i])) for i in order]

    def check(self, hits: Hits, query: np.ndarray, k: int, keep: Callable[[Record], bool] | None = None) -> None:
        """Compare hits with the truth: which, in which order, and all that they carry."""
        expected = self.nearest(query, k, keep or (lambda _: True))
        assert [hit.id for hit in hits] == [id_ for id_, _ in expected]
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-9)
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        for hit in hits:
            record = self.held[hit.id][1]
            assert hit.text == record["text"]
            assert hit.metadata == {name: value for name, value in record.items() if name not in {"id", "text"}}

    def check_searcher(
        self,
        searcher: Searcher,
        queries: Sequence[str],
        k: int,
        *,
        where: Mapping[str, object] | None = None,
        keep: Callable[[Record], bool] | None = None,
        exact: bool = False,
    ) -> None:
        """Search in one batch and compare every answer with the truth."""
        for query, hits in zip(queries, searcher.search_batch(queries, k, where=where, exact=exact), strict=True):
            self.check(hits, fake_vector(query), k, keep)
