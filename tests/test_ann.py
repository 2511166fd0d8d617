"""Approximate search: k hits at every selectivity, with the recall that was measured, alone and in a batch."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
from anns import (
    DIM,
    KINDS,
    N,
    clustered,
    exact,
    found_share,
    giving_copies_first,
    nearest_through_generation,
    snapshot_of,
)

from indexer.allowed import Allowed
from indexer.ann.generation import Generation
from indexer.ann.index import Effort
from indexer.ann.kinds import AnnOptions
from indexer.progress import tell_nobody
from indexer.upkeep import rebuild_generation
from search.nearest import EXACT_SLOTS, EXACT_SLOTS_BESIDE_IVF, nearest
from search.view import View


@pytest.mark.parametrize("kind", KINDS)
def test_the_recall_that_is_recorded_is_what_fresh_queries_find(
    ann_index: Path, vectors_6000: np.ndarray, kind: str
) -> None:
    row, warnings = rebuild_generation(ann_index, AnnOptions(kind=kind, target_recall=0.9), tell_nobody)
    assert warnings == []
    search = row.details["search"]
    assert isinstance(search, dict)
    assert float(str(search["recall@10"])) >= 0.9
    queries = clustered(300, DIM, 2)
    view = View.open(ann_index, snapshot_of(ann_index))
    found = nearest_through_generation(view, queries, 10, view.live())
    share = found_share(found.slots, exact(vectors_6000, queries, 10))
    assert share >= 0.88
    assert not found.exact
    assert row.kind in found.plan
    for query, scores, slots in zip(queries, found.scores, found.slots, strict=True):
        truth = vectors_6000[slots].astype(np.float16).astype(np.float64) @ query.astype(np.float64)
        np.testing.assert_allclose(scores, truth, atol=1e-9)
        assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("kind", [*KINDS, "IVF16,PQ32x4fs", "IVF16,PQ32x4fs_64"])
@pytest.mark.parametrize("share", [0.0005, 0.1, 0.3, 1.0])
def test_k_hits_come_back_at_every_selectivity(
    ann_index: Path, vectors_6000: np.ndarray, kind: str, share: float
) -> None:
    rebuild_generation(ann_index, AnnOptions(kind=kind, target_recall=0.9), tell_nobody)
    keep = np.random.default_rng(3).random(N) < share
    allowed = Allowed.only(np.flatnonzero(keep), N)
    view = View.open(ann_index, snapshot_of(ann_index))
    queries = clustered(100, DIM, 4)
    found = nearest_through_generation(view, queries, 10, allowed)
    assert "index over" in found.plan or allowed.n <= 5
    n = min(10, int(keep.sum()))
    assert all(len(slots) == n for slots in found.slots)
    assert all(keep[slots].all() for slots in found.slots)
    assert found_share(found.slots, exact(vectors_6000, queries, n, keep)) >= 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_leaves_little_around_the_query_makes_it_look_farther(
    ann_index: Path, vectors_6000: np.ndarray, kind: str
) -> None:
    rebuild_generation(ann_index, AnnOptions(kind=kind, target_recall=0.9), tell_nobody)
    view = View.open(ann_index, snapshot_of(ann_index))
    query = clustered(1, DIM, 5)
    anywhere = np.sort(np.random.default_rng(3).choice(N, 1_000, replace=False))
    far = np.sort(np.argsort(vectors_6000 @ query[0])[:1_000])
    plans = [nearest_through_generation(view, query, 10, Allowed.only(kept, N)).plan for kept in (anywhere, far)]
    probes = [int(plan.split(" probes")[0].split()[-1].replace(",", "")) for plan in plans]
    assert probes[0] < probes[1]


@pytest.mark.parametrize(
    ("kind", "at_most"), [("flat", 20_000), ("ivf", 3_000), ("hnsw", 10_000), ("IVF32,SQ8", 10_000)]
)
def test_few_candidates_are_compared_one_by_one(
    ann_index: Path, kind: str, at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild_generation(ann_index, AnnOptions(kind=kind, target_recall=0.5), tell_nobody)
    view = View.open(ann_index, snapshot_of(ann_index))
    # A hundredth of everything, so that a small index shows it.
    monkeypatch.setattr("search.nearest.EXACT_SLOTS", EXACT_SLOTS // 100)
    monkeypatch.setattr("search.nearest.EXACT_SLOTS_BESIDE_IVF", EXACT_SLOTS_BESIDE_IVF // 100)
    for n, is_one_by_one in ((at_most // 100, True), (at_most // 100 + 1, False)):
        found = nearest(view, clustered(1, DIM, 5), 3, Allowed.only(np.arange(n), N), exact=False)
        assert found.plan.startswith("exact: compared with") == is_one_by_one, found.plan


def test_as_many_hits_as_there_are_vectors_can_be_asked_for(ann_index: Path) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="hnsw"), tell_nobody)
    view = View.open(ann_index, snapshot_of(ann_index))
    found = nearest_through_generation(view, clustered(2, DIM, 5), N, view.live())
    assert [sorted(slots.tolist()) for slots in found.slots] == [list(range(N))] * 2


@pytest.mark.usefixtures("fast_codes")
def test_a_batch_is_searched_in_parts(ann_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    generation = Generation(ann_index, row, DIM)
    queries = clustered(11, DIM, 5)
    scores, slots = generation.index.search(queries, 10, effort=generation.effort)
    monkeypatch.setattr("indexer.ann.index._QUERIES_AT_ONCE", 4)
    in_parts = generation.index.search(queries, 10, effort=generation.effort)
    np.testing.assert_array_equal(in_parts[1], slots)
    np.testing.assert_allclose(in_parts[0], scores, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_leaves_the_next_one_nothing(ann_index: Path, kind: str) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind=kind, target_recall=0.9), tell_nobody)
    queries = clustered(4, DIM, 5)
    half = Allowed.only(np.arange(0, N, 2), N).bits
    probes = Generation(ann_index, row, DIM).effort.probes
    # k = 300 is a longer beam than the tuned one of HNSW
    asked = [
        (k, Effort(probes=n, depth=k), allowed)
        for k in (10, 300)
        for n in (1, probes, probes * 3)
        for allowed in (None, half)
    ]
    alone = [Generation(ann_index, row, DIM).index.search(queries, k, effort=e, allowed=bits) for k, e, bits in asked]
    used = Generation(ann_index, row, DIM).index
    for i in np.random.default_rng(1).integers(0, len(asked), 40):
        k, effort, bits = asked[i]
        scores, slots = used.search(queries, k, effort=effort, allowed=bits)
        np.testing.assert_array_equal(slots, alone[i][1])
        np.testing.assert_array_equal(scores, alone[i][0])


def test_one_query_leaves_faiss_the_threads_that_it_had(ann_index: Path) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        generation = Generation(ann_index, row, DIM)
        generation.index.search(clustered(1, DIM, 5), 10)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("n_newer", [0, 300])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_copies_of_one_vector_do_not_stand_before_nearer_ones(
    k: int, n_newer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = range(500, 1_500)
    stored, queries, asked = giving_copies_first(tmp_path, copies, n_newer, monkeypatch)
    view = View.open(tmp_path, snapshot_of(tmp_path))
    found = nearest_through_generation(view, queries, k, view.live())
    assert found_share(found.slots, exact(stored, queries, k)) == 1.0
    assert all(len(slots) == k for slots in found.slots)
    assert "copies of a text" in found.plan
    assert asked[0][0] == 5
    assert {n for n, _ in asked[1:]} == {1}
    own = nearest_through_generation(view, stored[500][None], k, view.live())
    assert "copies" not in own.plan, "nothing is nearer than a copy of the query"
    monkeypatch.setattr("search.nearest._DEEPEST", 900)
    most = max(depth for _, depth in asked)
    few = nearest_through_generation(view, queries[:1], k, view.live())
    assert np.isin(few.slots[0][few.slots[0] < 2_000], copies).all(), "at last as good as the index is"
    assert max(depth for _, depth in asked) == most
