"""One writer at a time, whoever it is; readers do not care."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from indexes import Oracle, build, records, searching

from indexer.delete import delete_documents
from indexer.errors import IndexLockedError, StorageError
from indexer.storage.lock import writer_lock

HOLDER = """
import sys, time
from pathlib import Path
from indexer.storage.lock import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_with_one_line_that_names_the_first(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(IndexLockedError, match=f"process {holder.pid} ") as caught, writer_lock(tmp_path):
        pass
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_holder_that_has_not_written_its_name_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "writer.lock"
    with path.open("w+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        timer = threading.Timer(0.02, lambda: os.pwrite(held.fileno(), b"process 7 on here\n", 0))
        timer.start()
        with pytest.raises(IndexLockedError, match="written by process 7 on here;"), writer_lock(tmp_path):
            pass
        timer.join()
    with writer_lock(tmp_path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert path.read_bytes() == b""


def test_a_holder_about_to_let_go_is_waited_for(tmp_path: Path) -> None:
    held = (tmp_path / "writer.lock").open("w+b")
    fcntl.flock(held, fcntl.LOCK_EX)
    timer = threading.Timer(0.02, held.close)
    timer.start()
    with writer_lock(tmp_path):
        pass
    timer.join()


def test_a_longer_name_of_a_killed_holder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "writer.lock").write_text("process 4194304 on " + "x" * 300 + "\n")
    with writer_lock(tmp_path):
        assert (tmp_path / "writer.lock").read_text().count("\n") == 1


def test_the_kernel_releases_the_lock_of_a_killed_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with writer_lock(tmp_path):
        pass


def test_a_second_thread_is_refused(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def second() -> None:
        try:
            with writer_lock(tmp_path):
                pass
        except IndexLockedError as error:
            caught.append(error)

    with writer_lock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(caught) == 1
    assert f"process {os.getpid()} " in str(caught[0])


def test_the_lock_is_free_again_after_an_error_and_its_file_stays(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writer_lock(tmp_path):
        1 / 0  # noqa: B018
    assert (tmp_path / "writer.lock").is_file()
    with writer_lock(tmp_path):
        pass


def test_build_and_delete_wait_for_no_lock_and_readers_need_none(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, records(20))
    with writer_lock(out):
        with pytest.raises(IndexLockedError):
            build(out, records(30))
        with pytest.raises(IndexLockedError):
            delete_documents(out, ["d1"])
        with searching(out) as searcher:
            Oracle().put(records(20)).check_searcher(searcher, ["text number 3", "else"], 5)
    assert build(out, records(30)).documents == 30


def test_a_lock_that_the_file_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"writer\.lock: No space left on device"), writer_lock(tmp_path):
        pass
    monkeypatch.undo()
    with writer_lock(tmp_path):
        pass
