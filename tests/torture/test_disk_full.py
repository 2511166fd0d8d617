"""A full disk, then one page more, and so on until there is room: each commit is there in whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

N_DOCUMENTS, N_DOCUMENTS_TORTURE = 36, 190
HERE = Path(__file__).parent


@pytest.fixture
def namespace(memory: Path) -> list[str]:
    """The beginning of a command that runs with a small tmpfs, which nobody else sees, at `small`."""
    (memory / "small").mkdir()
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    command = [*unshare, "sh", "-ec", 'mount -t tmpfs -o size=16m tmpfs "$1"; shift; exec "$@"', "sh"]
    command.append(str(memory / "small"))
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("no small file system can be mounted here: needs root, or user namespaces")
    return command


def test_a_commit_on_a_full_disk_is_whole_or_not_there(
    namespace: list[str], memory: Path, torture: bool, figures: list[str]
) -> None:
    n = N_DOCUMENTS_TORTURE if torture else N_DOCUMENTS
    job = {"small": str(memory / "small"), "memory": str(memory), "documents": n}
    done = subprocess.run(
        [*namespace, sys.executable, str(HERE / "ramp.py"), json.dumps(job)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}:{HERE.parents[1]}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reply = json.loads(done.stdout.splitlines()[-1])
    figures.append(f"full disk: {reply['steps']} steps, {len(reply['found'])} bad")
    assert reply["found"] == []
    assert reply["steps"] >= (200 if torture else 40)
