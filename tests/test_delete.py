"""Deleting by id and by filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder
from indexes import Oracle, build, records, searching, sql

from indexer import Index
from indexer.delete import DeleteReport, delete_documents
from indexer.errors import FilterError, IndexNotFoundError, UsageError
from indexer.maintenance.verify import verify_index
from indexer.storage.store import Store


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build(tmp_path, records(10))
    return tmp_path


def test_documents_are_deleted_by_id_and_unknown_ids_counted_once(index: Path) -> None:
    report = delete_documents(index, ["d3", "nobody", "d3", "d5", "nobody", "d", ""])
    assert report == DeleteReport(deleted=2, unknown=3, documents=8)
    oracle = Oracle().put(records(10))
    oracle.delete(["d3", "d5"])
    with searching(index) as searcher:
        oracle.check_searcher(searcher, ["text number 3"], 100)
    assert verify_index(index, deep=True) == []


def test_documents_are_deleted_by_filter_and_by_id_together(index: Path) -> None:
    report = delete_documents(index, ["d1", "d2"], {"even": True})
    assert (report.deleted, report.unknown, report.documents) == (6, 0, 4)
    assert sql(index, "SELECT id FROM documents") == [("d3",), ("d5",), ("d7",), ("d9",)]


def test_a_field_with_the_name_of_a_truth_value_changes_no_filter(tmp_path: Path) -> None:
    for name in ("true", "TRUE", "false", "null"):
        out = tmp_path / name
        build(
            out, [{"id": "a", "text": "a", "color": "red"}, {"id": "b", "text": "b"}, {"id": "c", "text": "c", name: 1}]
        )
        with searching(out) as searcher:
            assert {hit.id for hit in searcher.search("a", where={"color": {"$ne": "red"}})} == {"b", "c"}
            assert {hit.id for hit in searcher.search("a", where={name: {"$exists": False}})} == {"a", "b"}
        assert delete_documents(out, [], {"color": {"$exists": False}}).deleted == 2
        with searching(out) as searcher:
            assert [hit.id for hit in searcher.search("a")] == ["a"]


def test_deleting_again_finds_nothing_and_commits_nothing(index: Path) -> None:
    delete_documents(index, ["d1"])
    before = (index / "index.db").read_bytes()
    assert delete_documents(index, ["d1"]).unknown == 1
    assert delete_documents(index, [], {"n": 1}).deleted == 0
    assert (index / "index.db").read_bytes() == before


def test_a_filter_that_cannot_be_understood_deletes_nothing(index: Path) -> None:
    for where in ({"colour": "red"}, {"n": {"$near": 1}}, "n >"):
        with pytest.raises(FilterError):
            delete_documents(index, ["d1"], where)
    assert sql(index, "SELECT count(*) FROM documents") == [(10,)]


def test_an_id_that_could_not_be_in_an_index_is_unknown(index: Path) -> None:
    report = delete_documents(index, ["d1\0", "d1\0x", "\ud800", "d1 ", "D1"])
    assert (report.deleted, report.unknown) == (0, 5)


def test_an_id_that_was_an_integer_in_the_corpus_may_be_given_as_one(tmp_path: Path) -> None:
    build(tmp_path, [{"id": n, "text": f"text {n}"} for n in range(5)])
    report = Index(tmp_path).delete(np.array([3, 4, 17]))
    assert (report.deleted, report.unknown, report.documents) == (2, 1, 3)
    with searching(tmp_path) as searcher:
        assert {hit.id for hit in searcher.more_like(np.int64(1))} == {"0", "2"}
        assert searcher.known_ids([0, "1", 3]) == {"0", "1"}


@pytest.mark.parametrize("id_", [None, 1.0, True, b"d1", ["d1"]])
def test_what_is_no_id_is_refused_and_nothing_is_deleted(id_: Any, index: Path) -> None:
    with pytest.raises(UsageError, match="ids are texts"):
        Index(index).delete(["d1", id_])
    with searching(index) as searcher, pytest.raises(UsageError, match="ids are texts"):
        searcher.more_like(id_)
    assert sql(index, "SELECT count(*) FROM documents") == [(10,)]


def test_one_text_is_not_taken_for_the_ids_of_its_characters(index: Path) -> None:
    with pytest.raises(UsageError, match="ids is one text, 'd1'; give a list of ids"):
        Index(index).delete("d1")
    with pytest.raises(UsageError, match="ids is None; give a list of ids"):
        Index(index).delete(None)  # type: ignore[arg-type]
    assert sql(index, "SELECT count(*) FROM documents") == [(10,)]


def test_many_documents_are_deleted_in_commits_of_a_few_of_which_each_stands(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.storage.store._MOST_GONE", 3)
    ((before,),) = sql(index, "SELECT value FROM meta WHERE key = 'seq'")
    commit, n_commits = Store.commit, 0

    def cut_off(*args: Any) -> None:
        nonlocal n_commits
        n_commits += 1
        if n_commits == 3:
            raise KeyboardInterrupt
        commit(*args)

    monkeypatch.setattr(Store, "commit", cut_off)
    with pytest.raises(KeyboardInterrupt):
        delete_documents(index, ["d0"], {"n": {"$gte": 2}})
    assert sql(index, "SELECT id FROM documents ORDER BY row_id") == [("d1",), ("d7",), ("d8",), ("d9",)]
    assert sql(index, "SELECT value FROM meta WHERE key = 'seq'") == [(before + 2,)]
    assert verify_index(index, deep=True) == []
    assert delete_documents(index, ["d0"], {"n": {"$gte": 2}}) == DeleteReport(deleted=3, unknown=1, documents=1)


def test_a_deleted_document_can_come_back(index: Path) -> None:
    delete_documents(index, ["d1"])
    encoder = FakeEncoder()
    assert build(index, records(10), encoder=encoder).documents == 10
    assert encoder.texts == ["text number 1"]
    oracle = Oracle().put(records(10))
    oracle.delete(["d1"])
    with searching(index) as searcher:
        oracle.put(records(10)).check_searcher(searcher, ["text number 1"], 100)


def test_an_emptied_index_answers_with_nothing_and_can_be_filled_again(index: Path) -> None:
    assert delete_documents(index, [], "{}").documents == 0
    with searching(index) as searcher:
        assert len(searcher) == len(searcher.search("x")) == 0
        build(index, records(4))
        oracle = Oracle().put(records(4))
        oracle.check_searcher(searcher, ["text number 1"], 100)
    assert verify_index(index, deep=True) == []


def test_there_must_be_an_index(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError):
        delete_documents(tmp_path / "missing", ["d1"])
    with pytest.raises(IndexNotFoundError):
        Index(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_python_interface_deletes_and_verifies(index: Path) -> None:
    assert Index(index).delete(["d1"], where="n=2").deleted == 2
    assert Index(str(index)).verify(deep=True) == []
