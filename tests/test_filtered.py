"""Filters of which nothing is known yet: candidates are looked up, and what is found is what a bitmap gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anns import (
    DIM,
    KINDS,
    N,
    append,
    clustered,
    exact,
    found_share,
    giving_copies_first,
    nearest_through_generation,
    snapshot_of,
)
from fakes import fake_vector
from indexes import Oracle, build, records, searching

import search.filtered
from indexer.allowed import Allowed
from indexer.ann.kinds import AnnOptions
from indexer.delete import delete_documents
from indexer.filters import compile_filter, parse_filter
from indexer.progress import tell_nobody
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store
from indexer.upkeep import rebuild_generation
from search.filtered import Meeting, nearest_checked
from search.nearest import Nearest
from search.view import View

QUERIES = 40


def looking_up(keep: np.ndarray) -> Meeting:
    """Return what looks slots up, once each, in a mask of those that meet the filter."""

    def meeting(slots: np.ndarray) -> np.ndarray:
        assert (np.diff(slots) > 0).all()
        return slots[keep[slots]]

    return meeting


@pytest.fixture(autouse=True)
def few_are_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small indexes be searched as large ones are."""
    monkeypatch.setattr("search.nearest.EXACT_SLOTS", 5)
    monkeypatch.setattr("search.nearest.EXACT_SLOTS_BESIDE_IVF", 5)


def checked(view: View, queries: np.ndarray, k: int, keep: np.ndarray, most: int = 16_384) -> list[Nearest | None]:
    return [nearest_checked(view, query[None], k, looking_up(keep), most) for query in queries]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_is_as_near_as_with_a_bitmap(ann_index: Path, vectors_6000: np.ndarray, kind: str) -> None:
    rebuild_generation(ann_index, AnnOptions(kind=kind), tell_nobody)
    view = View.open(ann_index, snapshot_of(ann_index))
    queries = clustered(QUERIES, DIM, 5)
    for share, k in itertools.product((0.2, 0.5, 1.0), (1, 10, 40)):
        keep = np.random.default_rng(3).random(N) < share
        found = [each for each in checked(view, queries, k, keep) if each is not None]
        slots = [each.slots[0] for each in found]
        assert len(found) == QUERIES
        assert all(len(near) == k and keep[near].all() for near in slots)
        assert all((np.diff(each.scores[0]) <= 0).all() for each in found)
        assert all("candidates meet the filter" in each.plan and not each.exact for each in found)
        allowed = Allowed.only(np.flatnonzero(keep), N)
        with_bitmap = [nearest_through_generation(view, query[None], k, allowed).slots[0] for query in queries]
        truth = exact(vectors_6000, queries, k, keep)
        assert found_share(slots, truth) >= min(0.95, found_share(with_bitmap, truth) - 0.02)


@pytest.mark.parametrize("kind", ["flat", "PQ32"])
def test_an_exact_index_and_one_that_takes_no_filter_have_the_bitmap(ann_index: Path, kind: str) -> None:
    rebuild_generation(ann_index, AnnOptions(kind=kind, target_recall=0.5), tell_nobody)
    view = View.open(ann_index, snapshot_of(ann_index))
    assert checked(view, clustered(1, DIM, 5), 10, np.ones(N, np.bool_)) == [None]


def test_what_can_be_compared_one_by_one_is_not_looked_up_in_the_index(
    ann_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    view = View.open(ann_index, snapshot_of(ann_index))
    for share, at_most in itertools.product((0.3, 1.0), (N * 0.05, N * 0.9, N)):
        monkeypatch.setattr("search.nearest.EXACT_SLOTS", at_most)
        keep = np.random.default_rng(3).random(N) < share
        found = checked(view, clustered(5, DIM, 5), 10, keep)
        assert [each is None for each in found] == [share * N <= at_most] * 5


def test_a_filter_that_passes_next_to_nothing_does_not_open_the_index(ann_index: Path) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    view = View.open(ann_index, snapshot_of(ann_index))
    assert checked(view, clustered(1, DIM, 5), 10, np.arange(N) == 77) == [None]
    assert not view.is_searched()


def test_no_more_is_looked_up_than_is_allowed(ann_index: Path, vectors_6000: np.ndarray) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    with closing(Store.open(ann_index)) as store:
        append(store, clustered(3_000, DIM, 8))
    view = View.open(ann_index, snapshot_of(ann_index))
    far = np.concatenate((vectors_6000 @ vectors_6000[0] < 0.3, np.ones(3_000, np.bool_)))
    for most in (10, 100, 500, 3_000):
        counts = []

        def counted(slots: np.ndarray, counts: list[int] = counts) -> np.ndarray:
            counts.append(len(slots))
            return looking_up(far)(slots)

        nearest_checked(view, vectors_6000[:1], 10, counted, most)
        assert sum(counts) <= most + search.filtered._SAMPLE


def test_without_a_generation_the_bitmap_tells(ann_index: Path) -> None:
    view = View.open(ann_index, snapshot_of(ann_index))
    assert checked(view, clustered(1, DIM, 5), 10, np.ones(N, np.bool_)) == [None]


def test_where_little_around_a_query_meets_the_filter_the_bitmap_tells(
    ann_index: Path, vectors_6000: np.ndarray
) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    view = View.open(ann_index, snapshot_of(ann_index))
    query = vectors_6000[:1]
    far = vectors_6000 @ query[0] < np.quantile(vectors_6000 @ query[0], 0.5)
    assert checked(view, query, 10, far, 1_000) == [None]
    assert checked(view, query, 10, ~far, 1_000) != [None]


@pytest.mark.parametrize("most", [100, 16_384])
@pytest.mark.parametrize("n_newer_that_meet", [0, 3, 300])
def test_dead_slots_are_no_candidates_and_newer_ones_are(
    ann_index: Path,
    vectors_6000: np.ndarray,
    n_newer_that_meet: int,
    most: int,
) -> None:
    query = clustered(1, DIM, 5)
    # All newer ones are nearer than anything else, and most of them do not meet the filter.
    newer = query + np.random.default_rng(4).standard_normal((900, DIM)).astype(np.float32) * 0.02
    newer /= np.linalg.norm(newer, axis=1, keepdims=True)
    nearest_old = np.argsort(-(vectors_6000 @ query[0]))[:50]
    keep = np.arange(N + 900) % 2 == 0
    keep[N:] = False
    keep[np.random.default_rng(5).choice(900, n_newer_that_meet, replace=False) + N] = True
    rebuild_generation(ann_index, AnnOptions(kind="IVF32,SQ8"), tell_nobody)
    with closing(Store.open(ann_index)) as store:
        append(store, newer)
    delete_documents(ann_index, [f"d{slot}" for slot in nearest_old])
    view = View.open(ann_index, snapshot_of(ann_index))
    (found,) = checked(view, query, 10, keep, most)
    if most == 100:
        assert found is None, "others that meet the filter may be among those not looked up"
        return
    keep[nearest_old] = False
    assert found is not None
    assert found_share(found.slots, exact(np.concatenate((vectors_6000, newer)), query, 10, keep)) >= 0.9
    assert keep[found.slots[0]].all()
    assert np.count_nonzero(found.slots[0] >= N) == min(n_newer_that_meet, 10)
    assert "900 newer ones compared one by one" in found.plan


@pytest.mark.parametrize("n_newer", [0, 300])
def test_copies_of_one_vector_do_not_stand_before_nearer_ones(
    tmp_path: Path, n_newer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, queries, _ = giving_copies_first(tmp_path, range(500, 1_000), n_newer, monkeypatch)
    view = View.open(tmp_path, snapshot_of(tmp_path))
    keep = np.arange(len(stored)) % 2 == 0
    found = [each.slots[0] for each in checked(view, queries, 10, keep) if each is not None]
    assert found_share(found, exact(stored, queries, 10, keep)) == 1.0
    assert len(found) == len(queries)
    assert checked(view, queries, 10, keep, 400) == [None] * 5


FILTERS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    ({"even": True}, lambda record: record["even"]),
    ({"n": {"$gte": 200}}, lambda record: record["n"] >= 200),
    ({"tags": {"$contains": "t1"}}, lambda record: "t1" in record["tags"]),
    ({"a field": "odd"}, lambda record: record["a field"] == "odd"),
    ({"$not": {"n": {"$in": list(range(0, 1000, 4))}}}, lambda record: record["n"] % 4 != 0 or record["n"] >= 1000),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    """An index with an approximate generation that looks everywhere, changed and deleted documents, and a tail."""
    out = tmp_path_factory.mktemp("checking") / "index"
    source = [{**record, "a field": "odd" if record["n"] % 2 else "even"} for record in records(2_000)]
    oracle = Oracle().put(source[:1_800])
    build(out, source[:1_800], ann=AnnOptions(kind="IVF8,SQ8", target_recall=1.0))
    changed = [{**record, "n": record["n"] + 1_000} for record in source[:60]]
    build(out, changed)
    build(out, source[1_800:])
    oracle.put(changed).put(source[1_800:])
    gone = [f"d{i}" for i in range(0, 2_000, 9)]
    delete_documents(out, gone)
    oracle.delete(gone)
    return out, oracle


@pytest.mark.parametrize(("where", "keep"), FILTERS)
def test_slots_looked_up_are_those_that_the_whole_index_is_searched_for(
    world: tuple[Path, Oracle], where: dict[str, Any], keep: Callable[[dict[str, Any]], bool]
) -> None:
    out, oracle = world
    with closing(SnapshotReader(out)) as reader, reader.transaction():
        condition = compile_filter(parse_filter(where), reader.snapshot().fields)
        every = reader.matching_slots(condition)
        assert len(every) == sum(keep(record) for _, record in oracle.held.values())
        np.testing.assert_array_equal(reader.meeting(np.arange(reader.snapshot().n_rows), condition), every)
        some = np.arange(3, reader.snapshot().n_rows, 7)
        np.testing.assert_array_equal(reader.meeting(some, condition), np.intersect1d(some, every))
        assert not len(reader.meeting(some[:0], condition))


@pytest.mark.parametrize(("where", "keep"), FILTERS)
def test_a_searcher_answers_alike_while_it_looks_up_candidates_and_with_the_bitmap_that_follows(
    world: tuple[Path, Oracle],
    where: dict[str, Any],
    keep: Callable[[dict[str, Any]], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, oracle = world
    monkeypatch.setattr("search.view._ROWS_A_LOOKUP", 1)
    with searching(out) as searcher:
        looked_up = []
        for i in range(40):
            hits = searcher.search(f"query {i}", 10, where=where)
            oracle.check(hits, fake_vector(f"query {i}"), 10, keep)
            looked_up.append("candidates meet the filter" in hits.plan)
        assert looked_up == sorted(looked_up, reverse=True)
        assert {looked_up[0], looked_up[-1]} == {True, False}


def test_many_queries_and_exact_search_have_the_bitmap_at_once(
    world: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = world
    monkeypatch.setattr("search.view._ROWS_A_LOOKUP", 1)
    where, keep = FILTERS[0]
    for ask in ({"exact": True}, {"texts": ["one", "two"]}):
        with searching(out) as searcher:
            for query, hits in zip(
                ask.get("texts", ["one"]),
                searcher.search_batch(ask.get("texts", ["one"]), 10, where=where, exact=ask.get("exact", False)),
                strict=True,
            ):
                oracle.check(hits, fake_vector(query), 10, keep)
                assert "allowed" in hits.plan or "exact" in hits.plan


def test_each_filter_has_lookups_of_its_own_and_one_that_is_asked_seldom_is_forgotten(
    ann_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.view._CACHED_FILTERS", 3)
    view = View.open(ann_index, snapshot_of(ann_index))
    first, *others = (parse_filter({"n": n}) for n in range(4))
    assert view.lookups_left(first) == N // 200
    view.count_lookups(first, 20)
    view.count_lookups(first, 4)
    assert [view.lookups_left(wanted) for wanted in (first, others[0])] == [6, 30]
    for other in others:
        view.count_lookups(other, 30)
    assert [view.lookups_left(wanted) for wanted in (first, *others)] == [30, 0, 0, 0]


def test_a_commit_while_candidates_are_looked_up_is_searched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    source = records(1_000)
    build(out, source, ann=AnnOptions(kind="IVF8,SQ8", target_recall=1.0))
    oracle = Oracle().put(source)
    monkeypatch.setattr("search.view._ROWS_A_LOOKUP", 1)
    done: list[bool] = []

    def searched_then_overtaken(*arguments: Any) -> Nearest | None:
        found = nearest_checked(*arguments)
        if not done:
            done.append(True)
            delete_documents(out, [near := "d500"])
            oracle.delete([near])
            build(out, late := [{"id": "late", "text": "text number 501", "n": 4, "even": True, "tags": []}])
            oracle.put(late)
        return found

    monkeypatch.setattr(search.filtered, "nearest_checked", searched_then_overtaken)
    with searching(out) as searcher:
        for text in ("text number 500", "text number 501"):
            hits = searcher.search(text, 10, where={"even": True})
            oracle.check(hits, fake_vector(text), 10, lambda record: record["even"])
    assert done
