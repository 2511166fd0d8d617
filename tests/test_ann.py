"""Approximate generations: what is chosen, that recall is what exact search says, and that answers stay whole."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from gpus import let_faiss_have_a_gpu

import indexer.upkeep
from indexer import Index
from indexer.ann.engine import Effort
from indexer.ann.generation import Generation
from indexer.ann.gpu import Gpu
from indexer.ann.kinds import FLAT_NUMBERS, AnnOptions, Kind, choose_recipe, parse_bytes
from indexer.ann.tuning import Trial
from indexer.card import Card
from indexer.changes import Changes, NewDocument, PassageRow
from indexer.config import VectorDtype
from indexer.documents import Document, Place, text_key
from indexer.errors import IndexCorruptError, UsageError
from indexer.generations import GenerationRow
from indexer.info import generation_text
from indexer.progress import Progress, tell_nobody
from indexer.snapshot import Snapshot, SnapshotReader
from indexer.store import Store
from indexer.upkeep import TAIL_SLOTS, bring_generation_up_to_date, check_recipe, rebuild_generation, tune_generation
from indexer.vectors import VectorReader
from search.allowed import Allowed
from search.nearest import EXACT_SLOTS, EXACT_SLOTS_BESIDE_IVF, View, nearest

N, DIM = 6_000, 64
KINDS = ["ivf", "hnsw", "IVF32,SQ8", "PCA48,IVF16,SQ8"]


def clustered(n: int, dim: int, seed: int) -> np.ndarray:
    """Return unit vectors in loose clusters, as texts are."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((60, dim))
    vectors = centres[random.integers(0, 60, n)] + 0.9 * random.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def append(store: Store, vectors: np.ndarray) -> None:
    source = store.source("test")
    first = store.n_rows
    documents = [Document(f"d{first + i}", f"text {first + i}", {}, Place("test", i + 1)) for i in range(len(vectors))]
    rows = [PassageRow(None, None, text_key(document.text), 2, 0) for document in documents]
    new = [NewDocument(document, source, [row]) for document, row in zip(documents, rows, strict=True)]
    store.commit(Changes(appended=new), vectors)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(N, DIM, 1)


@pytest.fixture
def index(tmp_path: Path, vectors: np.ndarray) -> Path:
    with closing(Store.create(tmp_path, dim=DIM, vector_dtype=VectorDtype.F16, settings={}, canaries=[])) as store:
        append(store, vectors)
    return tmp_path


def snapshot_of(index: Path) -> Snapshot:
    with closing(SnapshotReader(index)) as reader:
        return reader.snapshot()


def exact(stored: np.ndarray, queries: np.ndarray, k: int, keep: np.ndarray | None = None) -> list[set[int]]:
    scores = queries @ stored.astype(np.float16).astype(np.float32).T
    if keep is not None:
        scores[:, ~keep] = -2
    return [set(np.argsort(-row)[:k].tolist()) for row in scores]


def found_share(found: list[np.ndarray], truth: list[set[int]]) -> float:
    return float(
        np.mean([len(set(near.tolist()) & right) / len(right) for near, right in zip(found, truth, strict=True)])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_recall_that_is_recorded_is_what_fresh_queries_find(index: Path, vectors: np.ndarray, kind: str) -> None:
    row, warnings = rebuild_generation(index, AnnOptions(kind=kind, target_recall=0.9), tell_nobody)
    assert warnings == []
    search = row.details["search"]
    assert isinstance(search, dict)
    assert float(str(search["recall@10"])) >= 0.9
    queries = clustered(300, DIM, 2)
    view = View.open(index, snapshot_of(index))
    found = nearest_through_generation(view, queries, 10, view.live())
    share = found_share(found.slots, exact(vectors, queries, 10))
    assert share >= 0.88
    assert not found.exact
    assert row.kind in found.plan
    for query, scores, slots in zip(queries, found.scores, found.slots, strict=True):
        truth = vectors[slots].astype(np.float16).astype(np.float64) @ query.astype(np.float64)
        np.testing.assert_allclose(scores, truth, atol=1e-9)
        assert (np.diff(scores) <= 0).all()


def nearest_through_generation(view: View, queries: np.ndarray, k: int, allowed: Allowed):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("search.nearest.EXACT_SLOTS", 5)
        patched.setattr("search.nearest.EXACT_SLOTS_BESIDE_IVF", 5)
        return nearest(view, queries, k, allowed, exact=False)


@pytest.mark.parametrize("kind", [*KINDS, "IVF16,PQ32x4fs", "IVF16,PQ32x4fs_64"])
@pytest.mark.parametrize("share", [0.0005, 0.1, 0.3, 1.0])
def test_k_hits_come_back_at_every_selectivity(index: Path, vectors: np.ndarray, kind: str, share: float) -> None:
    rebuild_generation(index, AnnOptions(kind=kind, target_recall=0.9), tell_nobody)
    keep = np.random.default_rng(3).random(N) < share
    allowed = Allowed.only(np.flatnonzero(keep), N)
    view = View.open(index, snapshot_of(index))
    queries = clustered(100, DIM, 4)
    found = nearest_through_generation(view, queries, 10, allowed)
    assert "index over" in found.plan or allowed.n <= 5
    n = min(10, int(keep.sum()))
    assert all(len(slots) == n for slots in found.slots)
    assert all(keep[slots].all() for slots in found.slots)
    assert found_share(found.slots, exact(vectors, queries, n, keep)) >= 0.85


def test_matches_that_lie_where_no_query_looks_are_found_all_the_same(index: Path, vectors: np.ndarray) -> None:
    rebuild_generation(index, AnnOptions(kind="ivf", target_recall=0.8), tell_nobody)
    query = vectors[:1]
    keep = np.zeros(N, np.bool_)
    keep[np.argsort(vectors @ query[0])[:12]] = True  # the twelve farthest
    view = View.open(index, snapshot_of(index))
    found = nearest_through_generation(view, query, 10, Allowed.only(np.flatnonzero(keep), N))
    assert "index over" in found.plan
    assert [set(found.slots[0].tolist())] == exact(vectors, query, 10, keep)


def test_a_type_that_takes_no_filter_is_told_and_exact_search_takes_its_place(index: Path, vectors: np.ndarray) -> None:
    _, warnings = rebuild_generation(index, AnnOptions(kind="PQ32", target_recall=0.5), tell_nobody)
    assert [warning for warning in warnings if "cannot leave vectors out of a search of PQ32" in warning] == warnings
    assert len(warnings) == 1
    view = View.open(index, snapshot_of(index))
    queries = clustered(3, DIM, 5)
    assert nearest_through_generation(view, queries, 10, view.live()).plan.startswith("factory index over")
    keep = np.arange(N) % 2 == 0
    found = nearest_through_generation(view, queries, 10, Allowed.only(np.flatnonzero(keep), N))
    assert found.exact
    assert [set(slots.tolist()) for slots in found.slots] == exact(vectors, queries, 10, keep)


def test_one_query_leaves_faiss_the_threads_that_it_had(index: Path) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        generation = Generation(index, row, DIM)
        generation.index.search(clustered(1, DIM, 5), 10)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.usefixtures("fast")
def test_a_batch_is_searched_in_parts(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="ivf"), tell_nobody)
    generation = Generation(index, row, DIM)
    queries = clustered(11, DIM, 5)
    scores, slots = generation.index.search(queries, 10, effort=generation.effort)
    monkeypatch.setattr("indexer.ann.engine._QUERIES_AT_ONCE", 4)
    in_parts = generation.index.search(queries, 10, effort=generation.effort)
    np.testing.assert_array_equal(in_parts[1], slots)
    np.testing.assert_allclose(in_parts[0], scores, rtol=1e-6)


@pytest.mark.usefixtures("fast")
def test_two_copies_of_a_slot_leave_room_for_k_hits(index: Path) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="ivf", target_recall=0.05), tell_nobody)
    assert row.details["copies"] == 2
    view = View.open(index, snapshot_of(index))
    assert Generation(index, row, DIM).effort.depth >= 20
    for k in (10, 40, 300):
        found = nearest_through_generation(view, clustered(20, DIM, 5), k, view.live())
        assert "ivf index over" in found.plan
        assert {len(slots) for slots in found.slots} == {k}


def test_as_many_hits_as_there_are_vectors_can_be_asked_for(index: Path) -> None:
    rebuild_generation(index, AnnOptions(kind="hnsw"), tell_nobody)
    view = View.open(index, snapshot_of(index))
    found = nearest_through_generation(view, clustered(2, DIM, 5), N, view.live())
    assert [sorted(slots.tolist()) for slots in found.slots] == [list(range(N))] * 2


def test_the_trial_counts_hits_as_brute_force_does(index: Path, vectors: np.ndarray) -> None:
    rebuild_generation(index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    snapshot = snapshot_of(index)
    assert snapshot.generation is not None
    generation = Generation(index, snapshot.generation, DIM)
    with VectorReader(index, snapshot.vector_file, snapshot.layout, N) as reader:
        trial = Trial(reader, N)
        point = trial.measure(generation.index, Effort(probes=3, depth=20))
        stored = vectors.astype(np.float16).astype(np.float32)
        hits = []
        for own, query in zip(trial.own, trial.queries, strict=True):
            scores = stored @ query
            scores[own] = -2
            truth = set(np.argsort(-scores)[:10].tolist())
            _, slots = generation.index.search(query[None], 21, effort=Effort(probes=3, depth=20))
            hits.append(len((set(slots[0].tolist()) - {own}) & truth) / 10)
        assert point.recall == pytest.approx(np.mean(hits), abs=2e-3)
        with_all = trial.measure(generation.index, Effort(probes=32, depth=400))
        assert with_all.recall == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("kind", [*KINDS, "PQ32"])
def test_the_recall_that_is_recorded_is_that_of_the_effort_that_searches_use(index: Path, kind: str) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind=kind, target_recall=0.95), tell_nobody)
    generation = Generation(index, row, DIM)
    with VectorReader(index, row.vector_file, snapshot_of(index).layout, N) as reader:
        point = Trial(reader, N).measure(generation.index, generation.effort)
    search = row.details["search"]
    assert isinstance(search, dict)
    assert point.recall == pytest.approx(float(str(search["recall@10"])), abs=2e-3)


def test_a_target_that_cannot_be_reached_is_said(index: Path) -> None:
    row, warnings = rebuild_generation(index, AnnOptions(kind="PQ2x4", target_recall=0.999), tell_nobody)
    assert row.kind == Kind.FACTORY
    assert "recall@10" in warnings[0]
    tuning = tune_generation(index, None, tell_nobody)
    assert not tuning.is_reached
    assert tuning.target == 0.999


def test_tuning_for_another_target_changes_the_row_alone(index: Path) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="IVF64,RaBitQ", target_recall=0.99), tell_nobody)
    tuning = tune_generation(index, 0.8, tell_nobody)
    after = snapshot_of(index).generation
    assert after is not None
    assert (after.name, after.sha256) == (row.name, row.sha256)
    assert tuning.is_reached
    assert after.details["search"] == tuning.chosen.to_json()
    assert after.details["target_recall"] == 0.8
    meeting = [point for point in tuning.points if point.sure_recall >= 0.8]
    assert tuning.chosen == min(meeting, key=lambda point: point.latency_ms)
    needed = int(str(row.details["search"]["probes"]))  # type: ignore[index, call-overload]
    assert min(point.effort.probes for point in meeting) < needed


def test_an_exact_generation_and_none_at_all_cannot_be_tuned(index: Path) -> None:
    with pytest.raises(UsageError, match="index rebuild"):
        tune_generation(index, None, tell_nobody)
    rebuild_generation(index, AnnOptions(kind="flat"), tell_nobody)
    with pytest.raises(UsageError, match="exact"):
        tune_generation(index, None, tell_nobody)


def test_a_generation_that_is_gone_cannot_be_tuned(index: Path) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="ivf", target_recall=0.5), tell_nobody)
    (index / row.name).unlink()
    with pytest.raises(IndexCorruptError, match="is missing; make it anew: index rebuild"):
        tune_generation(index, None, tell_nobody)


def test_what_was_asked_for_once_holds_until_something_else_is_asked_for(index: Path) -> None:
    rebuild_generation(index, AnnOptions(kind="ivf", target_recall=0.8), tell_nobody)
    with closing(Store.open(index)) as store:
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        first = store.generations()
        bring_generation_up_to_date(store, AnnOptions(kind="ivf"), tell_nobody)
        assert store.generations() == first
        bring_generation_up_to_date(store, AnnOptions(kind="hnsw"), tell_nobody)
        (row,) = store.generations()
    assert row.kind == "hnsw"
    assert row.details["target_recall"] == 0.8


def test_recall_is_measured_again_after_many_changes(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.upkeep, "CHECK_SLOTS", 100)
    rebuild_generation(index, AnnOptions(kind="ivf", target_recall=0.8), tell_nobody)
    with closing(Store.open(index)) as store:
        (before,) = store.generations()
        append(store, clustered(99, DIM, 6))
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        assert store.generations() == [before]
        append(store, clustered(1, DIM, 8))
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        (after,) = store.generations()
        assert (after.name, after.details["n_changed_at_check"]) == (before.name, 100)
        spoiled = {**after.details, "search": {"probes": 1, "depth": 1}, "n_changed_at_check": 0}
        store.update_generation(type(after)(**{**after.to_json(), "details": spoiled}))  # type: ignore[arg-type]
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        (anew,) = store.generations()
        assert anew.name != after.name
        assert anew.n_slots == N + 100


def test_an_interrupt_while_an_index_is_trained_leaves_the_old_one(index: Path) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="flat"), tell_nobody)
    told = []

    def stop(progress: Progress) -> None:
        told.append(progress.fraction)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild_generation(index, AnnOptions(kind="ivf"), stop)
    assert told == sorted(told)
    assert snapshot_of(index).generation == row
    Store.open(index).close()
    assert [path.name for path in index.glob("gen-*")] == [row.name]


@pytest.mark.parametrize("kind", ["nonsense", "IVF16,PQ7"])
def test_a_factory_string_that_faiss_cannot_make_is_refused_at_once(index: Path, kind: str) -> None:
    with pytest.raises(UsageError, match="--kind"):
        check_recipe(AnnOptions(kind=kind), DIM)
    with pytest.raises(UsageError, match="--kind"):
        rebuild_generation(index, AnnOptions(kind=kind), tell_nobody)


@pytest.mark.parametrize(
    ("n", "dim", "limit", "kind", "factory"),
    [
        (50_000, 384, None, Kind.FLAT, "SQfp16"),
        (FLAT_NUMBERS // 384 + 1, 384, None, Kind.IVF, "IVF256,PQ128x4fs"),
        (12_000_000, 384, None, Kind.IVF, "IVF4096,RaBitQ"),
        (200_000, 384, None, Kind.IVF, "IVF512,PQ128x4fs"),
        (800_000, 384, None, Kind.IVF, "IVF1024,PQ128x4fs"),
        (800_000, 1_024, None, Kind.IVF, "IVF1024,PQ256x4fs"),
        (100_000_000, 384, None, Kind.IVF, "IVF8192,RaBitQ"),
        (1_000_000, 32, None, Kind.IVF, "IVF1024,SQ8"),
        (50_000, 384, 10_000_000, Kind.IVF, "IVF256,PQ128x4fs"),
        (50_000, 384, 3_700_000, Kind.IVF, "IVF256,RaBitQ"),
        (10_000_000, 384, 500_000_000, Kind.IVF, "IVF4096,PQ32"),
        (1_000_000, 48, 40_000_000, Kind.IVF, "IVF1024,PQ16"),
        (1_000_000, 96, 17_000_000, Kind.IVF, "IVF1024,PQ8"),
        (1_000_000, 256, 35_000_000, Kind.IVF, "IVF1024,PQ16"),
    ],
)
def test_auto_goes_by_size_dimension_and_memory(n: int, dim: int, limit: int | None, kind: Kind, factory: str) -> None:
    recipe = choose_recipe(AnnOptions(max_memory_bytes=limit), n, dim, VectorDtype.F16)
    assert (recipe.kind, recipe.factory) == (kind, factory)
    assert limit is None or recipe.n_bytes <= limit


def test_vectors_are_in_two_lists_where_memory_allows() -> None:
    def recipe_with(limit: int | None) -> tuple[str, int]:
        recipe = choose_recipe(AnnOptions(kind="ivf", max_memory_bytes=limit), 800_000, 384, VectorDtype.F16)
        return recipe.factory, recipe.copies

    assert recipe_with(None) == ("IVF1024,PQ128x4fs", 2)
    assert recipe_with(110_000_000) == ("IVF1024,RaBitQ", 2)
    assert recipe_with(80_000_000) == ("IVF1024,PQ128x4fs", 1)
    assert recipe_with(55_000_000) == ("IVF1024,RaBitQ", 1)


def lists_of(index: Path, row: GenerationRow) -> np.ndarray:
    """Return the lists of each slot, (n, 2) ascending."""
    stored = faiss.read_index(str(index / row.name))
    held = [faiss.rev_swig_ptr(stored.invlists.get_ids(i), stored.invlists.list_size(i)) for i in range(stored.nlist)]
    slots = np.concatenate(held)
    lists = np.repeat(np.arange(stored.nlist), [len(ids) for ids in held])
    return lists[np.argsort(slots, kind="stable")].reshape(-1, 2)


@pytest.mark.parametrize("kind", ["IndexIVFRaBitQ", "IndexIVFPQFastScan"])
def test_each_slot_is_in_the_list_of_its_centre_and_in_one_on_another_side(
    index: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "Fast" in kind:
        monkeypatch.setattr("indexer.ann.kinds._PQ_ROWS", 1_000)
    row, _ = rebuild_generation(index, AnnOptions(kind="ivf"), tell_nobody)
    assert row.details["index"] == kind
    lists = lists_of(index, row)
    stored = faiss.read_index(str(index / row.name))
    centres = stored.quantizer.reconstruct_n(0, stored.nlist)
    snapshot = snapshot_of(index)
    with closing(VectorReader(index, snapshot.vector_file, snapshot.layout, N)) as reader:
        stored_vectors = reader.rows(np.arange(0, N, 50))
    for (low, high), vector in zip(lists[::50], stored_vectors, strict=True):
        near = np.argsort(-centres @ vector)[:16]
        errors = vector - centres[near]
        along = errors @ errors[0] / np.linalg.norm(errors[0])
        loss = (errors**2).sum(axis=1) + along**2
        assert {low, high} == {near[0], near[1 + np.argmin(loss[1:])]}


@pytest.mark.usefixtures("fast")
def test_a_slot_in_two_lists_is_one_candidate_alone_and_in_a_batch(index: Path) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="ivf"), tell_nobody)
    generation = Generation(index, row, DIM)
    assert (generation.n_slots, generation.index.n_slots) == (N, N)
    queries = clustered(20, DIM, 4)
    scores, slots = generation.index.search(queries, 2 * N)
    for query, of_all, found in zip(queries, scores, slots, strict=True):
        assert np.array_equal(np.sort(found[found >= 0]), np.arange(N))
        alone_scores, alone = generation.index.search(query[None], 2 * N)
        np.testing.assert_array_equal(alone_scores[0], of_all)
        assert set(alone[0]) == set(found)


@pytest.mark.parametrize("factory", [None, "IVF32,SQ8"])
def test_a_reach_gives_each_query_the_lists_that_it_needs(index: Path, factory: str | None) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind=factory or "ivf"), tell_nobody)
    ann = Generation(index, row, DIM).index
    queries = clustered(200, DIM, 4)
    stored = faiss.read_index(str(index / row.name))
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
        expected = np.unique(np.concatenate([members[i] for i in np.flatnonzero(of_query)]))
        assert np.array_equal(np.sort(found[found >= 0]), expected)
    for times, n_lists in ((2.0, 2 * within.sum(axis=1)), (1e6, np.full(len(queries), stored.nlist))):
        for i in range(0, len(queries), 20):
            _, alone = ann.search(queries[i : i + 1], 2 * N, effort=effort, times=times)
            near = np.argsort(-scores[i])[: min(n_lists[i], stored.nlist)]
            expected = np.unique(np.concatenate([members[each] for each in near]))
            assert np.array_equal(np.sort(alone[alone >= 0]), expected)


def test_types_without_plain_centres_have_no_reach(index: Path) -> None:
    queries = clustered(20, DIM, 4)
    for kind in ("hnsw", "SQ8", "PCA48,IVF16,SQ8", "IVF64_HNSW32,SQ8"):
        row, _ = rebuild_generation(index, AnnOptions(kind=kind), tell_nobody)
        generation = Generation(index, row, DIM)
        assert generation.index.reach(queries, 2) is None
        assert generation.effort.reach is None


@pytest.mark.parametrize("reach", [None, -0.1, "0.2", True])
def test_a_reach_that_is_none_leaves_the_same_probes_for_all(index: Path, reach: object) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="ivf"), tell_nobody)
    search = row.details["search"]
    assert isinstance(search, dict)
    assert Generation(index, row, DIM).effort.reach == search["reach"]
    changed = replace(row, details={**row.details, "search": {**search, "reach": reach}})  # type: ignore[dict-item]
    effort = Generation(index, changed, DIM).effort
    assert (effort.probes, effort.reach) == (search["probes"], None)


@pytest.mark.parametrize("copies", [1, None, "2", 3])
def test_a_row_that_says_other_copies_than_the_file_holds_is_damage(index: Path, copies: object) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="ivf"), tell_nobody)
    with pytest.raises(IndexCorruptError, match="holds 12000 vectors of 64 dimensions, not 6000"):
        Generation(index, replace(row, details={**row.details, "copies": copies}), DIM)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so few vectors have the codes that `auto` takes for more."""
    monkeypatch.setattr("indexer.ann.kinds._PQ_ROWS", 1_000)


@pytest.mark.usefixtures("fast")
def test_a_gpu_finds_the_lists_of_fast_codes(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="ivf"), tell_nobody)
    fake = let_faiss_have_a_gpu(monkeypatch)
    helped, _ = rebuild_generation(index, AnnOptions(kind="ivf"), tell_nobody)
    assert set(fake.copied) == {"IndexFlatIP", "IndexFlat"}
    assert (helped.sha256, helped.details["index"]) == (row.sha256, "IndexIVFPQFastScan")


@pytest.mark.usefixtures("fast")
def test_fast_codes_give_the_recall_that_is_recorded(index: Path, vectors: np.ndarray) -> None:
    row, warnings = rebuild_generation(index, AnnOptions(kind="ivf", target_recall=0.9), tell_nobody)
    assert warnings == []
    assert row.details["factory"] == "IVF64,PQ16x4fs"
    assert choose_recipe(AnnOptions(kind="ivf"), N, DIM, VectorDtype.F16).n_bytes == pytest.approx(row.n_bytes, rel=0.1)
    search = row.details["search"]
    assert isinstance(search, dict)
    assert float(str(search["recall@10"])) >= 0.9
    view = View.open(index, snapshot_of(index))
    queries = clustered(300, DIM, 2)
    found = nearest_through_generation(view, queries, 10, view.live())
    assert found_share(found.slots, exact(vectors, queries, 10)) >= 0.88
    for share in (0.01, 0.1, 0.5):
        keep = np.random.default_rng(3).random(N) < share
        found = nearest_through_generation(view, queries, 10, Allowed.only(np.flatnonzero(keep), N))
        assert all(len(slots) == 10 and keep[slots].all() for slots in found.slots)
        assert found_share(found.slots, exact(vectors, queries, 10, keep)) >= 0.88


@pytest.mark.parametrize(
    ("kind", "at_most"), [("flat", 20_000), ("ivf", 3_000), ("hnsw", 10_000), ("IVF32,SQ8", 10_000)]
)
def test_few_candidates_are_compared_one_by_one(
    index: Path, kind: str, at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild_generation(index, AnnOptions(kind=kind, target_recall=0.5), tell_nobody)
    view = View.open(index, snapshot_of(index))
    # A hundredth of everything, so that a small index shows it.
    monkeypatch.setattr("search.nearest.EXACT_SLOTS", EXACT_SLOTS // 100)
    monkeypatch.setattr("search.nearest.EXACT_SLOTS_BESIDE_IVF", EXACT_SLOTS_BESIDE_IVF // 100)
    for n, is_one_by_one in ((at_most // 100, True), (at_most // 100 + 1, False)):
        found = nearest(view, clustered(1, DIM, 5), 3, Allowed.only(np.arange(n), N), exact=False)
        assert found.plan.startswith("exact: compared with") == is_one_by_one, found.plan


def test_product_codes_with_many_lists_for_few_vectors_can_be_opened(index: Path) -> None:
    rebuild_generation(index, AnnOptions(kind="IVF128,PQ32", target_recall=0.1), tell_nobody)
    view = View.open(index, snapshot_of(index))
    assert nearest_through_generation(view, clustered(1, DIM, 5), 3, view.live()).plan.startswith("factory index")


def test_a_single_vector_needs_no_tuning(tmp_path: Path) -> None:
    with closing(Store.create(tmp_path, dim=DIM, vector_dtype=VectorDtype.F16, settings={}, canaries=[])) as store:
        append(store, clustered(1, DIM, 1))
    report = Index(tmp_path).rebuild(kind="ivf")
    assert (report.kind, report.slots, report.recall, report.warnings) == ("ivf", 1, None, ())
    with pytest.raises(UsageError, match="one vector"):
        tune_generation(tmp_path, None, tell_nobody)


def test_the_size_that_is_foretold_is_about_that_of_the_file(index: Path) -> None:
    for kind in ("flat", "ivf", "hnsw"):
        row, _ = rebuild_generation(index, AnnOptions(kind=kind, target_recall=0.5), tell_nobody)
        recipe = choose_recipe(AnnOptions(kind=kind), N, DIM, VectorDtype.F16)
        assert recipe.n_bytes == pytest.approx(row.n_bytes, rel=0.1)


def test_an_index_over_its_memory_is_said(index: Path) -> None:
    _, warnings = rebuild_generation(index, AnnOptions(kind="ivf", max_memory_bytes=1000), tell_nobody)
    assert "--max-index-memory 1,000" in warnings[0]


@pytest.mark.parametrize(("text", "n"), [("4G", 4 * 1024**3), ("1.5m", 1_572_864), ("10 KiB", 10_240), ("7", 7)])
def test_sizes_are_read(text: str, n: int) -> None:
    assert parse_bytes(text, "max-index-memory") == n


@pytest.mark.parametrize("text", ["", "G", "4X", "-1", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="max-index-memory"):
        parse_bytes(text, "max-index-memory")


@pytest.mark.parametrize(
    "options", [{"target_recall": 0.0}, {"target_recall": 1.1}, {"max_memory_bytes": 0}, {"kind": ""}]
)
def test_options_that_cannot_be_meant_are_refused(options: dict) -> None:
    with pytest.raises(UsageError):
        AnnOptions(**options)


def test_allowed_slots_are_the_same_as_bits_and_as_slots() -> None:
    random = np.random.default_rng(0)
    for n in (1, 7, 8, 9, 100, 60_000):
        mask = random.random(n) < 0.7
        for allowed in (Allowed.only(np.flatnonzero(mask), n), Allowed.all_but(np.flatnonzero(~mask), n)):
            assert allowed.n == mask.sum()
            for first in {0, 1, 8, n // 2, n}:
                if first <= n:
                    np.testing.assert_array_equal(allowed.slots(first), np.flatnonzero(mask[first:]) + first)
    assert Allowed.all_but(np.empty(0, np.int64), 5).bits is None


def test_the_commands_rebuild_tune_and_info_say_what_was_measured(index: Path) -> None:
    from typer.testing import CliRunner

    from search.cli import app

    runner = CliRunner()
    rebuilt = runner.invoke(app, ["rebuild", str(index), "--kind", "ivf", "--target-recall", "0.9", "--json"])
    assert rebuilt.exit_code == 0, rebuilt.output
    row = json.loads(rebuilt.stdout)
    assert row["kind"] == "ivf"
    assert row["details"]["search"]["recall@10"] >= 0.9
    tuned = runner.invoke(app, ["tune", str(index), "--target-recall", "0.8", "--json"])
    assert tuned.exit_code == 0, tuned.output
    figures = json.loads(tuned.stdout)
    assert figures["reached"]
    assert figures["chosen"] in figures["points"]
    assert "<- chosen" in runner.invoke(app, ["tune", str(index)]).stdout
    text = generation_text(snapshot_of(index).generation.to_json())  # type: ignore[union-attr]
    assert "recall@10" in text
    assert "(target 0.8)" in text


def test_the_picture_is_a_png(index: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from indexer.plot import draw_tuning

    rebuild_generation(index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    draw_tuning(tune_generation(index, None, tell_nobody), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["ivf", "IVF32,SQ8", "IVF32,PQ32", "IVF32,Flat"])
def test_a_gpu_finds_the_lists_and_the_file_is_that_of_the_cpu(
    index: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind=kind), tell_nobody)
    fake = let_faiss_have_a_gpu(monkeypatch)
    helped, _ = rebuild_generation(index, AnnOptions(kind=kind), tell_nobody)
    assert {name.removesuffix("IP") for name in fake.copied} == {"IndexFlat"}
    assert helped.sha256 == row.sha256


def test_a_gpu_that_fails_leaves_the_work_to_the_cpu(
    index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="ivf"), tell_nobody)
    fake = let_faiss_have_a_gpu(monkeypatch)
    fake.fails = True
    helped, _ = rebuild_generation(index, AnnOptions(kind="ivf"), tell_nobody)
    assert helped.sha256 == row.sha256
    assert "FAISS could not use the GPU (out of memory)" in caplog.text
    with pytest.raises(UsageError, match="out of memory"):
        rebuild_generation(index, AnnOptions(kind="cagra"), tell_nobody)


def test_a_device_decides_which_gpu_faiss_uses(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = let_faiss_have_a_gpu(monkeypatch)
    Index(index).rebuild(kind="ivf", device="cpu")
    assert fake.copied == []
    Index(index).rebuild(kind="ivf", device="cuda:0,cuda:1")
    assert fake.copied != []
    for device in ("cuda:1", "cuda:x", "gpu"):
        with pytest.raises(UsageError, match="is no GPU that FAISS can use"):
            Index(index).rebuild(kind="ivf", device=device)


def test_a_gpu_builds_a_graph_that_the_cpu_searches(
    index: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        let_faiss_have_a_gpu(patched)
        report = Index(index).rebuild(kind="cagra", target_recall=0.9)
        assert (report.kind, report.warnings) == ("cagra", ())
        recipe = choose_recipe(AnnOptions(kind="cagra"), N, DIM, VectorDtype.F16)
        assert recipe.n_bytes == pytest.approx(report.bytes, rel=0.1)
    view = View.open(index, snapshot_of(index))
    queries = clustered(100, DIM, 2)
    found = nearest_through_generation(view, queries, 10, view.live())
    assert found.plan.startswith("cagra index")
    assert found_share(found.slots, exact(vectors, queries, 10)) >= 0.85
    few = nearest_through_generation(view, queries, 10, Allowed.only(np.arange(0, N, 100), N))
    assert all(len(slots) == 10 for slots in few.slots)


def test_a_graph_that_cannot_be_built_here_is_refused_but_not_in_the_middle_of_an_update(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"clsindex\[cuvs\]"):
        check_recipe(AnnOptions(kind="cagra"), DIM)
    with monkeypatch.context() as patched:
        let_faiss_have_a_gpu(patched, cuvs=False)
        with pytest.raises(UsageError, match=r"clsindex\[cuvs\]"):
            Index(index).rebuild(kind="cagra")
        let_faiss_have_a_gpu(patched)
        Index(index).rebuild(kind="cagra")
    with closing(Store.open(index)) as store:
        append(store, clustered(TAIL_SLOTS + 1, DIM, 3))
        warnings = bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        assert warnings[0].startswith("--kind cagra, as asked before, needs")
        assert store.generations()[0].kind == "hnsw"


@pytest.mark.parametrize("kind", ["IVF32,SQ8", "IVF16,PQ32x4fs"])
def test_a_gpu_searches_its_copy_where_it_can(index: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuild_generation(index, AnnOptions(kind=kind), tell_nobody)
    queries = clustered(20, DIM, 2)
    half = Allowed.only(np.arange(0, N, 2), N)
    plain = View.open(index, snapshot_of(index))
    expected = [nearest_through_generation(plain, queries, 10, each) for each in (plain.live(), half)]
    fake = let_faiss_have_a_gpu(monkeypatch)
    card = Card("cpu")
    monkeypatch.setattr(card, "hold", lambda _: False)
    card.device = torch.device("cuda:0")
    view = View.open(index, snapshot_of(index), card)
    found = [nearest_through_generation(view, queries, 10, each) for each in (view.live(), half)]
    assert fake.copied == ([] if "fs" in kind else ["IndexIVFScalarQuantizer"])
    for one, other in zip(found, expected, strict=True):
        assert one.plan == other.plan
        np.testing.assert_array_equal(one.slots, other.slots)


def test_a_copy_on_a_gpu_that_fails_leaves_the_search_to_the_cpu(
    index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row, _ = rebuild_generation(index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    fake = let_faiss_have_a_gpu(monkeypatch)
    generation = Generation(index, row, DIM)
    queries = clustered(20, DIM, 2)
    expected = generation.index.search(queries, 10, effort=generation.effort)
    gpu = Gpu.find("cuda:0")
    assert gpu is not None
    fake.fails = True
    assert generation.index.copy_to(gpu)
    for _ in range(2):
        found = generation.index.search(queries, 10, effort=generation.effort)
        np.testing.assert_array_equal(found[1], expected[1])
    assert caplog.text.count("the CPU searches from here on, because the GPU failed: out of memory") == 1
