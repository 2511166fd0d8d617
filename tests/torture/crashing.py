"""Operations that die half-way: a process of its own runs one and is killed (-9) at its n-th step."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from indexes import build

import indexer.build
import indexer.ingest
import indexer.storage.store
import indexer.upkeep
from indexer.delete import delete_documents
from indexer.maintenance.backup import backup_index
from indexer.maintenance.compact import compact_index

COMMIT_TEXTS = 3
TAIL_SLOTS = 6
_SQL_STEP = 50
_PRELOADED = ["pytest", "faiss", "sqlite_utils", "crashing"]

OPERATIONS: dict[str, Callable[..., object]] = {
    "add": lambda out, records: build(out, records, adds=True),
    "delete": delete_documents,
    "compact": compact_index,
    "backup": backup_index,
}


def small_commits() -> Sequence[Any]:
    """Return patches under which a commit holds at most three texts and a generation soon needs a new one."""
    return (
        patch.object(indexer.ingest, "COMMIT_TEXTS", COMMIT_TEXTS),
        patch.object(indexer.build, "COMMIT_TEXTS", COMMIT_TEXTS),
        patch.object(indexer.ingest, "COMMIT_SECONDS", 1e9),
        patch.object(indexer.build, "COMMIT_SECONDS", 1e9),
        patch.object(indexer.upkeep, "TAIL_SLOTS", TAIL_SLOTS),
    )


def run_until_killed(step: int, operation: str, *arguments: object) -> bool:
    """Run an operation in a new process that is killed at a step; return whether it lived to its end instead."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(str(Path(__file__).parents[i]) for i in (0, 1))):
        process = context.Process(target=_run, args=(step, operation, arguments))
        process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"{operation} ended with exit code {process.exitcode}"
    return process.exitcode == 0


class _Steps:
    """Counts what changes files, and kills the process when the count is reached: half of a write is then written."""

    def __init__(self, last: int) -> None:
        self._left = last

    def take(self) -> bool:
        self._left -= 1
        return self._left == 0

    def before(self, function: Callable[..., object]) -> Callable[..., object]:
        def stepping(*arguments: object, **named: object) -> object:
            if self.take():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return stepping

    def writing(self, descriptor: int, data: bytes, offset: int) -> int:
        if self.take():
            _pwrite(descriptor, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return _pwrite(descriptor, data, offset)

    def within_sql(self) -> int:
        if self.take():
            os.kill(os.getpid(), signal.SIGKILL)
        return 0


_pwrite = os.pwrite
_connect = indexer.storage.store.connect_writer


def _run(step: int, operation: str, arguments: tuple[Any, ...]) -> None:
    steps = _Steps(step)

    def connect(path: Path, **options: bool) -> sqlite3.Connection:
        connection = _connect(path, **options)
        connection.set_progress_handler(steps.within_sql, _SQL_STEP)
        return connection

    for each in small_commits():
        each.start()
    for name in ("fsync", "ftruncate", "unlink", "rename"):
        patch.object(os, name, steps.before(getattr(os, name))).start()
    patch.object(os, "pwrite", steps.writing).start()
    patch.object(indexer.storage.store, "connect_writer", connect).start()
    OPERATIONS[operation](*arguments)
