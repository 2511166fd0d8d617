"""What the tests of approximate generations share: vectors in clusters, an index of them, and brute force."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.allowed import Allowed
from indexer.ann.index import AnnIndex
from indexer.ann.kinds import AnnOptions
from indexer.config import VectorDtype
from indexer.documents import Document, Place, text_key
from indexer.storage.changes import Changes, NewDocument, PassageRow
from indexer.storage.generations import GenerationRow
from indexer.storage.snapshot import Snapshot, SnapshotReader
from indexer.storage.store import Store
from indexer.upkeep import bring_generation_up_to_date
from search.nearest import Nearest, nearest
from search.view import View

N, DIM = 6_000, 64
KINDS = ["ivf", "hnsw", "IVF32,SQ8", "PCA48,IVF16,SQ8"]


def clustered(n: int, dim: int, seed: int) -> np.ndarray:
    """Return unit vectors in loose clusters, as texts are."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((60, dim))
    vectors = centres[random.integers(0, 60, n)] + 0.9 * random.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def between(queries: np.ndarray, n: int) -> np.ndarray:
    """Return n different unit vectors, some of them nearer to some queries than most vectors are, and most far away."""
    vectors = clustered(n, queries.shape[1], 3) - 2 * np.resize(queries, (n, queries.shape[1]))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def append(store: Store, vectors: np.ndarray) -> None:
    """Commit one document of one passage for each vector."""
    source = store.source("test")
    first = store.n_rows
    documents = [Document(f"d{first + i}", f"text {first + i}", {}, Place("test", i + 1)) for i in range(len(vectors))]
    rows = [PassageRow(None, None, text_key(document.text), 2, 0) for document in documents]
    new = [NewDocument(document, source, [row]) for document, row in zip(documents, rows, strict=True)]
    store.commit(Changes(appended=new), vectors)


def giving_copies_first(
    folder: Path, copies: range, n_newer: int, patched: pytest.MonkeyPatch
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Make an index of 2,000 vectors, some of them copies, and let FAISS give those first, as codes that err may do.

    Returns:
        The vectors, (2,000 + n_newer, d), with those that came after the generation; five queries far from the copies,
        (5, d); a list that gets the number of queries and the depth of each search.
    """
    stored = clustered(2_000, DIM, 1)
    stored[copies] = stored[copies[0]]
    queries = clustered(400, DIM, 2)
    queries = queries[queries @ stored[copies[0]] < 0.2][:5]
    newer = between(queries, n_newer)
    with closing(Store.create(folder, dim=DIM, vector_dtype=VectorDtype.F16, settings={}, canaries=[])) as store:
        append(store, stored)
        bring_generation_up_to_date(store, AnnOptions(kind="IVF32,SQ8"))
        append(store, newer)
    asked: list[tuple[int, int]] = []

    def search(index: AnnIndex, queries: np.ndarray, depth: int, **_: object) -> tuple[np.ndarray, np.ndarray]:
        asked.append((len(queries), depth))
        scores = queries @ stored.T
        scores[:, copies] += 2
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return np.zeros(order.shape, np.float32), order

    patched.setattr(AnnIndex, "search", search)
    return np.concatenate((stored, newer)), queries, asked


def change_row(store: Store, **details: object) -> GenerationRow:
    """Let the one generation have other details."""
    (row,) = store.generations()
    row = replace(row, details={**row.details, **details})  # type: ignore[dict-item]
    store.update_generation(row)
    return row


def snapshot_of(index: Path) -> Snapshot:
    """Return what a reader sees now."""
    with closing(SnapshotReader(index)) as reader:
        return reader.snapshot()


def exact(stored: np.ndarray, queries: np.ndarray, k: int, keep: np.ndarray | None = None) -> list[set[int]]:
    """Return the k nearest slots of each query, of those to keep, by brute force."""
    scores = queries @ stored.astype(np.float16).astype(np.float32).T
    if keep is not None:
        scores[:, ~keep] = -2
    return [set(np.argsort(-row)[:k].tolist()) for row in scores]


def found_share(found: list[np.ndarray], truth: list[set[int]]) -> float:
    """Return the share of the true slots that were found, averaged over the queries."""
    return float(
        np.mean([len(set(near.tolist()) & right) / len(right) for near, right in zip(found, truth, strict=True)])
    )


def nearest_through_generation(view: View, queries: np.ndarray, k: int, allowed: Allowed) -> Nearest:
    """Search as a searcher does, but compare one by one only 5 candidates or fewer."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("search.nearest.EXACT_SLOTS", 5)
        patched.setattr("search.nearest.EXACT_SLOTS_BESIDE_IVF", 5)
        return nearest(view, queries, k, allowed, exact=False)
