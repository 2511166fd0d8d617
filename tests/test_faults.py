"""Faults have their names: a COMMIT that nobody knows the end of, a network file system, a disk that cannot be read."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from fakes import FakeEncoder
from indexes import Oracle, build, records, searching, sql

import indexer.storage.lock
from indexer.delete import delete_documents
from indexer.errors import StorageError
from indexer.maintenance.compact import compact_index
from indexer.maintenance.verify import verify_index
from indexer.storage.changes import Changes
from indexer.storage.files import network_file_system
from indexer.storage.store import Store
from search import Searcher
from search.cli import main


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build(tmp_path / "index", records(10))
    return tmp_path / "index"


class Failing:
    """A connection whose COMMIT ends in an error, after it happened or instead of it."""

    def __init__(self, connection: sqlite3.Connection, *, happens: bool) -> None:
        self._connection = connection
        self._happens = happens

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, statement: str, *arguments: object) -> sqlite3.Cursor:
        if statement != "COMMIT":
            return self._connection.execute(statement, *arguments)
        self._connection.execute("COMMIT" if self._happens else "ROLLBACK")
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error


@pytest.mark.parametrize("happens", [True, False])
def test_a_commit_that_fails_is_looked_up_and_its_writer_ends(happens: bool, index: Path) -> None:
    with closing(Store.open(index)) as store:
        store._sql = Failing(store._sql, happens=happens)
        said = "this commit is in the index all the same" if happens else "this commit is not"
        with pytest.raises(StorageError, match=said):
            store.commit(Changes(gone=[1]), store.no_vectors())
        with pytest.raises(StorageError, match=said):
            store.commit(Changes(gone=[2]), store.no_vectors())
    assert sql(index, "SELECT count(*) FROM documents") == [(9 if happens else 10,)]
    assert verify_index(index, deep=True) == []
    delete_documents(index, ["d5"])
    assert verify_index(index, deep=True) == []


def mounts(kind: str, directory: Path, file: Path) -> Path:
    device = directory.stat().st_dev
    file.write_text(
        "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
        f"27 1 {os.major(device)}:{os.minor(device)} / /home rw shared:1 - {kind} server:/home rw\n"
    )
    return file


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "ceph"])
def test_a_network_file_system_is_known(kind: str, tmp_path: Path) -> None:
    assert network_file_system(tmp_path, mounts(kind, tmp_path, tmp_path / "mountinfo")) == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs", "fuse.fuse-overlayfs", "overlay"])
def test_a_local_file_system_is_none(kind: str, tmp_path: Path) -> None:
    assert network_file_system(tmp_path, mounts(kind, tmp_path, tmp_path / "mountinfo")) is None
    assert network_file_system(tmp_path, tmp_path / "missing") is None


def test_writing_on_a_network_file_system_warns_and_reading_does_not(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with patch.object(indexer.storage.lock, "network_file_system", lambda _: "nfs4"), caplog.at_level(logging.WARNING):
        with searching(index) as searcher:
            searcher.search("text number 3")
        assert caplog.text == ""
        delete_documents(index, ["d3"])
    assert "network file system (nfs4)" in caplog.text


def test_a_disk_that_cannot_be_read_is_one_line(index: Path) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    delete_documents(index, ["d1"])
    with patch.object(os, "preadv", refuse):
        with pytest.raises(StorageError, match="cannot be read: Input/output error"):
            compact_index(index)
        assert any("cannot be read" in problem for problem in verify_index(index, deep=True))
    assert verify_index(index, deep=True) == []


def test_a_directory_that_cannot_be_written_can_be_read(index: Path) -> None:
    real = os.open

    def read_only(path: str, flags: int, *more: object, **others: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *more, **others)

    with patch.object(os, "open", read_only):
        with pytest.raises(StorageError, match="Read-only file system"):
            delete_documents(index, ["d1"])
        with searching(index) as searcher:
            Oracle().put(records(10)).check_searcher(searcher, ["text number 3"], 5)


def test_running_out_of_memory_is_one_line(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with (
        patch("indexer.info.describe", fail),
        patch.object(sys, "argv", ["index", "info", str(index)]),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("index: out of memory; what was committed stands")


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from indexes import build, records
from indexer.maintenance.compact import compact_index
from indexer.delete import delete_documents
out = Path(sys.argv[2])
for step in range(6):
    build(out, records(40, 300 + 40 * step), adds=True)
    delete_documents(out, [f"d{i}" for i in range(40 * step, 40 * step + 40)])
    compact_index(out)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    build(tmp_path / "busy", records(300))
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(Path(__file__).parent), str(tmp_path / "busy")])
    yield process
    process.kill()
    process.wait()


def test_readers_in_threads_see_whole_snapshots_while_another_process_writes(
    tmp_path: Path, writer: subprocess.Popen[bytes]
) -> None:
    wrong: list[str] = []
    waits: list[float] = []

    def read() -> None:
        with Searcher.open(tmp_path / "busy") as searcher:
            while writer.poll() is None:
                began_s = time.monotonic()
                searcher.refresh()
                waits.append(time.monotonic() - began_s)
                hits = searcher.search("text number 290", 1000)
                held = sorted(int(hit.id[1:]) for hit in hits)
                # Records come and go 40 at a time, from both ends.
                if held != list(range(held[0], held[0] + len(held))) or len(held) not in {300, 340}:
                    wrong.append(f"{len(held)} from {held[0]}")
                if hits[0].id != "d290" or any(hit.text != f"text number {hit.metadata['n']}" for hit in hits):
                    wrong.append("a hit that is not its document")

    threads = [threading.Thread(target=read) for _ in range(2)]
    with patch("search.searcher.open_query_encoder", lambda *_, **__: FakeEncoder()):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert writer.wait() == 0
    assert wrong == []
    assert len(waits) > 10
    assert np.median(waits) < 0.2
    assert verify_index(tmp_path / "busy", deep=True) == []
