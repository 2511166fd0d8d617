"""Compaction keeps every live document with its vector, its age and its answers, and gives the rest back."""

from __future__ import annotations

import errno
import json
import os
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest
from fakes import FakeEncoder, fake_vector
from indexes import Oracle, build, flip_byte, only, records, searching, sql

from indexer import Index
from indexer.delete import delete_documents
from indexer.errors import IndexCorruptError, IndexLockedError, IndexNotFoundError, StorageError
from indexer.maintenance.compact import compact_index
from indexer.maintenance.verify import verify_index
from indexer.storage.lock import writer_lock
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store
from search import Searcher

QUERIES = ["text number 3", "text number 17", "something else"]


@pytest.fixture
def index(tmp_path: Path) -> tuple[Path, Oracle]:
    out = tmp_path / "index"
    build(out, records(60))
    changed = [{**record, "text": f"changed {record['id']}"} for record in records(10)]
    build(out, changed, adds=True)
    delete_documents(out, [f"d{i}" for i in range(20, 40)])
    oracle = Oracle().put(records(60)).put(changed)
    oracle.delete(f"d{i}" for i in range(20, 40))
    return out, oracle


def check(out: Path, oracle: Oracle) -> None:
    assert verify_index(out, deep=True) == []
    with searching(out) as searcher:
        oracle.check_searcher(searcher, QUERIES, 100)
        oracle.check_searcher(searcher, QUERIES, 7, where={"even": True}, keep=lambda record: record["even"])


def test_live_documents_stay_with_their_answers_and_dead_slots_go(index: tuple[Path, Oracle]) -> None:
    out, oracle = index
    old = {path.name for path in out.iterdir()}
    report = compact_index(out)
    assert (report.documents, report.passages, report.dropped) == (40, 40, 30)
    assert only(out, "vectors-*").stat().st_size == 4096 + 40 * 16 * 2
    assert only(out, "vectors-*").name not in old
    assert only(out, "gen-*").name not in old
    assert sql(out, "SELECT count(*), min(slot), max(slot) FROM passages") == [(40, 0, 39)]
    assert report.bytes_after < report.bytes_before
    check(out, oracle)
    assert build(out, records(60), encoder=(encoder := FakeEncoder()), adds=True).documents == 60
    assert len(encoder.texts) == 30
    check(out, oracle.put(records(60)))


def test_a_tie_still_goes_to_the_older_document(tmp_path: Path) -> None:
    same = [{"id": f"d{i}", "text": "the same" if i % 2 else f"other {i}"} for i in range(40)]
    build(tmp_path, same)
    delete_documents(tmp_path, ["d1", "d2", "d21"])
    compact_index(tmp_path)
    with searching(tmp_path) as searcher:
        assert [hit.id for hit in searcher.search("the same", 4)] == ["d3", "d5", "d7", "d9"]


def test_passages_and_float32_vectors_are_kept(tmp_path: Path) -> None:
    from indexer.config import VectorDtype

    long = [{"id": f"l{i}", "text": " ".join(f"word{i}{j}" for j in range(9))} for i in range(9)]
    build(tmp_path, long, encoder=FakeEncoder(chunk_tokens=4), vector_dtype=VectorDtype.F32)
    delete_documents(tmp_path, ["l0", "l4"])
    assert compact_index(tmp_path).passages == 21
    assert verify_index(tmp_path, deep=True) == []
    with searching(tmp_path) as searcher:
        (hit,) = searcher.search("word50 word51 word52 word53", 1, passages=True)
        assert (hit.id, hit.span, hit.score) == ("l5", (0, 27), pytest.approx(1.0, abs=1e-6))


def test_without_anything_dead_the_files_stay(tmp_path: Path) -> None:
    build(tmp_path, records(9))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert compact_index(tmp_path).dropped == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_emptied_index_becomes_small_and_can_be_filled_again(tmp_path: Path) -> None:
    build(tmp_path, records(2000))
    delete_documents(tmp_path, [], {})
    report = Index(tmp_path).compact()
    assert (report.documents, report.dropped) == (0, 2000)
    assert report.bytes_after < report.bytes_before / 4
    assert list(tmp_path.glob("gen-*")) == []
    build(tmp_path, records(5))
    check(tmp_path, Oracle().put(records(5)))


def test_a_reader_keeps_its_snapshot_and_then_sees_the_new_file(index: tuple[Path, Oracle]) -> None:
    out, oracle = index
    with searching(out) as searcher, searching(out) as other:
        view = searcher._view
        before = view.vectors.rows(view.snapshot.dead)
        compact_index(out)
        assert (view.vectors.rows(view.snapshot.dead) == before).all()
        oracle.check_searcher(other, QUERIES, 30)
        assert searcher.refresh()
        oracle.check_searcher(searcher, QUERIES, 30)


def test_free_pages_of_the_database_are_given_back(tmp_path: Path) -> None:
    build(tmp_path, records(6000))
    size = (tmp_path / "index.db").stat().st_size
    delete_documents(tmp_path, [f"d{i}" for i in range(100, 6000)])
    assert (tmp_path / "index.db").stat().st_size == size
    compact_index(tmp_path)
    assert (tmp_path / "index.db").stat().st_size < size / 5
    assert sql(tmp_path, "PRAGMA freelist_count") == [(0,)]


def test_a_damaged_vector_stops_it_and_nothing_changes(index: tuple[Path, Oracle]) -> None:
    out, _ = index
    flip_byte(only(out, "vectors-*"), 4096 + 3)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(IndexCorruptError, match=r"slots 0 to 59 are damaged; run: index repair"):
        compact_index(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_refused_write_stops_it_and_nothing_changes(call: str, index: tuple[Path, Oracle]) -> None:
    out, oracle = index
    names = {path.name for path in out.iterdir()}
    real, calls = getattr(os, call), 0

    def refuse(*arguments: int) -> int:
        nonlocal calls
        calls += 1
        if calls == (3 if call == "pwrite" else 2):  # the lock's own and the header go through
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with patch.object(os, call, refuse), pytest.raises(StorageError, match="No space left"):
        compact_index(out)
    assert {path.name for path in out.iterdir()} == names
    check(out, oracle)


def test_what_was_asked_of_the_generation_outlasts_a_compaction_that_is_cut_off(
    index: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = index
    Index(out).rebuild(kind="hnsw", target_recall=0.8)
    with monkeypatch.context() as patched:

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patched.setattr("indexer.upkeep.build_generation", stop)
        with pytest.raises(KeyboardInterrupt):
            compact_index(out)
    assert sql(out, "SELECT count(*) FROM generations") == [(0,)]
    compact_index(out)
    ((kind, details),) = sql(out, "SELECT kind, details FROM generations")
    assert (kind, json.loads(details)["target_recall"]) == ("hnsw", 0.8)
    check(out, oracle)


def test_it_needs_the_lock(index: tuple[Path, Oracle]) -> None:
    out, _ = index
    with writer_lock(out), pytest.raises(IndexLockedError):
        compact_index(out)


def test_blocks_of_single_documents_are_joined(tmp_path: Path) -> None:
    for record in records(12):
        build(tmp_path, [record], adds=(tmp_path / "index.db").exists())
    delete_documents(tmp_path, ["d0"])
    assert len(sql(tmp_path, "SELECT * FROM blocks")) == 12
    compact_index(tmp_path)
    assert [row[:2] for row in sql(tmp_path, "SELECT * FROM blocks")] == [(0, 11)]
    with Searcher.open(tmp_path) as searcher:
        assert searcher._view.vectors.rows(searcher._view.snapshot.dead).shape == (0, 16)
        assert fake_vector("text number 1") @ searcher._view.vectors.rows([0])[0] == pytest.approx(1, abs=1e-3)


def test_a_directory_that_is_no_index_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(IndexNotFoundError, match="is not an index"):
        compact_index(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_reader_that_keeps_the_free_pages_costs_no_more(
    index: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, oracle = index
    give_back = Store.give_back_pages

    def beside_a_reader(store: Store, step: int) -> bool:
        with closing(SnapshotReader(out)) as reader, reader.transaction():
            return give_back(store, step)

    monkeypatch.setattr("indexer.storage.database.BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(Store, "give_back_pages", beside_a_reader)
    for i in range(20):  # so that there are free pages
        build(out, [{"id": f"long{i}", "text": f"{i} " * 5_000}], adds=True)
    delete_documents(out, [f"long{i}" for i in range(20)])
    (warning,) = compact_index(out).warnings
    assert "compact again" in warning
    assert only(out, "gen-*")
    check(out, oracle)
    monkeypatch.setattr(Store, "give_back_pages", give_back)
    report = compact_index(out)
    assert report.warnings == ()
    assert report.bytes_after < report.bytes_before
