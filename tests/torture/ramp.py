"""Runs the command line on a file system that is full, then with one more free page, until it succeeds: ramp.py JOB.

Called within a mount namespace, with a small tmpfs at the directory that the job names.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import sqlite_utils  # noqa: F401 - loaded once
from disk import Image, read_tree, write_tree
from faults import Shared, run_disturbed, said_well
from inspection import ViolationError, check_state, inspect, prepare_worker
from workloads import Workload, grow, small_commits

from indexer.errors import IndexerError


def leave_free(small: Path, n_pages: int) -> None:
    """Fill a file system up to some pages."""
    facts = os.statvfs(small)
    with (small / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (facts.f_bavail - n_pages) * facts.f_bsize)
    left = os.statvfs(small).f_bavail
    if left != n_pages:
        raise RuntimeError(f"{left} pages are free, not {n_pages}; is the file system a tmpfs of its own?")


def step(workload: Workload, base: Image, small: Path, errors: Path, shared: Shared, n_pages: int) -> tuple[int, str]:
    """Run once with some free pages, and return the exit code and what was wrong, "" for nothing."""
    root = small / "root"
    root.mkdir()
    write_tree(root, base)
    leave_free(small, n_pages)
    status = run_disturbed(workload, root, errors, shared, lambda: None)
    acknowledged, said = shared.values[2], errors.read_text()
    wrong = said_well(status, said)
    if status != 0 and "full" not in said and "No space left" not in said:
        wrong = f"it does not say that the disk is full: {said[-300:]!r}"
    try:
        check_state(workload, root / workload.output, acknowledged, workload.last, deep=True)  # readers need no room
        (small / "ballast").unlink()
        inspect(workload, root, acknowledged)
    except (ViolationError, IndexerError, OSError) as error:
        wrong = f"{wrong} {type(error).__name__}: {error}"
    (small / "ballast").unlink(missing_ok=True)
    shutil.rmtree(root)
    return os.waitstatus_to_exitcode(status), wrong


def main(job: dict[str, Any]) -> None:
    """Print as JSON: how many steps it took to succeed, and what was wrong at which."""
    prepare_worker()
    small, memory, shared = Path(job["small"]), Path(job["memory"]), Shared()
    workload = grow(job["documents"])
    with small_commits(job["documents"]):
        root = memory / "root"
        root.mkdir()
        workload.prepare(root)
        base = read_tree(root)
        found, code, n_pages = [], 1, -1
        while code != 0:
            n_pages += 1
            code, wrong = step(workload, base, small, memory / "said", shared, n_pages)
            if wrong:
                found.append(f"{n_pages} free pages: {wrong}")
    print(json.dumps({"steps": n_pages + 1, "found": found}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
