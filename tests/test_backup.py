"""A backup is the index of one commit, whole and checked, or it is no index."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from unittest.mock import patch

import pytest
from indexes import Oracle, build, flip_byte, only, records, searching, sql

from indexer import Index
from indexer.delete import delete_documents
from indexer.errors import (
    IndexCorruptError,
    IndexerError,
    IndexLockedError,
    IndexNotFoundError,
    StorageError,
    UsageError,
)
from indexer.maintenance.backup import backup_index
from indexer.maintenance.compact import compact_index
from indexer.maintenance.verify import verify_index
from indexer.progress import Phase, Progress
from indexer.storage.lock import writer_lock

QUERIES = ["text number 3", "something else"]


@pytest.fixture
def index(tmp_path: Path) -> tuple[Path, Oracle]:
    out = tmp_path / "index"
    build(out, records(40))
    build(out, records(45), adds=True)
    delete_documents(out, ["d1", "d2"])
    oracle = Oracle().put(records(45))
    oracle.delete(["d1", "d2"])
    return out, oracle


def check(out: Path, oracle: Oracle) -> None:
    assert verify_index(out, deep=True) == []
    with searching(out) as searcher:
        oracle.check_searcher(searcher, QUERIES, 100)


def test_the_copy_is_an_index_with_the_same_answers(index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, oracle = index
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    report = Index(out).backup(tmp_path / "deep" / "copy")
    assert (report.documents, report.passages, report.generation) == (43, 43, True)
    copy = tmp_path / "deep" / "copy"
    assert report.bytes == sum(path.stat().st_size for path in copy.iterdir())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in copy.iterdir()} == {
        *("index.db", "writer.lock"),
        *(only(out, pattern).name for pattern in ("vectors-*", "gen-*")),
    }
    check(copy, oracle)
    shutil.rmtree(out)
    copy.rename(out)
    build(out, records(50), adds=True)
    check(out, oracle.put(records(50)))


def test_rows_behind_the_committed_ones_are_left_out(index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, oracle = index
    with only(out, "vectors-*").open("ab") as file:
        file.write(b"written by a commit that never came")
    backup_index(out, tmp_path / "copy")
    assert only(tmp_path / "copy", "vectors-*").stat().st_size == 4096 + 45 * 32
    check(tmp_path / "copy", oracle)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "link"])
def test_a_bad_generation_is_left_out(harm: str, index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, oracle = index
    path = only(out, "gen-*")
    match harm:
        case "flip":
            flip_byte(path, -5)
        case "truncate":
            os.truncate(path, 100)
        case "remove":
            path.unlink()
        case _:
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    assert backup_index(out, tmp_path / "copy").generation is False
    assert sorted(path.name[:4] for path in (tmp_path / "copy").iterdir()) == ["inde", "vect", "writ"]
    check(tmp_path / "copy", oracle)


def test_damaged_vectors_are_found_and_no_index_is_left(index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, _ = index
    flip_byte(only(out, "vectors-*"), -1)
    with pytest.raises(IndexCorruptError, match="slots 40 to 44 are damaged"):
        backup_index(out, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} <= {"writer.lock"}


def test_a_damaged_text_is_found(index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, _ = index
    sql(out, "UPDATE documents SET text = 'another' WHERE id = 'd3'")
    with pytest.raises(StorageError, match=r"not sound.*: .*/index/index\.db: .*document 'd3'"):
        backup_index(out, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} <= {"writer.lock"}


def test_it_is_no_index_before_it_was_checked(index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, _ = index
    seen = set()

    def look(progress: Progress) -> None:
        seen.add((progress.phase, (tmp_path / "copy" / "index.db").exists()))

    backup_index(out, tmp_path / "copy", look)
    assert seen == {(Phase.COPY, False), (Phase.CHECK, False)}


def test_a_target_inside_the_index_is_refused(index: tuple[Path, Oracle]) -> None:
    out, _ = index
    before = sorted(out.iterdir())
    for target in (out / "copy", out / "a" / "b", out):
        with pytest.raises(UsageError):
            backup_index(out, target)
    assert sorted(out.iterdir()) == before


def test_a_target_that_holds_something_is_refused(index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, _ = index
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        backup_index(out, tmp_path / "copy")
    with pytest.raises(UsageError, match="is a file"):
        backup_index(out, tmp_path / "file")
    with pytest.raises(UsageError, match="not empty"):
        backup_index(out, out)
    with pytest.raises(IndexNotFoundError):
        backup_index(tmp_path / "nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "copy" / "notes.txt").read_text() == "mine"


def test_a_refused_write_leaves_no_index(index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, _ = index

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with patch.object(os, "pwrite", refuse), pytest.raises(StorageError, match="No space left"):
        backup_index(out, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} <= {"writer.lock"}
    backup_index(out, tmp_path / "copy")


def test_what_a_backup_that_was_cut_off_left_makes_way(index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, oracle = index
    copy = tmp_path / "copy"
    backup_index(out, copy)
    (copy / "index.db").rename(copy / f"backup-{'0' * 32}.tmp")
    (copy / f"backup-{'0' * 32}.tmp-journal").write_text("half a journal")
    backup_index(out, copy)
    assert len(list(copy.iterdir())) == 4
    check(copy, oracle)


def test_a_file_of_somebody_beside_an_unfinished_copy_keeps_everything(
    index: tuple[Path, Oracle], tmp_path: Path
) -> None:
    out, _ = index
    copy = tmp_path / "copy"
    backup_index(out, copy)
    (copy / "index.db").rename(copy / f"backup-{'0' * 32}.tmp")
    (copy / "notes.txt").write_text("mine")
    before = {path.name for path in copy.iterdir()}
    with pytest.raises(UsageError, match=r"holds notes\.txt"):
        backup_index(out, copy)
    assert {path.name for path in copy.iterdir()} == before


def test_an_index_without_its_database_is_not_taken_for_an_unfinished_copy(
    index: tuple[Path, Oracle], tmp_path: Path
) -> None:
    out, _ = index
    backup_index(out, tmp_path / "copy")
    (tmp_path / "copy" / "index.db").unlink()
    with pytest.raises(UsageError, match="not empty"):
        backup_index(out, tmp_path / "copy")


def test_one_backup_at_a_time_goes_to_a_target(index: tuple[Path, Oracle], tmp_path: Path) -> None:
    out, _ = index
    (tmp_path / "copy").mkdir()
    with writer_lock(tmp_path / "copy"), pytest.raises(IndexLockedError, match="is being written by process"):
        backup_index(out, tmp_path / "copy")


def test_it_copies_one_commit_while_others_are_made(tmp_path: Path) -> None:
    out, n_copies = tmp_path / "index", 6
    build(out, records(3000))
    ended, failures = threading.Event(), []

    def write() -> None:
        try:
            for step in range(10_000):
                if ended.is_set():
                    return
                build(out, records(1, 3000 + step), adds=True)
                delete_documents(out, [f"d{step}"])
                if step % 7 == 6:
                    compact_index(out)
        except IndexerError as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for i in range(n_copies):
            report = backup_index(out, tmp_path / f"copy{i}")
            held = [row[0] for row in sql(tmp_path / f"copy{i}", "SELECT id FROM documents ORDER BY row_id")]
            assert report.documents == len(held)
            first = int(held[0][1:])  # each state is a run of records without a gap
            assert held == [f"d{j}" for j in range(first, first + len(held))]
            assert len(held) in {3000, 3001}
    finally:
        ended.set()
        writer.join()
    assert failures == []
