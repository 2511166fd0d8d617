"""The reader's side: what is no index, what a killed writer leaves, and one view at a time."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from indexes import Oracle, build, only, records, searching, sql

from indexer.delete import delete_documents
from indexer.errors import IndexCorruptError, IndexFormatError, IndexNotFoundError
from indexer.maintenance.compact import compact_index
from indexer.maintenance.verify import verify_index
from indexer.storage.snapshot import SnapshotReader
from search import Searcher

N = 300
KILLED_WRITER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for pragma in ("journal_mode = TRUNCATE", "cache_size = 1", "cache_spill = 1"):
    connection.execute(f"PRAGMA {pragma}")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE documents SET text = 'half written ' || hex(randomblob(300))")
connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'seq'")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "index"
    build(out, records(N))
    return out


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "index"))


def leave_a_hot_journal(out: Path) -> None:
    """Let a writer write half of its changes into the database and be killed."""
    before = (out / "index.db").read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(out / "index.db")])
    assert done.returncode == -signal.SIGKILL
    assert (out / "index.db-journal").stat().st_size > 0
    assert (out / "index.db").read_bytes() != before


def test_a_reader_undoes_what_a_killed_writer_left_half_written(index: Path) -> None:
    leave_a_hot_journal(index)
    with searching(index) as searcher:
        Oracle().put(records(N)).check_searcher(searcher, ["text number 7", "other"], N)
    assert verify_index(index, deep=True) == []


def test_the_same_holds_for_a_copy_with_its_journal_and_for_the_next_writer(index: Path, tmp_path: Path) -> None:
    leave_a_hot_journal(index)
    copy = Path(shutil.copytree(index, tmp_path / "copy"))
    report = build(copy, records(N + 5))
    assert (report.encoded, report.unchanged) == (5, N)
    assert verify_index(copy, deep=True) == []


def test_a_searcher_opened_before_a_writer_was_killed_goes_on(index: Path) -> None:
    with searching(index) as searcher:
        oracle = Oracle().put(records(N))
        oracle.check_searcher(searcher, ["text number 7"], 10)
        leave_a_hot_journal(index)
        oracle.check_searcher(searcher, ["text number 7"], 10)


def test_nothing_at_the_path_is_no_index(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(IndexNotFoundError, match="build one with"):
            Searcher.open(path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_a_build_that_never_committed(tmp_path: Path) -> None:
    (tmp_path / "index.db").touch()
    with pytest.raises(IndexNotFoundError, match="run it again"):
        Searcher.open(tmp_path)
    assert build(tmp_path, records(3)).documents == 3


def test_a_newer_format_is_refused_with_both_numbers(index: Path) -> None:
    sql(index, "PRAGMA user_version = 9")
    for use in (Searcher.open, verify_index, lambda out: build(out, records(1)), lambda out: delete_documents(out, [])):
        with pytest.raises(IndexFormatError, match=r"format 9.*up to 1"):
            use(index)


def test_a_database_of_another_application_is_refused_and_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "index.db")) as other, other:
        other.execute("CREATE TABLE theirs (x)")
    before = (tmp_path / "index.db").read_bytes()
    for use in (Searcher.open, lambda out: build(out, records(1))):
        with pytest.raises(IndexFormatError, match="another application"):
            use(tmp_path)
    assert (tmp_path / "index.db").read_bytes() == before


def test_bytes_that_are_no_database_are_damage(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"no database at all\n" * 1000)
    with pytest.raises(IndexCorruptError, match="restore a backup"):
        Searcher.open(tmp_path)


def test_damaged_pages_are_an_error_of_ours(index: Path) -> None:
    path = index / "index.db"
    path.write_bytes(path.read_bytes()[:4096].ljust(path.stat().st_size, b"\xff"))
    with pytest.raises(IndexCorruptError), searching(index) as searcher:
        searcher.search("x", N)


@pytest.mark.parametrize("key", ["dim", "n_rows", "vector_file", "seq", "contract", "read", "%"])
def test_a_database_without_its_settings_is_damage(index: Path, key: str) -> None:
    sql(index, "DELETE FROM meta WHERE key LIKE ?", key)
    with pytest.raises((IndexCorruptError, IndexFormatError)):
        Searcher.open(index)


def test_a_truncated_or_missing_vector_file_is_damage(index: Path) -> None:
    path = only(index, "vectors-*")
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(IndexCorruptError, match="restore a backup"):
        Searcher.open(index)
    path.unlink()
    with pytest.raises(IndexCorruptError, match="missing"):
        Searcher.open(index)


def test_a_vector_file_outside_the_directory_is_never_opened(index: Path, tmp_path: Path) -> None:
    shutil.copy(only(index, "vectors-*"), tmp_path / "elsewhere.f16")
    sql(index, "UPDATE meta SET value = '../elsewhere.f16' WHERE key = 'vector_file'")
    with pytest.raises(IndexCorruptError, match="no name of an index file"):
        Searcher.open(index)


def test_a_snapshot_says_what_was_committed(index: Path) -> None:
    delete_documents(index, ["d3", "d5"])
    with closing(SnapshotReader(index)) as reader:
        snapshot = reader.snapshot()
        seq = snapshot.seq
        assert (snapshot.n_rows, reader.totals().documents, snapshot.n_passages) == (N, N - 2, N - 2)
        assert snapshot.dead.tolist() == [3, 5]
        assert snapshot.is_complete
        delete_documents(index, ["d7"])
        assert reader.seq() == seq + 1


def test_dead_slots_are_read_again_only_when_there_are_more_or_others(index: Path) -> None:
    delete_documents(index, ["d3", "d5"])
    with closing(SnapshotReader(index)) as reader:
        first = reader.snapshot()
        build(index, [{"id": "new", "text": "a new one"}], adds=True)
        second = reader.snapshot()
        assert second.n_rows == first.n_rows + 1
        assert second.dead is first.dead
        delete_documents(index, ["d7"])
        assert reader.snapshot().dead.tolist() == [3, 5, 7]
        compact_index(index)
        delete_documents(index, ["d0", "d1", "d2"])
        assert reader.snapshot().dead.tolist() == [0, 1, 2]


def test_a_path_with_odd_characters_is_read(built: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(built, tmp_path / "a b?c#d%20é'\";mode=rw"))
    with searching(out) as searcher:
        assert len(searcher.search("x", N)) == N
    assert build(out, records(N)).unchanged == N


def test_reading_changes_no_byte_and_makes_no_file(index: Path) -> None:
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    with searching(index) as searcher:
        searcher.search("x", where={"even": True})
    verify_index(index, deep=True)
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before
