"""The commit: all or none, whatever fails, and the same files afterwards."""

from __future__ import annotations

import errno
import gc
import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from fakes import fake_vector
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import only, sql

import indexer.storage.database
import indexer.storage.holdings
from indexer.config import VectorDtype
from indexer.documents import Document, Place, text_key
from indexer.errors import IndexCorruptError, IndexerError, IndexFormatError, StorageError
from indexer.maintenance.verify import verify_index
from indexer.storage.changes import Changes, NewDocument, PassageRow
from indexer.storage.database import connect_writer
from indexer.storage.metadata import MetadataTable
from indexer.storage.rows import DocumentRows
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store

DIM = 16


def document(id_: str, text: str, **metadata: Any) -> Document:
    return Document(id_, text, metadata, Place("corpus.jsonl", 1))


def create(directory: Path) -> Store:
    settings_ = {"contract": {}, "read": {"text_fields": ["text"]}}
    canaries = [("a canary", fake_vector("a canary"))]
    return Store.create(directory, dim=DIM, vector_dtype=VectorDtype.F32, settings=settings_, canaries=canaries)


def append(store: Store, documents: Sequence[Document], replaces: Sequence[int | None] = ()) -> None:
    source = store.source("corpus.jsonl")
    new = [
        NewDocument(d, source, (PassageRow(None, None, text_key(d.text), len(d.text.split()), 0),), old)
        for d, old in zip(documents, replaces or [None] * len(documents), strict=True)
    ]
    store.commit(Changes(appended=new), np.stack([fake_vector(d.text) for d in documents]))


def n_open_files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def dump(directory: Path) -> list[str]:
    with closing(sqlite3.connect(directory / "index.db")) as connection:
        return list(connection.iterdump())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(create(tmp_path)) as store:
        append(store, [document("a", "one", year=2020), document("b", "two", year=2021, extra="x")])
        yield store


def test_a_writer_uses_a_truncated_rollback_journal_and_full_synchronisation(store: Store) -> None:
    with closing(connect_writer(store.directory / "index.db")) as connection:
        pragmas = ("journal_mode", "synchronous", "cache_spill", "trusted_schema")
        values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert values == ["truncate", 2, 0, 0]


def test_the_vectors_are_durable_before_the_commit_that_names_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_transaction = os.fsync, indexer.storage.store.transaction
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(
        indexer.storage.store, "transaction", lambda *a: (steps.append("begin"), real_transaction(*a))[1]
    )
    store.source("corpus.jsonl")
    steps.clear()
    append(store, [document("c", "three")])
    assert steps == ["fsync", "begin"]


def test_committed_vectors_stand_in_the_order_of_the_documents(store: Store) -> None:
    append(store, [document("c", "three"), document("d", "four")])
    expected = np.stack([fake_vector(text) for text in ("one", "two", "three", "four")])
    np.testing.assert_array_equal(store.vectors(np.arange(4)), expected)
    assert sql(store.directory, "SELECT p.slot, d.id FROM passages p JOIN documents d ON d.row_id = p.document") == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
        (3, "d"),
    ]


def test_a_changed_text_is_a_tombstone_and_an_append_and_a_delete_leaves_a_tombstone(store: Store) -> None:
    append(store, [document("a", "one, changed")], [1])
    store.commit(Changes(gone=[2]), store.no_vectors())
    assert sql(store.directory, "SELECT slot, document FROM passages") == [(0, None), (1, None), (2, 3)]
    assert sql(store.directory, "SELECT id, text FROM documents") == [("a", "one, changed")]
    assert store.counts() == {"documents": 1, "passages": 1, "dead": 2}
    assert verify_index(store.directory, deep=True) == []


STEPS = {
    "check": (Store, "_check_rows_stand"),
    "remove": (DocumentRows, "remove"),
    "rewrite": (DocumentRows, "rewrite"),
    "append": (DocumentRows, "append"),
    "metadata rows": (MetadataTable, "add"),
    "catalogue": (MetadataTable, "finish"),
}


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_undoes_all_and_the_next_commit_works(
    step: str, after: bool, error: BaseException, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, before = store.directory, dump(store.directory)
    owner, name = STEPS[step]
    real = getattr(owner, name)

    def fail(*arguments: Any) -> None:
        if after:
            real(*arguments)
        raise error

    source = store.source("corpus.jsonl")
    changed = document("b", "two, changed", year="no number", other=1.5)
    new = NewDocument(changed, source, (PassageRow(None, None, text_key(changed.text), 2, 0),), 2)
    changes = Changes(rewritten=[(1, document("a", "one", brand_new=True), 1)], appended=[new])
    vectors = fake_vector(changed.text)[None]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        with pytest.raises((StorageError, KeyboardInterrupt, MemoryError)):
            store.commit(changes, vectors)
    assert dump(directory) == before
    assert store.n_rows == 2
    store.commit(changes, vectors)
    assert sql(directory, "SELECT id, text FROM documents ORDER BY id") == [("a", "one"), ("b", "two, changed")]
    assert verify_index(directory, deep=True) == []


def test_a_commit_that_a_reader_holds_up_too_long_is_undone_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.storage.database, "BUSY_TIMEOUT_S", 0.05)
    with closing(create(tmp_path)) as store:
        append(store, [document("a", "one")])
        with closing(SnapshotReader(tmp_path)) as reader:
            with reader.transaction(), pytest.raises(StorageError, match="reading it in one transaction for longer"):
                append(store, [document("b", "two")])
            assert reader.totals().documents == 1
        append(store, [document("c", "three")])
    assert sql(tmp_path, "SELECT id FROM documents") == [("a",), ("c",)]
    assert verify_index(tmp_path, deep=True) == []


def test_a_commit_waits_for_a_reader_longer_than_sqlite_does_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.storage.database, "BUSY_TIMEOUT_S", 0.02)
    monkeypatch.setattr(indexer.storage.database, "_COMMIT_TRIES", 1_000)
    tries: SimpleQueue[str] = SimpleQueue()
    with closing(create(tmp_path)) as store, closing(SnapshotReader(tmp_path)) as reader:
        append(store, [document("a", "one")])
        store._sql.set_trace_callback(lambda statement: tries.put(statement) if statement == "COMMIT" else None)
        with ThreadPoolExecutor() as threads:
            with reader.transaction():
                committed = threads.submit(append, store, [document("b", "two")])
                for _ in range(3):  # of several commits, the source's among them, one is tried again
                    tries.get(timeout=60)
                assert not committed.done()
            committed.result(timeout=60)
    assert sql(tmp_path, "SELECT id FROM documents") == [("a",), ("b",)]


def test_an_interrupt_between_two_tries_of_a_commit_undoes_it(tmp_path: Path) -> None:
    with closing(create(tmp_path)) as store:
        append(store, [document("a", "one")])

        class Interrupted:
            """A connection whose first COMMIT finds a reader, and whose second meets Ctrl-C."""

            tries = 0

            def __getattr__(self, name: str) -> Any:
                return getattr(store._sql, name)

            def execute(self, statement: str) -> sqlite3.Cursor:
                if statement != "COMMIT":
                    return store._sql.execute(statement)
                self.tries += 1
                if self.tries == 2:
                    raise KeyboardInterrupt
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error

        connection = Interrupted()
        with (
            pytest.raises(KeyboardInterrupt),
            indexer.storage.database.transaction(connection, tmp_path / "index.db"),  # type: ignore[arg-type]
        ):
            store._sql.execute("DELETE FROM documents")
        assert connection.tries == 2
        assert not store._sql.in_transaction
        append(store, [document("b", "two")])
    assert sql(tmp_path, "SELECT id FROM documents") == [("a",), ("b",)]


@pytest.mark.parametrize("function", ["pwrite", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_is_a_storage_error_and_the_index_stays_usable(
    function: str, code: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    store.source("corpus.jsonl")
    before = dump(store.directory)
    with monkeypatch.context() as patched:
        patched.setattr(os, function, refuse)
        with pytest.raises(StorageError, match=os.strerror(code)):
            append(store, [document("c", "three")])
    assert dump(store.directory) == before
    assert verify_index(store.directory, deep=True) == []
    with pytest.raises(StorageError, match=os.strerror(code)):  # what an fsync lost, the kernel takes for written
        append(store, [document("c", "three")])
    with closing(Store.open(store.directory)) as again:
        append(again, [document("c", "three")])
        np.testing.assert_array_equal(again.vectors(np.array([2])), fake_vector("three")[None])


def test_rows_written_without_a_commit_are_never_seen_and_cut_off_by_the_next_writer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    directory = store.directory
    with monkeypatch.context() as patched:
        patched.setattr(Store, "_check_rows_stand", crash)
        with pytest.raises(KeyboardInterrupt):
            append(store, [document("c", "lost words")])
    path = only(directory, "vectors-*")
    assert path.stat().st_size == store.layout.file_bytes(3)  # what a kill between append and COMMIT leaves
    assert verify_index(directory, deep=True) == []
    with closing(SnapshotReader(directory)) as reader:
        assert (reader.snapshot().n_rows, reader.totals().documents) == (2, 2)
    store.close()
    with closing(Store.open(directory)) as again:
        assert path.stat().st_size == again.layout.file_bytes(2)
        append(again, [document("c", "three")])
        np.testing.assert_array_equal(again.vectors(np.array([2])), fake_vector("three")[None])
        store.__init__(directory, connect_writer(directory / "index.db"))  # so that the fixture can close it


def test_passages_without_vectors_are_refused_and_nothing_is_written(store: Store) -> None:
    before, size = dump(store.directory), only(store.directory, "vectors-*").stat().st_size
    new = NewDocument(document("c", "three"), 1, (PassageRow(None, None, 0, 1, 0),))
    with pytest.raises(StorageError, match="1 passages came with 0 vectors"):
        store.commit(Changes(appended=[new]), store.no_vectors())
    assert dump(store.directory) == before
    assert only(store.directory, "vectors-*").stat().st_size == size


def test_a_writer_that_another_one_overtook_commits_nothing(store: Store) -> None:
    with closing(Store.open(store.directory)) as other:
        append(other, [document("c", "three")])
    before = dump(store.directory)
    with pytest.raises(StorageError, match="in spite of the lock"):
        append(store, [document("d", "four")])
    assert dump(store.directory) == before


def test_the_next_writer_removes_strays_of_ours_and_nothing_else(store: Store) -> None:
    directory = store.directory
    named = {path.name for path in directory.iterdir()}
    hex_ = "0" * 32
    strays = {f"vectors-{hex_}.f16", f"gen-{hex_}.faiss", f"gen-{hex_}.tmp"}
    foreign = {"notes.txt", "gen-mine.faiss", f"vectors-{hex_}.bak", "rejects.jsonl"}
    for name in strays | foreign:
        (directory / name).write_bytes(b"bytes")
    with closing(Store.open(directory)):
        pass
    assert {path.name for path in directory.iterdir()} == named | foreign


@pytest.mark.parametrize("step", ["migrate", "sync_directory", "connect_writer"])
def test_a_creation_that_was_cut_off_does_not_stand_in_the_way_of_another(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(indexer.storage.store, step, crash)
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path)
    if step != "sync_directory":  # by then it is committed
        with closing(create(tmp_path)) as store:
            append(store, [document("a", "one")])
        assert len(list(tmp_path.glob("vectors-*"))) == 1
    assert verify_index(tmp_path, deep=True) == []


def test_a_newer_format_and_a_foreign_database_are_refused_untouched(store: Store, tmp_path: Path) -> None:
    sql(store.directory, "PRAGMA user_version = 2")
    before = (tmp_path / "index.db").read_bytes()
    with pytest.raises(IndexFormatError, match="format 2"):
        Store.open(tmp_path)
    assert (tmp_path / "index.db").read_bytes() == before
    sql(store.directory, "PRAGMA application_id = 7")
    with pytest.raises(IndexFormatError, match="another application"):
        Store.open(tmp_path)


def test_a_directory_in_the_place_of_the_database_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "index.db").mkdir()
    with pytest.raises(IndexerError, match=r"index\.db"):
        create(tmp_path)


def test_an_opening_that_fails_leaves_no_file_open(store: Store) -> None:
    path = only(store.directory, "vectors-*")
    os.truncate(path, 4096)
    n_open = n_open_files()
    for _ in range(5):
        with pytest.raises(IndexCorruptError):
            Store.open(store.directory)
    assert n_open_files() == n_open


def test_a_missing_vector_file_is_damage_and_no_other_file_is_removed(store: Store) -> None:
    only(store.directory, "vectors-*").unlink()
    with pytest.raises(IndexCorruptError, match="missing"):
        Store.open(store.directory)
    assert (store.directory / "index.db").is_file()


any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(any_text, min_size=1, max_size=8, unique=True), texts=st.data())
def test_any_id_and_any_text_is_found_again(tmp_path_factory: pytest.TempPathFactory, ids: list[str], texts) -> None:
    directory = tmp_path_factory.mktemp("index")
    documents = [document(id_, texts.draw(any_text)) for id_ in ids]
    with closing(create(directory)) as store:
        append(store, documents)
        found = store.find([*documents[::-1], document("is not there", "x")])
        assert [known.same_text and known.row_id for known in found[:-1]] == list(range(len(ids), 0, -1))
        assert found[-1] is None or "is not there" in ids
        assert store.row_ids(ids) == list(range(1, len(ids) + 1))
        twins = store.twins([d.text for d in documents])
        for d in documents:
            np.testing.assert_array_equal(store.vectors(np.array([twins[d.text].slot])), fake_vector(d.text)[None])


def test_an_id_with_nul_is_not_taken_for_what_stands_before_it(store: Store) -> None:
    assert store.row_ids(["a\0b"]) == []


def test_a_twin_is_a_live_passage_with_the_same_text_letter_by_letter(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.twins(["One", "one ", "three"]) == {}
    monkeypatch.setattr(indexer.storage.holdings, "text_key", lambda _: text_key("one"))  # every text now collides
    assert set(store.twins(["one", "another"])) == {"one"}
    monkeypatch.undo()
    store.commit(Changes(gone=[1]), store.no_vectors())
    assert store.twins(["one"]) == {}


def test_looking_for_twins_of_new_texts_is_one_statement_for_all(store: Store) -> None:
    statements: list[str] = []
    store._sql.set_trace_callback(statements.append)
    assert set(store.twins([f"new text {i}" for i in range(100)])) == set()
    assert len(statements) == 1
    assert set(store.twins(["new", "one"])) == {"one"}
    store._sql.set_trace_callback(None)


def test_looking_for_a_twin_does_not_pay_for_every_copy_of_a_text(store: Store) -> None:
    append(store, [document(f"x{i}", "same") for i in range(3_000)])
    n_thousands = 0

    def count() -> int:
        nonlocal n_thousands
        n_thousands += 1
        return 0

    store._sql.set_progress_handler(count, 1_000)
    assert store.twins(["same"])["same"].n_tokens == 1
    store._sql.set_progress_handler(None, 0)
    assert n_thousands < 10  # steps of SQLite's machine: 14 a copy are 42,000, for each window of a build
