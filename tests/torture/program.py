"""Runs one workload, in a process of its own that is recorded: program.py WORKLOAD ROOT [MUTANT]."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mutants import MUTANTS
from workloads import WORKLOADS, small_commits


def main(name: str, root: str, mutant: str = "") -> None:
    """Run a workload and write `ack n` whenever n states are committed."""
    if mutant:
        MUTANTS[mutant].install()
    with small_commits():
        WORKLOADS[name].run(Path(root), lambda n: os.write(1, b"ack %d\n" % n) and None)


if __name__ == "__main__":
    main(*sys.argv[1:])
