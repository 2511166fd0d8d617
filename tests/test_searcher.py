"""Every answer compared with brute force: by every plan, with every filter, beside a writer that goes on."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from fakes import FakeEncoder, fake_vector
from gpus import let_a_card_search
from indexes import Oracle, Record, build, flip_byte, only, records, searching

import indexer.ingest
import indexer.upkeep
import search.filtered
import search.nearest
import search.searcher
import search.view
from indexer.ann.index import AnnIndex
from indexer.config import VectorDtype
from indexer.delete import delete_documents
from indexer.errors import FilterError, IndexerError, UsageError
from indexer.storage.snapshot import SnapshotReader
from search import Hits, Searcher
from search.view import View

N = 160
QUERIES = ["the same words", "text number 7", "nothing like it"]
WAYS = ["exact", "generation", pytest.param("card", marks=pytest.mark.gpu)]
NUMPY = {VectorDtype.F16: np.float16, VectorDtype.F32: np.float32}


def with_ties(n: int, first: int = 0) -> list[Record]:
    """Return documents of which every third has the same text."""
    return [{**r, "text": "the same words"} if r["n"] % 3 == 0 else r for r in records(n, first)]


def choose(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.nearest, "EXACT_SLOTS", 20_000 if way == "exact" else 2)
    if way == "card":
        let_a_card_search(monkeypatch)


@pytest.fixture(scope="module", params=VectorDtype)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    """An index with many commits, ties across them, changed texts, dead slots, and a tail beside its generation."""
    out = tmp_path_factory.mktemp("world") / "index"
    oracle = Oracle(NUMPY[request.param])
    changed = [{"id": f"d{i}", "text": "the same words" if i % 2 else f"new text {i}", "n": i} for i in range(5, 25)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(indexer.ingest, "COMMIT_TEXTS", 16)
        patched.setattr(indexer.build, "COMMIT_TEXTS", 16)
        for source in (with_ties(N), changed, with_ties(30, N)):
            build(out, source, vector_dtype=request.param)
            oracle.put(source)
    gone = [f"d{i}" for i in range(0, N + 30, 7)]
    delete_documents(out, gone)
    oracle.delete(gone)
    with closing(SnapshotReader(out)) as reader:
        snapshot = reader.snapshot()
    assert snapshot.generation is not None
    assert snapshot.generation.n_slots == N < snapshot.n_rows
    assert len(snapshot.dead) > 20
    return out, oracle


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("k", [1, 3, 10, 70, 10_000])
def test_hits_are_the_k_nearest_live_documents_and_the_oldest_win_ties(
    world: tuple[Path, Oracle], k: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = world
    choose(way, monkeypatch)
    with searching(out) as searcher:
        oracle.check_searcher(searcher, QUERIES, k)
        hits = searcher.search(QUERIES[0], k)
        assert len(hits) == min(k, len(oracle.held)) == min(k, len(searcher))
        assert ("index over" in hits.plan) == (way == "generation")
        assert hits.exact


def test_the_oldest_win_ties_although_the_generation_gives_the_youngest_first(
    world: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = world
    choose("generation", monkeypatch)
    real = AnnIndex.search

    def youngest_first(index: AnnIndex, queries: np.ndarray, k: int, *, allowed: np.ndarray | None) -> tuple:
        scores, slots = real(index, queries, index.n_slots, allowed=allowed)
        order = np.lexsort((-slots, -scores))[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(slots, order, 1)

    monkeypatch.setattr(AnnIndex, "search", youngest_first)
    with searching(out) as searcher:
        for k in (1, 3, 10, 30, 100):
            oracle.check_searcher(searcher, QUERIES, k)
            oracle.check_searcher(searcher, QUERIES, k, where={"n": {"$gt": 30}}, keep=lambda r: r["n"] > 30)


def test_ties_of_one_query_do_not_make_the_others_be_asked_again(
    world: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = world
    choose("generation", monkeypatch)
    real, asked = AnnIndex.search, []

    def counting(index: AnnIndex, queries: np.ndarray, k: int, *, allowed: np.ndarray | None) -> tuple:
        asked.append((len(queries), k))
        return real(index, queries, k, allowed=allowed)

    monkeypatch.setattr(AnnIndex, "search", counting)
    with searching(out) as searcher:
        oracle.check_searcher(searcher, QUERIES, 5)
    assert [n for n, _ in asked] == [3, 1, 1][: len(asked)]
    assert len(asked) > 1, "a third of the texts are the same words"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limit", [0, 1, 2, 20, 120, N, N + 10, N + 30])
def test_a_filter_gives_min_of_k_and_its_matches_whatever_their_share(
    world: tuple[Path, Oracle], limit: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = world
    choose(way, monkeypatch)
    with searching(out) as searcher:
        for k in (1, 10, 1_000):
            oracle.check_searcher(searcher, QUERIES, k, where={"n": {"$lt": limit}}, keep=lambda r: r["n"] < limit)
            where = {"$not": {"n": {"$lt": limit}}}
            oracle.check_searcher(searcher, QUERIES, k, where=where, keep=lambda r: r["n"] >= limit)


def test_the_same_condition_is_met_in_all_its_spellings(world: tuple[Path, Oracle]) -> None:
    out, oracle = world
    with searching(out) as searcher:
        for where in ({"even": True}, '{"even": true}', "even=true", {"$and": [{"even": True}, {}]}):
            hits = searcher.search("text number 7", 1_000, where=where)
            oracle.check(hits, fake_vector("text number 7"), 1_000, lambda record: record.get("even") is True)
        assert len(searcher.search("x", 1_000, where={"tags": {"$contains": "t1"}})) == sum(
            "t1" in record.get("tags", []) for _, record in oracle.held.values()
        )


def test_exact_compares_with_every_document_although_there_is_a_generation(
    world: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = world
    choose("generation", monkeypatch)
    with searching(out) as searcher:
        oracle.check_searcher(searcher, QUERIES, 10, exact=True)
        hits = searcher.search(QUERIES[0], exact=True)
        assert hits.exact
        assert hits.plan.startswith("exact: compared with")
        assert hits == searcher.search(QUERIES[0])


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_gives_what_its_queries_give_alone_to_the_last_bit(
    world: tuple[Path, Oracle], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(way, monkeypatch)
    queries = QUERIES + [f"query {i}" for i in range(20)]
    with searching(world[0]) as searcher:
        for where in (None, {"even": False}):
            batch = searcher.search_batch(queries, 8, where=where)
            assert [list(hits) for hits in batch] == [list(searcher.search(q, 8, where=where)) for q in queries]


@pytest.mark.parametrize("form", [tuple, iter, np.array, dict.fromkeys])
def test_queries_may_come_from_any_iterable(world: tuple[Path, Oracle], form: Callable[[list[str]], Any]) -> None:
    with searching(world[0]) as searcher:
        assert searcher.search_batch(form(QUERIES), 3) == searcher.search_batch(QUERIES, 3)


def test_without_text_all_else_is_the_same(world: tuple[Path, Oracle]) -> None:
    with searching(world[0]) as searcher:
        full, bare = searcher.search("x"), searcher.search("x", with_text=False)
        assert [hit.text for hit in bare] == [None] * 10
        assert [(h.id, h.score, h.metadata) for h in bare] == [(h.id, h.score, h.metadata) for h in full]


def test_what_cannot_be_asked_is_refused_and_the_searcher_goes_on(world: tuple[Path, Oracle]) -> None:
    with searching(world[0]) as searcher:
        with pytest.raises(UsageError, match="texts is one text, 'a cat'; give a list"):
            searcher.search_batch("a cat")
        with pytest.raises(UsageError, match="query 1 of 1 is a value of type NoneType; give some text"):
            searcher.search(None)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="query 2 of 3"):
            searcher.search_batch(["a", " \n", "c"])
        with pytest.raises(UsageError, match="k is 0"):
            searcher.search("x", 0)
        with pytest.raises(UsageError, match=r"k is 2\.5; it must be a whole number"):
            searcher.search("x", 2.5)  # type: ignore[arg-type]
        assert len(searcher.search("x", np.uint8(3))) == 3  # type: ignore[arg-type]
        with pytest.raises(FilterError, match="no document has the field 'colour'"):
            searcher.search("x", where={"colour": "red"})
        with pytest.raises(FilterError):
            searcher.search("x", where={"n": {"$near": 1}})
        with pytest.raises(UsageError, match="no document with id 'd0'"):
            searcher.more_like("d0")
        assert searcher.search_batch([]) == []
        assert len(searcher.search("x")) == 10


def test_a_closed_searcher_says_so(world: tuple[Path, Oracle]) -> None:
    with searching(world[0]) as searcher:
        searcher.search("x")
    for use in (
        lambda: searcher.search("x"),
        lambda: searcher.more_like("d1"),
        lambda: searcher.known_ids(["d1"]),
        lambda: searcher.types_of({"n": 1}),
        lambda: searcher.is_complete,
        lambda: len(searcher),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()
    searcher.close()


def test_a_model_is_let_go_of_when_no_thread_encodes_any_longer(world: tuple[Path, Oracle]) -> None:
    closed: list[str] = []

    class Slow(FakeEncoder):
        def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
            searcher.close()
            assert closed == [], "it is still in use"
            return super().encode_queries(texts)

        def close(self) -> None:
            closed.append("closed")

    with searching(world[0]) as searcher:
        searcher.search("x")
        searcher._encoder = Slow()
        with pytest.raises(UsageError, match="the searcher is closed"):
            searcher.search("x")
    assert closed == ["closed"]


@pytest.mark.parametrize("way", WAYS)
def test_more_like_is_a_search_for_the_stored_vector_without_the_document_itself(
    world: tuple[Path, Oracle], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = world
    choose(way, monkeypatch)
    with searching(out) as searcher:
        for id_ in ("d6", "d11", f"d{N + 2}"):
            for k in (1, 5, 1_000):
                hits = searcher.more_like(id_, k)
                rest = {other: held for other, held in oracle.held.items() if other != id_}
                text = oracle.held[id_][1]["text"]
                stored = fake_vector(text).astype(oracle.dtype).astype(np.float32)
                expected = Oracle(oracle.dtype)
                expected.held = rest
                expected.check(hits, stored / np.linalg.norm(stored), k)
        alike = searcher.more_like("d6", 3, where={"even": True})
        assert "d6" not in {hit.id for hit in alike}
        assert all(hit.metadata["even"] for hit in alike)


# Beside a writer.


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Oracle]:
    build(tmp_path, records(30))
    return tmp_path, Oracle().put(records(30))


NEW = [{"id": "new", "text": "text number 7", "n": 99}, {"id": "d7", "text": "another text", "n": 7}]


def commit_all(out: Path, oracle: Oracle) -> None:
    """Delete, change, rewrite and append at once: the answer to `text number 7` is another one now."""
    delete_documents(out, ["d1", "d2"])
    oracle.delete(["d1", "d2"])
    source = [*NEW, {**records(4)[3], "n": -1}]
    build(out, source)
    oracle.put(source)


@pytest.mark.parametrize("way", WAYS)
def test_a_searcher_sees_a_commit_at_its_next_search(
    small: tuple[Path, Oracle], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = small
    choose(way, monkeypatch)
    with searching(out) as searcher:
        oracle.check_searcher(searcher, ["text number 7"], 100)
        assert not searcher.refresh()
        commit_all(out, oracle)
        oracle.check_searcher(searcher, ["text number 7"], 100)
        oracle.check_searcher(searcher, ["x"], 100, where={"n": {"$lt": 9}}, keep=lambda r: r["n"] < 9)
        commit_all(out, oracle)
        assert searcher.refresh()
        assert len(searcher) == len(oracle.held)


def test_a_filter_may_name_a_field_that_came_with_the_last_commit(small: tuple[Path, Oracle]) -> None:
    out, _ = small
    with searching(out) as searcher:
        with pytest.raises(FilterError, match="colour"):
            searcher.search("x", where={"colour": "red"})
        build(out, [{"id": "red", "text": "a red one", "colour": "red"}])
        assert [hit.id for hit in searcher.search("x", where={"colour": "red"})] == ["red"]


def test_what_is_asked_of_fields_is_asked_of_the_newest_commit(small: tuple[Path, Oracle]) -> None:
    out, _ = small
    with searching(out) as searcher:
        assert searcher.known_ids(["d7"], {"n": {"$gt": 3}}) == {"d7"}
        build(out, [{"id": "new", "text": "a new one", "n": "many", "colour": "red"}])
        assert searcher.known_ids(["d7", "new"], {"n": {"$gt": 3}}) == {"d7"}, "types never cross"
        assert searcher.types_of({"n": 1, "colour": "red"}) == {"colour": ["string"], "n": ["integer", "string"]}
        with pytest.raises(FilterError, match="no document has the field 'size'"):
            searcher.types_of({"size": 1})


def hooked(real: Callable, act: Callable[[], None], times: int) -> Callable:
    """Return a function that does as the real one does, and then acts, the first few times."""
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        result = real(*arguments, **named)
        calls += 1
        if calls <= times:
            act()
        return result

    return call


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["nearest", "nearest_checked"])
def test_a_commit_in_the_middle_of_a_search_never_leads_to_wrong_or_missing_hits(
    small: tuple[Path, Oracle], place: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = small
    choose(way, monkeypatch)
    with searching(out) as searcher:
        hook = hooked(getattr(search.filtered, place), lambda: commit_all(out, oracle), 1)
        monkeypatch.setattr(search.filtered, place, hook)
        hits = searcher.search("text number 7", 25, where={"n": {"$gte": 0}})
        oracle.check(hits, fake_vector("text number 7"), 25, lambda record: record["n"] >= 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_search_that_every_commit_overtakes_ends_with_the_newest_state(
    small: tuple[Path, Oracle], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = small
    choose(way, monkeypatch)
    n_added = 0

    def add() -> None:
        nonlocal n_added
        n_added += 1
        source = [{"id": f"late{n_added}", "text": "text number 7", "n": n_added}]
        build(out, source)
        oracle.put(source)

    with searching(out) as searcher:
        monkeypatch.setattr(search.searcher, "nearest", hooked(search.searcher.nearest, add, search.searcher._TRIES))
        hits = searcher.search("text number 7", 100)
        assert n_added == search.searcher._TRIES
        oracle.check(hits, fake_vector("text number 7"), 100)


def test_more_like_a_document_that_is_just_being_replaced(
    small: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = small
    real = Searcher._search

    def replaced_first(searcher: Searcher, *arguments: Any) -> list[Hits]:
        source = [{"id": "d7", "text": "quite another text", "n": 7}]
        build(out, source)
        oracle.put(source)
        return real(searcher, *arguments)

    with searching(out) as searcher:
        monkeypatch.setattr(Searcher, "_search", replaced_first)
        hits = searcher.more_like("d7", 100)
    assert {hit.id for hit in hits} == set(oracle.held) - {"d7"}


def test_a_generation_that_a_writer_replaces_under_a_searcher_is_looked_up_again(
    small: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = small
    choose("generation", monkeypatch)
    monkeypatch.setattr(indexer.upkeep, "TAIL_SLOTS", 0)
    real = View.generation
    done = []

    def rebuilt_first(view: View) -> object:
        if not done:
            done.append(True)
            commit_all(out, oracle)
        return real(view)

    with searching(out) as searcher:
        old = only(out, "gen-*")
        monkeypatch.setattr(View, "generation", rebuilt_first)
        hits = searcher.search("text number 7", 100)
        assert not old.exists()
        oracle.check(hits, fake_vector("text number 7"), 100)
        assert "index over" in hits.plan


def test_a_commit_that_keeps_the_generation_does_not_make_a_searcher_open_it_again(
    small: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = small
    choose("generation", monkeypatch)
    opened = []
    real = search.nearest.Generation.__init__

    def counted(self: object, *arguments: object, **options: object) -> None:
        opened.append(True)
        real(self, *arguments, **options)  # type: ignore[arg-type]

    with searching(out) as searcher:
        monkeypatch.setattr(search.nearest.Generation, "__init__", counted)
        oracle.check_searcher(searcher, ["text number 7"], 10)
        assert len(opened) == 1
        commit_all(out, oracle)
        opened.clear()  # the writer looks at it, too
        oracle.check_searcher(searcher, ["text number 7"], 10)
        assert opened == []
        monkeypatch.setattr(indexer.upkeep, "TAIL_SLOTS", 0)
        build(out, [more := {"id": "more", "text": "and more", "n": 1}])
        oracle.put([more])
        opened.clear()
        oracle.check_searcher(searcher, ["text number 7"], 10)
        assert opened == [True]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "directory"])
@pytest.mark.parametrize("is_open", [False, True])
def test_without_its_generation_an_index_answers_exactly(
    small: tuple[Path, Oracle], damage: str, is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = small
    choose("generation", monkeypatch)
    with searching(out) as searcher:
        path = only(out, "gen-*")
        match damage:
            case "flip":
                flip_byte(path, -1)
            case "truncate":
                path.write_bytes(path.read_bytes()[:100])
            case "remove" | "directory":
                path.unlink()
                if damage == "directory":
                    path.mkdir()
        if is_open:
            oracle.check_searcher(searcher, QUERIES, 10)
    with searching(out) as searcher:
        oracle.check_searcher(searcher, QUERIES, 10)
        hits = searcher.search("x", where={"n": {"$gte": 0}})
        oracle.check(hits, fake_vector("x"), 10)
        assert hits.plan.startswith("exact")


def test_a_searcher_in_the_middle_of_a_build_finds_what_is_committed_and_knows_that_it_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (indexer.ingest, indexer.build):
        monkeypatch.setattr(module, "COMMIT_TEXTS", 10)
    seen: list[tuple[bool, int]] = []

    def look(_progress: object) -> None:
        if not (tmp_path / "index.db").exists():
            return
        with searching(tmp_path) as searcher:
            seen.append((searcher.is_complete, len(searcher)))
            Oracle().put(records(len(searcher))).check_searcher(searcher, ["text number 7"], 100)

    build(tmp_path, records(25), on_progress=look)
    assert list(dict.fromkeys(seen)) == [(False, 10), (False, 20), (False, 25), (True, 25)]


def test_threads_that_share_a_searcher_each_see_one_commit(tmp_path: Path) -> None:
    sizes = range(10, 60, 10)
    build(tmp_path, records(sizes[0]))
    expected = {
        tuple(id_ for id_, _ in Oracle().put(records(n)).nearest(fake_vector("x"), 100, lambda _: True)) for n in sizes
    }
    stop, wrong, answered = threading.Event(), [], []

    def ask(searcher: Searcher) -> None:
        while not stop.is_set():
            try:
                ids = tuple(hit.id for hit in searcher.search("x", 100))
            except IndexerError as error:
                wrong.append(error)
                return
            answered.append(len(ids))
            if ids not in expected:
                wrong.append(ids)

    with searching(tmp_path) as searcher:
        threads = [threading.Thread(target=ask, args=(searcher,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for n in sizes[1:]:
            build(tmp_path, records(n))
        stop.set()
        for thread in threads:
            thread.join()
        assert len(searcher.search("x", 100)) == sizes[-1]
    assert wrong == []
    assert answered


class Held:
    """Holds up whoever calls it, until it is let go."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real = real
        self.is_there, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.is_there.set()
        assert self.goes_on.wait(60)
        return self._real(*args, **options)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Holds up each search under a filter while it compares vectors."""
    held = Held(search.filtered.nearest)
    monkeypatch.setattr(search.filtered, "nearest", held)
    return held


def test_a_search_waits_for_no_other(tmp_path: Path, held: Held) -> None:
    build(tmp_path, records(40))
    oracle = Oracle().put(records(40))
    with searching(tmp_path) as searcher, ThreadPoolExecutor() as threads:
        slow = threads.submit(searcher.search, "text number 7", 5, where={"even": True})
        assert held.is_there.wait(60)
        oracle.check_searcher(searcher, QUERIES, 10)
        build(tmp_path, records(41))
        assert searcher.refresh()
        assert not slow.done()
        held.goes_on.set()
        expected = oracle.nearest(fake_vector("text number 7"), 5, lambda record: record["even"])
        assert [hit.id for hit in slow.result(60)] == [id_ for id_, _ in expected]


def test_files_stay_open_for_a_search_that_is_under_way_and_no_longer(tmp_path: Path, held: Held) -> None:
    build(tmp_path, records(40))
    with searching(tmp_path) as searcher, ThreadPoolExecutor() as threads:
        vectors = searcher._view.vectors
        slow = threads.submit(searcher.search, "text number 7", 5, where={"n": {"$lt": 20}})
        assert held.is_there.wait(60)
        build(tmp_path, records(41))
        assert searcher.refresh()
        assert vectors.rows(np.array([3])).shape == (1, 16)
        held.goes_on.set()
        assert slow.result(60)[0].id == "d7"
        with pytest.raises(IndexError):
            vectors.rows(np.array([3]))


def test_a_search_that_is_under_way_ends_although_its_searcher_is_closed(tmp_path: Path, held: Held) -> None:
    build(tmp_path, records(40))
    with searching(tmp_path) as searcher, ThreadPoolExecutor() as threads:
        slow = threads.submit(searcher.search, "text number 7", 5, where={"n": {"$lt": 20}})
        assert held.is_there.wait(60)
        searcher.close()
        with pytest.raises(UsageError, match="closed"):
            searcher.search("text number 7")
        held.goes_on.set()
        assert slow.result(60)[0].id == "d7"
        with pytest.raises(sqlite3.ProgrammingError):
            searcher._reader.seq()


def test_threads_of_a_searcher_do_not_keep_a_writer_waiting(tmp_path: Path) -> None:
    build(tmp_path, records(300))
    ended = threading.Event()
    n_open, most = 0, 0
    mine: list[SnapshotReader] = []
    begin = SnapshotReader._begin

    @contextmanager
    def counted(reader: SnapshotReader) -> Iterator[None]:
        nonlocal n_open, most
        with begin(reader):
            n_open += reader in mine
            most = max(most, n_open)
            try:
                yield
            finally:
                n_open -= reader in mine

    def ask(searcher: Searcher, number: int) -> None:
        while not ended.is_set():
            number = number * 7 % 299 + 1
            searcher.search("x", 50, where={"n": {"$ne": number}})

    with (
        patch.object(SnapshotReader, "_begin", counted),
        searching(tmp_path) as searcher,
        ThreadPoolExecutor() as threads,
    ):
        mine.append(searcher._reader)
        asking = [threads.submit(ask, searcher, number) for number in range(1, 7)]
        try:
            for n in range(10):
                build(tmp_path, [{"id": f"more {n}", "text": "more", "n": n}])
        finally:
            ended.set()
        for each in asking:
            each.result(60)
    assert most == 1  # transactions that overlap would let no commit in as long as one always follows


@pytest.mark.parametrize("way", ["exact", "generation"])
def test_many_threads_with_many_filters_find_what_brute_force_finds(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(way, monkeypatch)
    monkeypatch.setattr(search.view, "_CACHED_FILTERS", 3)
    build(tmp_path, records(120))
    oracle = Oracle().put(records(120))
    ended = threading.Event()

    def ask(searcher: Searcher, number: int) -> int:
        rng, n = np.random.default_rng(number), 0
        while not ended.is_set() or n < 30:
            most, text = int(rng.integers(5, 100)), f"text number {rng.integers(120)}"
            hits = searcher.search(text, 4, where={"n": {"$lt": most}})
            expected = oracle.nearest(fake_vector(text), 4, lambda record: record["n"] < most)  # noqa: B023
            assert [hit.id for hit in hits] == [id_ for id_, _ in expected]
            n += 1
        return n

    with searching(tmp_path) as searcher, ThreadPoolExecutor() as threads:
        asking = [threads.submit(ask, searcher, number) for number in range(4)]
        try:
            for n in range(8):  # commits that change no answer
                build(tmp_path, [{**records(120)[119], "m": n}])
        finally:
            ended.set()
        assert all(each.result(120) >= 30 for each in asking)
