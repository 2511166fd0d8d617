"""Exact search in a raw vector file against all cosines sorted by numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import indexer.allowed
import indexer.exact
from indexer.allowed import Allowed
from indexer.config import VectorDtype
from indexer.exact import rank, scan
from indexer.storage.vectors import (
    BLOCK_ROWS,
    VectorLayout,
    VectorReader,
    VectorWriter,
    create_vector_file,
    encode_rows,
)

DIM = 8
N = BLOCK_ROWS + 1_000  # more than one block
EVERY = Allowed.all_but(np.empty(0, np.int64), N)


def units(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write(directory: Path, vectors: np.ndarray, dtype: VectorDtype) -> VectorReader:
    layout = VectorLayout(dim=DIM, dtype=dtype, index_uuid="ab" * 16)
    name = create_vector_file(directory, layout)
    writer = VectorWriter(directory, name, layout)
    writer.append(0, encode_rows(vectors, layout))
    writer.close()
    return VectorReader(directory, name, layout, len(vectors))


@pytest.fixture(scope="module", params=VectorDtype)
def vectors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorReader]:
    """A file in which every third vector stands three times."""
    rows = units(N, 0)
    rows[1::3], rows[2::3] = rows[0::3][: len(rows[1::3])], rows[0::3][: len(rows[2::3])]
    with write(tmp_path_factory.mktemp("vectors"), rows, request.param) as reader:
        yield reader


def truth(vectors: VectorReader, query: np.ndarray, slots: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and slots of the k nearest, the lower slot first among equals."""
    scores = (vectors.rows(slots).astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    order = sorted(range(len(slots)), key=lambda i: (-scores[i], slots[i]))[:k]
    return scores[order], slots[order]


@pytest.mark.parametrize("k", [1, 2, 10, 500, N, N + 5])
def test_scan_and_rank_give_the_k_nearest_of_all_slots(vectors: VectorReader, k: int) -> None:
    queries = units(3, 1)
    for query, near in zip(queries, scan(vectors, queries, k, EVERY), strict=True):
        scores, slots = rank(vectors, query, near, k)
        expected_scores, expected_slots = truth(vectors, query, np.arange(N), k)
        np.testing.assert_array_equal(slots, expected_slots)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-12)
        assert len(np.unique(near)) == len(near) >= min(k, N)


@pytest.mark.parametrize("n_slots", [0, 1, 5, 40, 3_000, N - 1])
def test_only_the_slots_asked_for_are_compared(vectors: VectorReader, n_slots: int) -> None:
    chosen = np.sort(np.random.default_rng(2).choice(N, n_slots, replace=False)).astype(np.int64)
    queries = units(2, 3)
    for query, near in zip(queries, scan(vectors, queries, 10, Allowed.only(chosen, N)), strict=True):
        scores, slots = rank(vectors, query, near, 10)
        np.testing.assert_array_equal(slots, truth(vectors, query, chosen, 10)[1])
        assert scores.dtype == np.float64


@pytest.mark.parametrize("n_dead", [0, 1, 5, N // 2])
def test_slots_from_one_in_the_middle_on_are_compared_up_to_the_last_allowed(
    vectors: VectorReader, monkeypatch: pytest.MonkeyPatch, n_dead: int
) -> None:
    monkeypatch.setattr(indexer.allowed, "_KEPT_SLOTS", 0)
    monkeypatch.setattr(indexer.allowed, "_UNPACKED_BYTES", 100)
    dead = np.sort(np.random.default_rng(9).choice(17_000, n_dead, replace=False))
    live = np.delete(np.arange(17_000), dead)
    queries = units(2, 4)
    for allowed in (Allowed.all_but(dead, 17_000), Allowed.only(live, 17_000)):
        for query, near in zip(queries, scan(vectors, queries, 7, allowed, 101), strict=True):
            _, slots = rank(vectors, query, near, 7)
            np.testing.assert_array_equal(slots, truth(vectors, query, live[live >= 101], 7)[1])


def test_of_many_equal_vectors_the_lowest_slots_win_even_across_blocks(tmp_path: Path) -> None:
    rows = units(N, 5)
    query = units(1, 6)
    same = np.arange(13, N, 50)
    rows[same] = query
    with write(tmp_path, rows, VectorDtype.F16) as vectors:
        for k in (1, 10, len(same), len(same) + 3):
            (near,) = scan(vectors, query, k, EVERY)
            scores, slots = rank(vectors, query[0], near, k)
            np.testing.assert_array_equal(slots[: len(same)], same[:k])
            assert len(set(scores[: min(k, len(same))])) == 1


def test_slots_of_one_score_are_merged_a_few_times_however_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = units(1, 6)
    merged = []
    settled = indexer.exact._Best.settled

    def counting(best: indexer.exact._Best) -> np.ndarray:
        merged.append(len(settled(best)))
        return settled(best)

    monkeypatch.setattr(indexer.exact, "_SCAN_BYTES", 4 * DIM * 50)
    monkeypatch.setattr(indexer.exact._Best, "settled", counting)
    with write(tmp_path, np.repeat(query, N, axis=0), VectorDtype.F16) as vectors:
        (near,) = scan(vectors, query, 10, EVERY)
    np.testing.assert_array_equal(np.sort(near), np.arange(N))
    assert len(merged) < 2 * np.log2(N)


def test_a_score_does_not_depend_on_what_is_ranked_beside_it(vectors: VectorReader) -> None:
    query = units(1, 7)[0]
    scores, slots = rank(vectors, query, np.arange(N), N)
    alone = {int(slot): rank(vectors, query, np.array([slot]), 1)[0][0] for slot in slots[:50]}
    assert alone == dict(zip(slots[:50].tolist(), scores[:50].tolist(), strict=True))


def test_scores_stay_within_minus_one_and_one(tmp_path: Path) -> None:
    rows = units(200, 8)
    with write(tmp_path, np.concatenate((rows, -rows)), VectorDtype.F16) as vectors:
        for query in rows:
            scores, _ = rank(vectors, query, np.arange(400), 400)
            assert scores.max() <= 1.0
            assert scores.min() >= -1.0
            assert (np.diff(scores) <= 0).all()
