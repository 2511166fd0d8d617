"""Each call that changes a file killed, failing, or finding the disk full: no commit is lost, and one line says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disk import Resize, Sync, Write
from recording import record
from workloads import WORKLOADS

N_POINTS, N_POINTS_TORTURE = 54, 700
N_MODES = 6
SEED = 20_261_124
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that disturbs, compiled."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("a C compiler for Linux is not installed")
    path = tmp_path_factory.mktemp("library") / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, HERE / "faults.c", "-ldl"], check=True)
    return path


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("workload", ["create", "compact"])
def test_the_library_sees_each_call_that_strace_sees(workload: str, library: Path, memory: Path) -> None:
    recording = record(workload, memory, library=library)
    n_seen = sum(isinstance(step, (Write, Resize, Sync)) for step in recording.steps)
    assert int(recording.said) == n_seen > 50


def test_no_call_that_is_killed_or_fails_loses_a_commit(
    library: Path, memory: Path, torture: bool, figures: list[str]
) -> None:
    shares, start_s = os.cpu_count() or 1, time.monotonic()
    n = N_POINTS_TORTURE if torture else N_POINTS
    job = {"memory": str(memory), "seed": SEED, "n": n, "shares": shares}
    environment = {
        **os.environ,
        "PYTHONPATH": f"{HERE}:{HERE.parent}:{HERE.parents[1]}",
        "OMP_NUM_THREADS": "1",
        "LD_PRELOAD": str(library),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "faults.py"), json.dumps({**job, "share": share})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for share in range(shares)
    ]
    ended = [(process.communicate(), process.returncode) for process in processes]
    for (_, said), code in ended:
        assert code == 0, said[-3000:]
    replies = [json.loads(out.splitlines()[-1]) for (out, _), _ in ended]
    bad, n_all = [], 0
    for workload in WORKLOADS:
        n_calls = replies[0][workload]["calls"]
        n_points = sum(reply[workload]["points"] for reply in replies)
        found = [line for reply in replies for line in reply[workload]["found"]]
        figures.append(f"faults, {workload}: {n_points:,} points over {n_calls} calls, {len(found)} bad")
        assert n_points == min(n, N_MODES * n_calls)
        bad += found
        n_all += n_points
    figures.append(f"faults: {n_all:,} points, {n_all / (time.monotonic() - start_s):.0f} points/s")
    assert bad == []
    assert n_all >= (3_000 if torture else 300)
