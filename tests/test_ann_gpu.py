"""Generations on a GPU: what it builds is what the CPU reads, and where it fails the CPU takes its place."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from anns import DIM, N, append, clustered, exact, found_share, nearest_through_generation, snapshot_of
from gpus import let_faiss_have_a_gpu

from indexer import Index
from indexer.allowed import Allowed
from indexer.ann.generation import Generation
from indexer.ann.gpu import Gpu
from indexer.ann.index import Effort, empty_index
from indexer.ann.kinds import AnnOptions, Kind, Recipe, choose_recipe
from indexer.card import Card
from indexer.config import VectorDtype
from indexer.errors import UsageError
from indexer.progress import tell_nobody
from indexer.storage.store import Store
from indexer.upkeep import TAIL_SLOTS, bring_generation_up_to_date, check_recipe, rebuild_generation
from search.view import View


@pytest.mark.parametrize("kind", ["ivf", "IVF32,SQ8", "IVF32,PQ32", "IVF32,Flat"])
def test_a_gpu_finds_the_lists_and_the_file_is_that_of_the_cpu(
    ann_index: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind=kind), tell_nobody, "cpu")
    fake = let_faiss_have_a_gpu(monkeypatch)
    helped, _ = rebuild_generation(ann_index, AnnOptions(kind=kind), tell_nobody)
    assert {name.removesuffix("IP") for name in fake.copied} == {"IndexFlat"}
    assert fake.halved == [], "lists are found with centres in float32"
    assert helped.sha256 == row.sha256


@pytest.mark.usefixtures("fast_codes")
def test_a_gpu_finds_the_lists_of_fast_codes(ann_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody, "cpu")
    fake = let_faiss_have_a_gpu(monkeypatch)
    helped, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    assert set(fake.copied) == {"IndexFlatIP", "IndexFlat"}
    assert (helped.sha256, helped.details["index"]) == (row.sha256, "IndexIVFPQFastScan")


def test_a_gpu_that_fails_leaves_the_work_to_the_cpu(
    ann_index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody, "cpu")
    fake = let_faiss_have_a_gpu(monkeypatch)
    fake.fails = True
    helped, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    assert helped.sha256 == row.sha256
    assert "FAISS could not use the GPU (out of memory)" in caplog.text
    with pytest.raises(UsageError, match="out of memory"):
        rebuild_generation(ann_index, AnnOptions(kind="cagra"), tell_nobody)


def test_a_device_decides_which_gpu_faiss_uses(ann_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = let_faiss_have_a_gpu(monkeypatch)
    Index(ann_index).rebuild(kind="ivf", device="cpu")
    assert fake.copied == []
    Index(ann_index).rebuild(kind="ivf", device="cuda:0,cuda:1")
    assert fake.copied != []
    for device in ("cuda:1", "cuda:x", "gpu"):
        with pytest.raises(UsageError, match="is no GPU that FAISS can use"):
            Index(ann_index).rebuild(kind="ivf", device=device)


def test_a_gpu_builds_a_graph_that_the_cpu_searches(
    ann_index: Path, vectors_6000: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        let_faiss_have_a_gpu(patched)
        report = Index(ann_index).rebuild(kind="cagra", target_recall=0.9)
        assert (report.kind, report.warnings) == ("cagra", ())
        recipe = choose_recipe(AnnOptions(kind="cagra"), N, DIM, VectorDtype.F16)
        assert recipe.n_bytes == pytest.approx(report.bytes, rel=0.1)
    view = View.open(ann_index, snapshot_of(ann_index))
    queries = clustered(100, DIM, 2)
    found = nearest_through_generation(view, queries, 10, view.live())
    assert found.plan.startswith("cagra index")
    assert found_share(found.slots, exact(vectors_6000, queries, 10)) >= 0.85
    few = nearest_through_generation(view, queries, 10, Allowed.only(np.arange(0, N, 100), N))
    assert all(len(slots) == 10 for slots in few.slots)


def test_a_graph_that_cannot_be_built_here_is_refused_but_not_in_the_middle_of_an_update(
    ann_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"clsindex\[cuvs\]"):
        check_recipe(AnnOptions(kind="cagra"), DIM, "cpu")
    with monkeypatch.context() as patched:
        let_faiss_have_a_gpu(patched, cuvs=False)
        with pytest.raises(UsageError, match=r"clsindex\[cuvs\]"):
            Index(ann_index).rebuild(kind="cagra")
        let_faiss_have_a_gpu(patched)
        Index(ann_index).rebuild(kind="cagra")
    with closing(Store.open(ann_index)) as store:
        append(store, clustered(TAIL_SLOTS + 1, DIM, 3))
        warnings = bring_generation_up_to_date(store, AnnOptions(), tell_nobody, "cpu")
        assert warnings[0].startswith("--kind cagra, as asked before, needs")
        assert store.generations()[0].kind == "hnsw"


@pytest.mark.parametrize(("factory", "is_halved"), [("IVF8,PQ48", False), ("IVF8,PQ64", True), ("IVF8,SQ8", False)])
def test_only_tables_that_fit_in_no_other_way_are_in_float16(
    factory: str, is_halved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = let_faiss_have_a_gpu(monkeypatch)
    gpu = Gpu.find("cuda")
    assert gpu is not None
    assert gpu.copy(empty_index(Recipe(kind=Kind.FACTORY, factory=factory, n_bytes=0), 192)) is not None
    assert bool(fake.halved) is is_halved


def test_a_copy_looks_into_more_lists_where_the_cpu_chooses_them_by_their_reach(
    ann_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="IVF64,SQ8", target_recall=0.9), tell_nobody, "cpu")
    index = Generation(ann_index, row, DIM).index
    let_faiss_have_a_gpu(monkeypatch)
    gpu = Gpu.find("cuda")
    assert gpu is not None
    assert index.copy_to(gpu)
    asked = []
    monkeypatch.setattr(index, "_ask_copy", lambda _queries, _k, probes: asked.append(probes))
    queries = clustered(3, DIM, 2)
    index.search(queries, 10, effort=Effort(probes=20, depth=10, reach=0.3))
    index.search(queries, 10, effort=Effort(probes=20, depth=10))
    index.search(queries, 10)
    assert asked == [26, 20, 64]


def test_few_vectors_get_no_cagra(ann_index: Path) -> None:
    few, many = (choose_recipe(AnnOptions(kind="cagra"), n, DIM, VectorDtype.F16).kind for n in (999, 1_000))
    assert (few, many) == (Kind.HNSW, Kind.CAGRA)


@pytest.mark.parametrize("kind", ["IVF32,SQ8", "IVF16,PQ32x4fs"])
def test_a_gpu_searches_its_copy_where_it_can(ann_index: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuild_generation(ann_index, AnnOptions(kind=kind), tell_nobody)
    queries = clustered(20, DIM, 2)
    half = Allowed.only(np.arange(0, N, 2), N)
    plain = View.open(ann_index, snapshot_of(ann_index))
    expected = [nearest_through_generation(plain, queries, 10, each) for each in (plain.live(), half)]
    fake = let_faiss_have_a_gpu(monkeypatch)
    card = Card("cpu")
    monkeypatch.setattr(card, "hold", lambda _: False)
    card.device = torch.device("cuda:0")
    view = View.open(ann_index, snapshot_of(ann_index), card)
    found = [nearest_through_generation(view, queries, 10, each) for each in (view.live(), half)]
    assert fake.copied == ([] if "fs" in kind else ["IndexIVFScalarQuantizer"])
    for one, other in zip(found, expected, strict=True):
        assert one.plan == other.plan
        # A copy may look into other lists than the CPU, but finds as much.
        assert found_share(one.slots, [set(slots.tolist()) for slots in other.slots]) >= 0.95


@pytest.mark.parametrize(("share", "is_answered"), [(0.999, True), (0.7, True), (0.3, True), (0.001, False)])
def test_a_copy_leaves_out_what_is_not_allowed_and_says_so_where_too_little_is(
    share: float, is_answered: bool, ann_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    allowed = Allowed.only(np.flatnonzero(np.random.default_rng(0).random(N) < share), N)
    queries = clustered(20, DIM, 2)
    index = Generation(ann_index, row, DIM).index
    expected = index.search(queries, 10, allowed=allowed.bits)  # all lists
    let_faiss_have_a_gpu(monkeypatch)
    gpu = Gpu.find("cuda")
    assert gpu is not None
    assert index.copy_to(gpu)
    answer = index._allowed_by_copy(queries, 10, index.max_probes, allowed.bits)
    assert (answer is not None) is is_answered
    for found in (index.search(queries, 10, allowed=allowed.bits), answer or expected):
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[0], expected[0], atol=1e-5)


def test_a_copy_on_a_gpu_that_fails_leaves_the_search_to_the_cpu(
    ann_index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    fake = let_faiss_have_a_gpu(monkeypatch)
    generation = Generation(ann_index, row, DIM)
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
