"""How long a reader waits while an index is compacted: polls the newest commit every 2 ms from another process.

    python benchmarks/reader_wait.py DIR    # a copy of it is made, a tenth of its documents deleted, and compacted

Prints the longest waits in milliseconds, each with the number of the commit that was then seen.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from contextlib import closing
from multiprocessing.synchronize import Event
from pathlib import Path

from indexer import Index
from indexer.storage.snapshot import SnapshotReader


def poll(directory: Path, ended: Event) -> None:
    waits = []
    with closing(SnapshotReader(directory)) as reader:
        while not ended.is_set():
            start = time.perf_counter()
            seq = reader.seq()
            waits.append(((time.perf_counter() - start) * 1e3, seq))
            time.sleep(0.002)
    longest = ", ".join(f"{wait:.1f} ({seq})" for wait, seq in sorted(waits, reverse=True)[:5])
    sys.stdout.write(f"{len(waits)} polls, longest ms: {longest}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--runs", type=int, default=4)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory(dir=arguments.directory.parent) as folder:
            copy = Path(folder, "index")
            shutil.copytree(arguments.directory, copy)
            with closing(SnapshotReader(copy)) as reader:
                slots = range(0, reader.snapshot().n_rows, 10)
                with reader.transaction():
                    ids = sorted({passage.id for passage in reader.passages(slots).values()})
            Index(copy).delete(ids)
            ended = context.Event()
            poller = context.Process(target=poll, args=(copy, ended))
            poller.start()
            time.sleep(1)
            start = time.perf_counter()
            report = Index(copy).compact()
            seconds = time.perf_counter() - start
            ended.set()
            poller.join()
            sys.stdout.write(f"{report.dropped:,} dead of {report.dropped + report.passages:,}, {seconds:.1f} s\n")


if __name__ == "__main__":
    main()
