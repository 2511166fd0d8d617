"""Runs the command line again and again, each time with another disturbance: faults.py JOB (JSON on the command line).

The program is loaded once; each run is a fork of it. Loaded with faults.c in LD_PRELOAD, a fork counts the calls that
change files below the root, and one of them is disturbed. What is left is inspected here, undisturbed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import sqlite_utils  # noqa: F401 - loaded once
from disk import read_tree, write_tree
from fakes import FakeEncoder
from inspection import ViolationError, inspect, prepare_worker
from workloads import COMMIT_TEXTS, WORKLOADS, Workload, rebuilding, small_commits

import indexer.console
import search.cli


class Mode(IntEnum):
    """As in faults.c."""

    KILL = 0
    KILL_HALFWAY = 1
    EIO = 2
    EIO_FROM_HERE_ON = 3
    ENOSPC = 4
    ENOSPC_FROM_HERE_ON = 5


class Shared:
    """What a fork leaves behind: the calls it made, those to open files, and the states that it told of."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.values = (ctypes.c_int * 3).from_buffer(self._memory)

    def clear(self) -> None:
        """Set all to 0."""
        self.values[:] = [0, 0, 0]


def armed_by_library() -> Any:
    """Return the function torture_arm of faults.c, which is in LD_PRELOAD."""
    arm = ctypes.CDLL(None).torture_arm
    arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    arm.restype = None
    return arm


def run_commands(workload: Workload, root: Path, tell: Callable[[int], None]) -> int:
    """Run the commands of a workload one after another, and return the first exit code that is not 0."""
    real = indexer.console.ProgressDisplay.__call__
    for first, last, command in workload.commands:

        def shown(self: Any, progress: Any, first: int = first, last: int = last) -> None:
            real(self, progress)
            if progress.n_documents:
                tell(min(last, first + -(-progress.n_documents // COMMIT_TEXTS)))

        with ExitStack() as stack:
            stack.enter_context(patch.object(indexer.console.ProgressDisplay, "__call__", shown))
            encoder = FakeEncoder()
            encoder.seconds["encode"] = 1.0  # the report divides by it
            stack.enter_context(patch("indexer.build.load_bulk_encoder", encoder.load))
            stack.enter_context(patch.object(sys, "argv", ["index", *command.format(root=root).split()]))
            if workload.rebuilds:
                stack.enter_context(rebuilding())
            try:
                search.cli.main()
            except SystemExit as exit_:
                if exit_.code:
                    return int(exit_.code)
        tell(last)
    return 0


def run_disturbed(workload: Workload, root: Path, errors: Path, shared: Shared, arm: Callable[[], None]) -> int:
    """Run the commands in a fork, and return its status as os.waitpid gives it."""
    shared.clear()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)

            def tell(n: int) -> None:
                shared.values[2] = n

            arm()
            code = run_commands(workload, root, tell)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def said_well(status: int, said: str) -> str:
    """Return what is wrong with the way a run that was refused something ended, "" for nothing."""
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return ""
    last = said.splitlines()[-1] if said.strip() else ""
    if code != 1 or "Traceback" in said or not last.startswith("index: ") or re.match(r"index: \w+: .*--debug", last):
        return f"exit code {code}, said: {said[-300:]!r}"
    return ""


def judge(
    workload: Workload, base: dict[str, bytes | None], point: tuple[int, Mode], memory: Path, shared: Shared, arm: Any
) -> tuple[str, int]:
    """Disturb one run, and return (what is wrong, "" for nothing; calls that the run made)."""
    nth, mode = point
    root = Path(tempfile.mkdtemp(prefix="root-", dir=memory))
    errors = memory / f"said-{os.getpid()}"
    try:
        write_tree(root, base)
        counter = ctypes.addressof(shared.values)
        status = run_disturbed(workload, root, errors, shared, lambda: arm(os.fsencode(root), nth, mode, counter))
        n_calls, _, acknowledged = shared.values
        said = errors.read_text()
        if mode in (Mode.KILL, Mode.KILL_HALFWAY) and n_calls >= nth > 0:
            wrong = "" if os.WIFSIGNALED(status) else f"not killed: {said[-300:]!r}"
        else:
            wrong = said_well(status, said)
        try:
            inspect(workload, root, acknowledged, writer_first=nth % 3 == 2)
        except ViolationError as error:
            wrong = f"{wrong} {error} (it said: {said[-200:]!r})"
        return wrong.replace(str(root), ""), n_calls
    finally:
        shutil.rmtree(root)


def disturb(workload: Workload, job: dict[str, Any], shared: Shared, arm: Any) -> dict[str, Any]:
    """Return how many calls an undisturbed run makes, at how many points it was disturbed, and what was wrong where."""
    memory = Path(job["memory"])
    root = Path(tempfile.mkdtemp(prefix="root-", dir=memory))
    workload.prepare(root)
    base = read_tree(root)
    shutil.rmtree(root)
    wrong, n_calls = judge(workload, base, (0, Mode.KILL), memory, shared, arm)
    if wrong:
        raise SystemExit(f"an undisturbed run: {wrong}")
    points = [(nth, mode) for nth in range(1, n_calls + 1) for mode in Mode]
    Random(job["seed"]).shuffle(points)
    found = []
    points = points[: job["n"]][job["share"] :: job["shares"]]
    for point in points:
        wrong, _ = judge(workload, base, point, memory, shared, arm)
        if wrong:
            found.append(f"{workload.name}, call {point[0]} of {n_calls}, {point[1].name}: {wrong}")
    return {"calls": n_calls, "points": len(points), "found": found}


def main(job: dict[str, Any]) -> None:
    """Disturb all workloads and print what came of each as JSON."""
    prepare_worker()
    gc.freeze()  # a fork then copies less
    arm = armed_by_library()
    with small_commits():
        print(json.dumps({name: disturb(workload, job, Shared(), arm) for name, workload in WORKLOADS.items()}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
