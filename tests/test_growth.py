"""A generation that grows by a long tail: what it then holds, and when one is made anew instead."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from anns import (
    DIM,
    KINDS,
    N,
    append,
    change_row,
    clustered,
    exact,
    found_share,
    nearest_through_generation,
    snapshot_of,
)
from indexes import build, flip_byte, only, records

import indexer.ann.generation
import indexer.upkeep
from indexer.ann.generation import Generation
from indexer.ann.kinds import AnnOptions
from indexer.delete import delete_documents
from indexer.errors import UsageError
from indexer.maintenance.compact import compact_index
from indexer.maintenance.repair import repair_index
from indexer.progress import Progress, tell_nobody
from indexer.storage.generations import GenerationRow
from indexer.storage.store import Store
from indexer.upkeep import bring_generation_up_to_date, rebuild_generation, tune_generation
from search.view import View

TAIL = 150


@pytest.fixture(autouse=True)
def short_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.upkeep, "TAIL_SLOTS", TAIL - 1)


def grown(index: Path, n: int = TAIL, seed: int = 6) -> GenerationRow:
    """Append vectors and return the generation that a writer leaves."""
    with closing(Store.open(index)) as store:
        append(store, clustered(n, DIM, seed))
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        (row,) = store.generations()
    return row


def let_nothing_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.ann.generation, "make_index", lambda *_: pytest.fail("it was made anew"))


def check_holds_every_slot(index: Path, row: GenerationRow) -> None:
    generation = Generation(index, row, DIM)
    copies = generation.index.copies
    _, slots = generation.index.search(np.ones((1, DIM), np.float32), row.n_slots * copies)
    found, counts = np.unique(slots, return_counts=True)
    assert found.tolist() == list(range(row.n_slots))
    assert set(counts.tolist()) == {copies}


@pytest.mark.parametrize("kind", [*KINDS, "PQ32"])
def test_a_long_tail_is_added_without_training(ann_index: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = rebuild_generation(ann_index, AnnOptions(kind=kind), tell_nobody)
    let_nothing_be_trained(monkeypatch)
    after = grown(ann_index)
    assert (after.n_slots, after.details["n_trained"]) == (N + TAIL, N)
    assert after.details["search"] == before.details["search"], "too little has changed for another check"
    assert only(ann_index, "gen-*").name == after.name != before.name
    Generation(ann_index, after, DIM, check_every_byte=True)
    if kind != "hnsw":  # a graph does not promise to reach every slot
        check_holds_every_slot(ann_index, after)


@pytest.mark.usefixtures("fast_codes")
def test_fast_codes_are_added_to(ann_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    let_nothing_be_trained(monkeypatch)
    after = grown(ann_index)
    assert after.details["index"] == "IndexIVFPQFastScan"
    check_holds_every_slot(ann_index, after)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_what_was_added_is_found_and_what_is_deleted_is_not(
    ann_index: Path, vectors_6000: np.ndarray, kind: str
) -> None:
    rebuild_generation(ann_index, AnnOptions(kind=kind), tell_nobody)
    delete_documents(ann_index, [f"d{i}" for i in range(0, N, 50)])
    grown(ann_index)
    new = clustered(TAIL, DIM, 6)
    is_live = np.arange(N + TAIL) % 50 > 0
    is_live[N:] = True
    queries = np.concatenate((new[:40], clustered(40, DIM, 9)))
    with closing(View.open(ann_index, snapshot_of(ann_index))) as view:
        found = nearest_through_generation(view, queries, 10, view.live())
    assert "newer ones" not in found.plan
    assert found_share(found.slots, exact(np.concatenate((vectors_6000, new)), queries, 10, is_live)) >= 0.9
    assert is_live[np.concatenate(found.slots)].all()


def test_changes_that_were_not_checked_go_on_counting(ann_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.upkeep, "CHECK_SLOTS", 2 * TAIL)
    rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    once = grown(ann_index)
    assert once.details["n_changed_at_check"] == -TAIL
    twice = grown(ann_index, seed=8)
    assert twice.details["n_changed_at_check"] == 0
    assert twice.details["search"] != once.details["search"]
    assert twice.n_slots == N + 2 * TAIL


@pytest.mark.parametrize("n", [TAIL, 2_500])
def test_a_generation_is_made_anew_once_another_recipe_is_due(ann_index: Path, n: int) -> None:
    before, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    after = grown(ann_index, n)
    if n == TAIL:
        assert (after.details["factory"], after.details["n_trained"]) == (before.details["factory"], N)
    else:
        assert after.details["factory"] != before.details["factory"]
        assert after.details["n_trained"] == N + n


def test_a_generation_is_made_anew_once_it_was_trained_with_a_small_part(
    ann_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.upkeep, "_MOST_GROWTH", 1.04)
    rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    assert grown(ann_index).details["n_trained"] == N
    assert grown(ann_index, seed=8).details["n_trained"] == N + 2 * TAIL


def test_a_generation_that_was_too_small_to_be_tuned_is_made_anew(ann_index: Path) -> None:
    delete_documents(ann_index, [f"d{i}" for i in range(1, N)])
    before, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    assert "search" not in before.details
    after = grown(ann_index)
    assert after.details["n_trained"] == N + TAIL
    assert "search" in after.details


def test_damage_does_not_grow(ann_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    monkeypatch.setattr(indexer.ann.generation, "HASHED_AT_OPEN_BYTES", 0)
    flip_byte(ann_index / before.name, before.n_bytes // 2)
    after = grown(ann_index)
    assert after.details["n_trained"] == N + TAIL
    Generation(ann_index, after, DIM, check_every_byte=True)


def test_an_interrupt_while_a_generation_grows_leaves_the_old_one(ann_index: Path) -> None:
    before, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with closing(Store.open(ann_index)) as store:
        append(store, clustered(TAIL, DIM, 6))
        with pytest.raises(KeyboardInterrupt):
            bring_generation_up_to_date(store, AnnOptions(), stop)
        assert store.generations() == [before]
    assert only(ann_index, "gen-*").name == before.name


def test_a_generation_that_would_become_too_large_is_made_anew_which_says_so(ann_index: Path) -> None:
    before, _ = rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    rebuild_generation(ann_index, AnnOptions(max_memory_bytes=before.n_bytes + 1), tell_nobody)
    for seed in (6, 8):
        with closing(Store.open(ann_index)) as store:
            append(store, clustered(TAIL, DIM, seed))
            (warning,) = bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
            (row,) = store.generations()
        assert "more than --max-index-memory" in warning
        assert row.details["n_trained"] == row.n_slots
        assert only(ann_index, "gen-*").name == row.name


def test_vectors_that_crowd_into_few_lists_have_them_placed_anew(
    ann_index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    alike = clustered(1, DIM, 6) + 0.01 * np.random.default_rng(1).standard_normal((2_000, DIM))
    with closing(Store.open(ann_index)) as store:
        append(store, (alike / np.linalg.norm(alike, axis=1, keepdims=True)).astype(np.float32))
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        (after,) = store.generations()
    assert after.details["n_trained"] == N + 2_000
    assert "have become uneven" in caplog.text


@pytest.mark.parametrize("reached", [True, False])
def test_what_has_grown_and_misses_its_recall_is_made_anew_where_that_can_help(
    ann_index: Path, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.upkeep, "CHECK_SLOTS", TAIL)
    rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    with closing(Store.open(ann_index)) as store:
        change_row(store, search={"probes": 1, "depth": 1, "recall@10": 0.99}, reached=reached)
    after = grown(ann_index)
    assert after.details["n_trained"] == (N + TAIL if reached else N)
    assert after.details["search"]["recall@10"] >= 0.95  # type: ignore[index, call-overload, operator]


def test_a_file_that_is_not_what_its_row_says_is_made_anew(ann_index: Path) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    with closing(Store.open(ann_index)) as store:
        change_row(store, index="IndexIVFPQFastScan")
    assert grown(ann_index).details["n_trained"] == N + TAIL


def test_hnsw_in_the_place_of_a_graph_that_needs_a_gpu_grows(ann_index: Path) -> None:
    with closing(Store.open(ann_index)) as store:
        bring_generation_up_to_date(store, AnnOptions(kind="cagra"), tell_nobody, "cpu")
        append(store, clustered(TAIL, DIM, 6))
        assert bring_generation_up_to_date(store, AnnOptions(), tell_nobody, "cpu") == []
        (row,) = store.generations()
    assert (row.kind, row.n_slots, row.details["n_trained"]) == ("hnsw", N + TAIL, N)


def test_tuning_counts_as_a_check(ann_index: Path) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    assert grown(ann_index).details["n_changed_at_check"] == -TAIL
    tune_generation(ann_index, None, tell_nobody)
    assert snapshot_of(ann_index).generation.details["n_changed_at_check"] == 0  # type: ignore[union-attr]


def test_an_interrupt_while_a_file_is_written_leaves_nothing(ann_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(indexer.ann.generation, "_check_reads_back", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    assert list(ann_index.glob("gen-*")) == []


def test_what_faiss_cannot_build_again_is_said_and_made_once_it_can_be(tmp_path: Path) -> None:
    build(tmp_path, records(300), ann=AnnOptions(kind="IVF256,SQ8"))
    delete_documents(tmp_path, [f"d{i}" for i in range(250)])
    for warnings in (
        compact_index(tmp_path).warnings,
        build(tmp_path, records(1, first=300), adds=True).warnings,
        repair_index(tmp_path).warnings,
    ):
        assert "'IVF256,SQ8' cannot be built over 5" in warnings[0]
        assert "documents are searched one by one, exactly; a kind that fits: index rebuild" in warnings[0]
    with pytest.raises(UsageError, match="cannot be built over 51 vectors"):
        rebuild_generation(tmp_path, AnnOptions(kind="IVF256,SQ8"), tell_nobody)
    build(tmp_path, records(300, first=400), adds=True)
    row = snapshot_of(tmp_path).generation
    assert row is not None
    assert (row.kind, row.details["factory"], row.n_slots) == ("factory", "IVF256,SQ8", 351)


def test_what_faiss_cannot_build_takes_the_place_of_nothing(tmp_path: Path) -> None:
    build(tmp_path, records(60))
    before = snapshot_of(tmp_path).generation
    (warning,) = build(tmp_path, records(60), ann=AnnOptions(kind="IVF64,SQ8")).warnings
    assert "cannot be built over 60 vectors" in warning
    assert "the flat index of before stays" in warning
    after = snapshot_of(tmp_path).generation
    assert before is not None
    assert after is not None
    assert after.name == before.name
    assert build(tmp_path, records(60)).warnings == []
