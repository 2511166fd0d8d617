"""Runs one workload, in a process of its own that is recorded: program.py WORKLOAD ROOT [MUTANT].

With faults.c in LD_PRELOAD it writes at last how many calls to open files below the root that library has counted.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from mutants import MUTANTS
from workloads import WORKLOADS, small_commits


def main(name: str, root: str, mutant: str = "") -> None:
    """Run a workload and write `ack n` whenever n states are committed."""
    if mutant:
        MUTANTS[mutant].install()
    counts = (ctypes.c_int * 3)()
    if "LD_PRELOAD" in os.environ:
        ctypes.CDLL(None).torture_arm(os.fsencode(root), 0, 0, counts)
    with small_commits():
        WORKLOADS[name].run(Path(root), lambda n: os.write(1, b"ack %d\n" % n) and None)
    sys.stderr.write(f"{counts[1]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
