"""What storing, indexing and asking cost as an index grows: microseconds a text, milliseconds a query, on real vectors.

    python benchmarks/search_scale.py CACHE [--sizes 10000 50000 ...]

CACHE is the index that search_bench.py keeps; what a size has beyond it are mixtures of two of its vectors. Encoding,
which costs each text the same, is left out: texts are stored in commits of 2,048 as a build stores them, then the index
that `auto` chooses is made and tuned. The queries are such vectors as most are, but not stored. Prints a table in
Markdown and draws, of sizes that the cache has alone, scale_build.svg and scale_query.svg.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
from chart import write_plot
from search_corpus import mixed_blocks, mixtures, read_vectors, write_index

from indexer import Index
from indexer.storage.snapshot import SnapshotReader
from search.nearest import nearest
from search.view import View

HERE = Path(__file__).parent
SIZES = (10_000, 25_000, 50_000, 100_000, 200_000, 400_000, 800_000)
MOST_REAL = 800_000
QUERIES = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    stored = read_vectors(arguments.cache, min(max(arguments.sizes), MOST_REAL) + QUERIES)
    stored, left_out = stored[:-QUERIES], stored[-QUERIES:].astype(np.float32)
    rows: dict[str, list[float]] = {"store a text, \u00b5s": [], "index a text, \u00b5s": []}
    spent: list[float] = []
    sys.stdout.write(
        "| texts | store, \u00b5s a text | index and tune, \u00b5s a text | kind | ms a query | recall@10 |\n"
        + "|---" * 6
        + "|\n"
    )
    for n in arguments.sizes:
        queries = left_out if n <= 2 * len(stored) else mixtures(stored, QUERIES, np.random.default_rng(6))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            write_index(Path(folder), mixed_blocks(stored, n, 2_048), stored.shape[1])
            written = time.perf_counter()
            made = Index(folder).rebuild(kind="auto")
            done = time.perf_counter()
            with closing(SnapshotReader(Path(folder))) as reader:
                view = View.open(Path(folder), reader.snapshot())
            spent.append(1e3 * one_query(view, queries))
            recall = recall_of(view, queries)
        for name, seconds in zip(rows, (written - start, done - written), strict=True):
            rows[name].append(1e6 * seconds / n)
        store, index = (values[-1] for values in rows.values())
        sys.stdout.write(f"| {n:,} | {store:.0f} | {index:.0f} | {made.factory} | {spent[-1]:.2f} | {recall:.3f} |\n")
        sys.stdout.flush()
    if max(arguments.sizes) > MOST_REAL:
        return
    write_plot(HERE / "scale_build.svg", arguments.sizes, rows, "texts", "\u00b5s a text")
    write_plot(HERE / "scale_query.svg", arguments.sizes, {"search": spent}, "texts", "ms a query, one thread")


def one_query(view: View, queries: np.ndarray) -> float:
    """Return the median seconds of a search, behind some that warm it up."""
    times = []
    for query in np.concatenate((queries[:50], queries)):
        start = time.perf_counter()
        nearest(view, query[None], 10, view.live(), exact=False)
        times.append(time.perf_counter() - start)
    return median(times[50:])


def recall_of(view: View, queries: np.ndarray) -> float:
    """Return the recall@10 of single searches."""
    truth = nearest(view, queries, 10, view.live(), exact=True).slots
    found = [nearest(view, query[None], 10, view.live(), exact=False).slots[0] for query in queries]
    return float(np.mean([np.isin(right, near).mean() for right, near in zip(truth, found, strict=True)]))


if __name__ == "__main__":
    main()
