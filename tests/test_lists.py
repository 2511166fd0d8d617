"""Inverted lists: which two hold a slot, which of them a query reads, and the fast codes in them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from anns import DIM, N, clustered, exact, found_share, nearest_through_generation, snapshot_of

from indexer.allowed import Allowed
from indexer.ann.generation import Generation
from indexer.ann.index import Effort
from indexer.ann.kinds import AnnOptions, choose_recipe
from indexer.config import VectorDtype
from indexer.errors import IndexCorruptError
from indexer.progress import tell_nobody
from indexer.storage.generations import GenerationRow
from indexer.storage.vectors import VectorReader
from indexer.upkeep import rebuild_generation
from search.view import View


def lists_of(index: Path, row: GenerationRow) -> np.ndarray:
    """Return the lists of each slot, (n, 2) ascending."""
    stored = faiss.read_index(str(index / row.name))
    held = [faiss.rev_swig_ptr(stored.invlists.get_ids(i), stored.invlists.list_size(i)) for i in range(stored.nlist)]
    slots = np.concatenate(held)
    lists = np.repeat(np.arange(stored.nlist), [len(ids) for ids in held])
    return lists[np.argsort(slots, kind="stable")].reshape(-1, 2)


@pytest.mark.parametrize("kind", ["IndexIVFRaBitQ", "IndexIVFPQFastScan"])
def test_each_slot_is_in_the_list_of_its_centre_and_in_one_on_another_side(
    ann_index: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "Fast" in kind:
        monkeypatch.setattr("indexer.ann.kinds._PQ_ROWS", 1_000)
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    assert row.details["index"] == kind
    lists = lists_of(ann_index, row)
    stored = faiss.read_index(str(ann_index / row.name))
    centres = stored.quantizer.reconstruct_n(0, stored.nlist)
    snapshot = snapshot_of(ann_index)
    with closing(VectorReader(ann_index, snapshot.vector_file, snapshot.layout, N)) as reader:
        stored_vectors = reader.rows(np.arange(0, N, 50))
    for (low, high), vector in zip(lists[::50], stored_vectors, strict=True):
        near = np.argsort(-centres @ vector)[:16]
        errors = vector - centres[near]
        along = errors @ errors[0] / np.linalg.norm(errors[0])
        loss = (errors**2).sum(axis=1) + along**2
        assert {low, high} == {near[0], near[1 + np.argmin(loss[1:])]}


@pytest.mark.usefixtures("fast_codes")
def test_a_slot_in_two_lists_is_found_in_both_alone_and_in_a_batch_but_is_one_hit(ann_index: Path) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    generation = Generation(ann_index, row, DIM)
    assert (generation.n_slots, generation.index.n_slots) == (N, N)
    queries = clustered(20, DIM, 4)
    scores, slots = generation.index.search(queries, 2 * N)
    for query, of_all, found in zip(queries, scores, slots, strict=True):
        assert np.array_equal(np.sort(found), np.repeat(np.arange(N), 2))
        alone_scores, alone = generation.index.search(query[None], 2 * N)
        np.testing.assert_array_equal(alone_scores[0], of_all)
        assert np.array_equal(np.sort(alone[0]), np.sort(found))
    view = View.open(ann_index, snapshot_of(ann_index))
    for slots in nearest_through_generation(view, queries, 300, view.live()).slots:
        assert len(set(slots)) == len(slots) == 300


@pytest.mark.usefixtures("fast_codes")
def test_two_copies_of_a_slot_leave_room_for_k_hits(ann_index: Path) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf", target_recall=0.05), tell_nobody)
    assert row.details["copies"] == 2
    view = View.open(ann_index, snapshot_of(ann_index))
    assert Generation(ann_index, row, DIM).effort.depth >= 20
    for k in (10, 40, 300):
        found = nearest_through_generation(view, clustered(20, DIM, 5), k, view.live())
        assert "ivf index over" in found.plan
        assert {len(slots) for slots in found.slots} == {k}


@pytest.mark.parametrize("copies", [1, None, "2", 3])
def test_a_row_that_says_other_copies_than_the_file_holds_is_damage(ann_index: Path, copies: object) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    with pytest.raises(IndexCorruptError, match="holds 12000 vectors of 64 dimensions, not 6000"):
        Generation(ann_index, replace(row, details={**row.details, "copies": copies}), DIM)


@pytest.mark.parametrize("factory", [None, "IVF32,SQ8"])
def test_a_reach_gives_each_query_the_lists_that_it_needs(ann_index: Path, factory: str | None) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind=factory or "ivf"), tell_nobody)
    ann = Generation(ann_index, row, DIM).index
    queries = clustered(200, DIM, 4)
    stored = faiss.read_index(str(ann_index / row.name))
    scores = queries @ stored.quantizer.reconstruct_n(0, stored.nlist).T
    reach = ann.reach(queries, 5)
    assert reach is not None
    within = scores >= scores.max(axis=1, keepdims=True) - reach
    assert within.sum(axis=1).mean() == pytest.approx(5, abs=0.05)
    effort = Effort(probes=5, depth=20, reach=reach)
    _, slots = ann.search(queries, 2 * N, effort=effort)
    members = [
        faiss.rev_swig_ptr(stored.invlists.get_ids(i), stored.invlists.list_size(i)) for i in range(stored.nlist)
    ]
    for of_query, found in zip(within, slots, strict=True):
        expected = np.sort(np.concatenate([members[i] for i in np.flatnonzero(of_query)]))
        assert np.array_equal(np.sort(found[found >= 0]), expected)
    for times, n_lists in ((2.0, 2 * within.sum(axis=1)), (1e6, np.full(len(queries), stored.nlist))):
        for i in range(0, len(queries), 20):
            _, alone = ann.search(queries[i : i + 1], 2 * N, effort=effort, times=times)
            near = np.argsort(-scores[i])[: min(n_lists[i], stored.nlist)]
            expected = np.sort(np.concatenate([members[each] for each in near]))
            assert np.array_equal(np.sort(alone[alone >= 0]), expected)


def test_types_without_plain_centres_have_no_reach(ann_index: Path) -> None:
    queries = clustered(20, DIM, 4)
    for kind in ("hnsw", "SQ8", "PCA48,IVF16,SQ8", "IVF64_HNSW32,SQ8"):
        row, _ = rebuild_generation(ann_index, AnnOptions(kind=kind), tell_nobody)
        generation = Generation(ann_index, row, DIM)
        assert generation.index.reach(queries, 2) is None
        assert generation.effort.reach is None


@pytest.mark.parametrize("reach", [None, -0.1, "0.2", True])
def test_a_reach_that_is_none_leaves_the_same_probes_for_all(ann_index: Path, reach: object) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    search = row.details["search"]
    assert isinstance(search, dict)
    assert Generation(ann_index, row, DIM).effort.reach == search["reach"]
    changed = replace(row, details={**row.details, "search": {**search, "reach": reach}})  # type: ignore[dict-item]
    effort = Generation(ann_index, changed, DIM).effort
    assert (effort.probes, effort.reach) == (search["probes"], None)


@pytest.mark.usefixtures("fast_codes")
def test_fast_codes_give_the_recall_that_is_recorded(ann_index: Path, vectors_6000: np.ndarray) -> None:
    row, warnings = rebuild_generation(ann_index, AnnOptions(kind="ivf", target_recall=0.9), tell_nobody)
    assert warnings == []
    assert row.details["factory"] == "IVF64,PQ16x4fs"
    assert choose_recipe(AnnOptions(kind="ivf"), N, DIM, VectorDtype.F16).n_bytes == pytest.approx(row.n_bytes, rel=0.1)
    search = row.details["search"]
    assert isinstance(search, dict)
    assert float(str(search["recall@10"])) >= 0.9
    view = View.open(ann_index, snapshot_of(ann_index))
    queries = clustered(300, DIM, 2)
    found = nearest_through_generation(view, queries, 10, view.live())
    assert found_share(found.slots, exact(vectors_6000, queries, 10)) >= 0.88
    for share in (0.01, 0.1, 0.5):
        keep = np.random.default_rng(3).random(N) < share
        found = nearest_through_generation(view, queries, 10, Allowed.only(np.flatnonzero(keep), N))
        assert all(len(slots) == 10 and keep[slots].all() for slots in found.slots)
        assert found_share(found.slots, exact(vectors_6000, queries, 10, keep)) >= 0.88
