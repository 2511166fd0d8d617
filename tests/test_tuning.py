"""Tuning: recall as brute force counts it, the effort that is chosen for a target, and when that is looked at again."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from anns import DIM, KINDS, N, append, change_row, clustered, snapshot_of

import indexer.upkeep
from indexer import Index
from indexer.ann.generation import Generation
from indexer.ann.index import Effort
from indexer.ann.kinds import AnnOptions, Kind
from indexer.ann.tuning import Point, Trial
from indexer.config import VectorDtype
from indexer.delete import delete_documents
from indexer.errors import IndexCorruptError, UsageError
from indexer.info import generation_text
from indexer.progress import Phase, Progress, tell_nobody
from indexer.storage.store import Store
from indexer.storage.vectors import VectorReader
from indexer.upkeep import bring_generation_up_to_date, rebuild_generation, tune_generation


def test_the_trial_counts_hits_as_brute_force_does(ann_index: Path, vectors_6000: np.ndarray) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    snapshot = snapshot_of(ann_index)
    assert snapshot.generation is not None
    generation = Generation(ann_index, snapshot.generation, DIM)
    with VectorReader(ann_index, snapshot.vector_file, snapshot.layout, N) as reader:
        trial = Trial(reader, N)
        point = trial.measure(generation.index, Effort(probes=3, depth=20))
        stored = vectors_6000.astype(np.float16).astype(np.float32)
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
def test_the_recall_that_is_recorded_is_that_of_the_effort_that_searches_use(ann_index: Path, kind: str) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind=kind, target_recall=0.95), tell_nobody)
    generation = Generation(ann_index, row, DIM)
    with VectorReader(ann_index, row.vector_file, snapshot_of(ann_index).layout, N) as reader:
        point = Trial(reader, N).measure(generation.index, generation.effort)
    search = row.details["search"]
    assert isinstance(search, dict)
    assert point.recall == pytest.approx(float(str(search["recall@10"])), abs=2e-3)


def test_a_target_that_cannot_be_reached_is_said(ann_index: Path) -> None:
    row, warnings = rebuild_generation(ann_index, AnnOptions(kind="PQ2x4", target_recall=0.999), tell_nobody)
    assert row.kind == Kind.FACTORY
    assert "recall@10" in warnings[0]
    tuning = tune_generation(ann_index, None, tell_nobody)
    assert not tuning.is_reached
    assert tuning.target == 0.999
    assert "(target 0.999, missed)" in generation_text(row.to_json())


def test_tuning_for_another_target_changes_the_row_alone(ann_index: Path) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="IVF64,RaBitQ", target_recall=0.99), tell_nobody)
    tuning = tune_generation(ann_index, 0.8, tell_nobody)
    after = snapshot_of(ann_index).generation
    assert after is not None
    assert (after.name, after.sha256) == (row.name, row.sha256)
    assert tuning.is_reached
    assert after.details["search"] == tuning.chosen.to_json()
    assert after.details["target_recall"] == 0.8
    assert "(target 0.8)" in generation_text(after.to_json())
    meeting = [point for point in tuning.points if point.sure_recall >= 0.8]
    assert tuning.chosen == min(meeting, key=lambda point: point.latency_ms)
    needed = int(str(row.details["search"]["probes"]))  # type: ignore[index, call-overload]
    assert min(point.effort.probes for point in meeting) < needed


def test_an_exact_generation_and_none_at_all_cannot_be_tuned(ann_index: Path) -> None:
    with pytest.raises(UsageError, match="index rebuild"):
        tune_generation(ann_index, None, tell_nobody)
    rebuild_generation(ann_index, AnnOptions(kind="flat"), tell_nobody)
    with pytest.raises(UsageError, match="exact"):
        tune_generation(ann_index, None, tell_nobody)


def test_a_generation_that_is_gone_cannot_be_tuned(ann_index: Path) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="ivf", target_recall=0.5), tell_nobody)
    (ann_index / row.name).unlink()
    with pytest.raises(IndexCorruptError, match="is missing; make it anew: index rebuild"):
        tune_generation(ann_index, None, tell_nobody)


def test_a_single_vector_needs_no_tuning(tmp_path: Path) -> None:
    with closing(Store.create(tmp_path, dim=DIM, vector_dtype=VectorDtype.F16, settings={}, canaries=[])) as store:
        append(store, clustered(1, DIM, 1))
    report = Index(tmp_path).rebuild(kind="ivf")
    assert (report.kind, report.slots, report.recall, report.warnings) == ("ivf", 1, None, ())
    with pytest.raises(UsageError, match="fewer than two vectors"):
        tune_generation(tmp_path, None, tell_nobody)


def test_an_index_whose_documents_are_all_gone_needs_no_tuning(tmp_path: Path) -> None:
    with closing(Store.create(tmp_path, dim=DIM, vector_dtype=VectorDtype.F16, settings={}, canaries=[])) as store:
        append(store, clustered(50, DIM, 1))
    delete_documents(tmp_path, [f"d{i}" for i in range(50)])
    report = Index(tmp_path).rebuild(kind="ivf")
    assert (report.slots, report.recall, report.warnings) == (50, None, ())
    with pytest.raises(UsageError, match="fewer than two vectors"):
        tune_generation(tmp_path, None, tell_nobody)


def test_progress_goes_from_building_to_measuring_and_never_back(ann_index: Path) -> None:
    seen: list[Progress] = []
    rebuild_generation(ann_index, AnnOptions(kind="ivf"), seen.append)
    built, measured = ([p.fraction or 0.0 for p in seen if p.phase is phase] for phase in (Phase.INDEX, Phase.TUNE))
    assert [p.phase for p in seen] == [Phase.INDEX] * len(built) + [Phase.TUNE] * len(measured)
    assert built == sorted(built)
    assert built[-1] == 1.0
    assert measured == sorted(measured)
    assert len([share for share in measured if share <= 0.5]) > 1, "the exact neighbours take half of it, step by step"
    assert 0.5 < measured[-1] <= 1.0


def test_what_was_asked_for_once_holds_until_something_else_is_asked_for(ann_index: Path) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="ivf", target_recall=0.8), tell_nobody)
    with closing(Store.open(ann_index)) as store:
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        first = store.generations()
        bring_generation_up_to_date(store, AnnOptions(kind="ivf"), tell_nobody)
        assert store.generations() == first
        bring_generation_up_to_date(store, AnnOptions(kind="hnsw"), tell_nobody)
        (row,) = store.generations()
    assert row.kind == "hnsw"
    assert row.details["target_recall"] == 0.8


def test_dead_slots_are_neither_query_nor_answer_and_newer_slots_are_queries(
    ann_index: Path, vectors_6000: np.ndarray
) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    index = Generation(ann_index, row, DIM).index
    dead = np.sort(np.random.default_rng(3).choice(N, 1_500, replace=False))
    with closing(Store.open(ann_index)) as store:
        append(store, newer := clustered(2_000, DIM, 9))
    snapshot = snapshot_of(ann_index)
    with VectorReader(ann_index, snapshot.vector_file, snapshot.layout, N + 2_000) as reader:
        trial = Trial(reader, N, dead=dead)
        point = trial.measure(index, Effort(probes=3, depth=20))
    assert not np.isin(trial.own, dead).any()
    assert 0.2 < np.mean(trial.own >= N) < 0.4  # 2,000 of 6,500
    stored = np.concatenate((vectors_6000, newer)).astype(np.float16).astype(np.float32)
    live = ~np.isin(np.arange(N), dead)
    bits = np.packbits(live, bitorder="little")
    hits = []
    for own, query in zip(trial.own, trial.queries, strict=True):
        scores = np.where(live, stored[:N] @ query, -2)
        if own < N:
            scores[own] = -2
        truth = set(np.argsort(-scores)[:10].tolist())
        n = 20 + (own < N)
        _, slots = index.search(query[None], n, effort=Effort(probes=3, depth=20), allowed=bits)
        hits.append(len((set(slots[0].tolist()) - {own}) & truth) / 10)
    assert point.recall == pytest.approx(np.mean(hits), abs=2e-3)


def test_copies_of_a_vector_are_one_query(tmp_path: Path) -> None:
    stored = clustered(900, DIM, 1)
    stored[300:] = stored[300]
    with closing(Store.create(tmp_path, dim=DIM, vector_dtype=VectorDtype.F16, settings={}, canaries=[])) as store:
        append(store, stored)
    snapshot = snapshot_of(tmp_path)
    with VectorReader(tmp_path, snapshot.vector_file, snapshot.layout, 900) as reader:
        assert Trial(reader, 900).own.tolist() == list(range(301))


def test_what_was_asked_of_an_empty_index_holds_for_its_first_documents(tmp_path: Path) -> None:
    with closing(Store.create(tmp_path, dim=DIM, vector_dtype=VectorDtype.F16, settings={}, canaries=[])) as store:
        bring_generation_up_to_date(store, AnnOptions(kind="hnsw"), tell_nobody)
        append(store, clustered(50, DIM, 1))
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        assert store.generations()[0].kind == "hnsw"


@pytest.fixture
def often_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recall be measured again after 100 changes."""
    monkeypatch.setattr(indexer.upkeep, "CHECK_SLOTS", 100)


@pytest.mark.usefixtures("often_checked")
def test_recall_is_measured_again_after_many_changes(ann_index: Path) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="ivf", target_recall=0.8), tell_nobody)
    with closing(Store.open(ann_index)) as store:
        (before,) = store.generations()
        append(store, clustered(99, DIM, 6))
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        assert store.generations() == [before]
        append(store, clustered(1, DIM, 8))
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        (after,) = store.generations()
        assert (after.name, after.details["n_changed_at_check"]) == (before.name, 100)
        assert after.details["search"]["probes"] == before.details["search"]["probes"]  # type: ignore[index, call-overload]
        assert after.details["search"]["recall@10"] != before.details["search"]["recall@10"], "of other queries"  # type: ignore[index, call-overload]


@pytest.mark.usefixtures("often_checked")
def test_where_the_recall_has_become_too_low_the_index_is_tuned_again(ann_index: Path) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="ivf", target_recall=0.8), tell_nobody)
    with closing(Store.open(ann_index)) as store:
        append(store, clustered(100, DIM, 6))
        spoiled = change_row(store, search={"probes": 1, "depth": 1, "recall@10": 0.9})
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        (after,) = store.generations()
    assert after.name == spoiled.name
    assert after.details["search"]["recall@10"] >= 0.8  # type: ignore[index, call-overload, operator]


@pytest.mark.usefixtures("often_checked")
def test_what_tuning_cannot_mend_is_built_anew_unless_it_never_reached_its_target(ann_index: Path) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="PQ2x4", target_recall=0.999), tell_nobody)
    with closing(Store.open(ann_index)) as store:
        (missed,) = store.generations()
        append(store, clustered(100, DIM, 6))
        assert "recall@10" in bring_generation_up_to_date(store, AnnOptions(), tell_nobody)[0]
        (kept,) = store.generations()
        assert (kept.name, kept.details["n_changed_at_check"]) == (missed.name, 100)
        change_row(store, reached=True, n_changed_at_check=0)
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        (anew,) = store.generations()
    assert anew.name != missed.name
    assert anew.n_slots == N + 100


@pytest.mark.usefixtures("often_checked")
def test_a_check_that_finds_a_little_less_does_not_count_as_a_target_that_was_never_reached(
    ann_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="PQ2x4", target_recall=0.001), tell_nobody)
    with closing(Store.open(ann_index)) as store:
        append(store, clustered(100, DIM, 6))
        (row,) = store.generations()
        measured = Point(effort=Effort(probes=0, depth=100), recall=0.998, error=0.01, latency_ms=1.0)
        monkeypatch.setattr(Trial, "measure", lambda *_: measured)
        asked = {"kind": "PQ2x4", "target_recall": 0.999, "max_memory_bytes": None}
        change_row(store, asked=asked, target_recall=0.999)
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        assert store.generations()[0].details["search"]["recall@10"] == 0.998  # type: ignore[index, call-overload]
        append(store, clustered(100, DIM, 7))
        monkeypatch.setattr(Trial, "measure", lambda *_: replace(measured, error=0.0001))
        bring_generation_up_to_date(store, AnnOptions(), tell_nobody)
        assert store.generations()[0].name != row.name


@pytest.mark.usefixtures("often_checked")
def test_there_is_nothing_to_measure_when_all_documents_are_gone(ann_index: Path) -> None:
    delete_documents(ann_index, [f"d{i}" for i in range(N - 500)])
    rebuild_generation(ann_index, AnnOptions(kind="ivf"), tell_nobody)
    delete_documents(ann_index, [f"d{i}" for i in range(N)])
    with closing(Store.open(ann_index)) as store:
        (before,) = store.generations()
        assert bring_generation_up_to_date(store, AnnOptions(), tell_nobody) == []
        assert store.generations() == [before]


def test_an_interrupt_while_an_index_is_trained_leaves_the_old_one(ann_index: Path) -> None:
    row, _ = rebuild_generation(ann_index, AnnOptions(kind="flat"), tell_nobody)
    told = []

    def stop(progress: Progress) -> None:
        told.append(progress.fraction)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild_generation(ann_index, AnnOptions(kind="ivf"), stop)
    assert told == sorted(told)
    assert snapshot_of(ann_index).generation == row
    Store.open(ann_index).close()
    assert [path.name for path in ann_index.glob("gen-*")] == [row.name]


def test_the_commands_rebuild_tune_and_info_say_what_was_measured(ann_index: Path) -> None:
    from typer.testing import CliRunner

    from search.cli import app

    runner = CliRunner()
    rebuilt = runner.invoke(app, ["rebuild", str(ann_index), "--kind", "ivf", "--target-recall", "0.9", "--json"])
    assert rebuilt.exit_code == 0, rebuilt.output
    row = json.loads(rebuilt.stdout)
    assert row["kind"] == "ivf"
    assert row["details"]["search"]["recall@10"] >= 0.9
    tuned = runner.invoke(app, ["tune", str(ann_index), "--target-recall", "0.8", "--json"])
    assert tuned.exit_code == 0, tuned.output
    figures = json.loads(tuned.stdout)
    assert figures["reached"]
    assert figures["chosen"] in figures["points"]
    assert "<- chosen" in runner.invoke(app, ["tune", str(ann_index)]).stdout
    text = generation_text(snapshot_of(ann_index).generation.to_json())  # type: ignore[union-attr]
    assert "recall@10" in text
    assert "(target 0.8)" in text


def test_the_picture_is_a_png(ann_index: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from indexer.plot import draw_tuning

    rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    draw_tuning(tune_generation(ann_index, None, tell_nobody), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
