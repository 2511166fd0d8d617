"""Approximate search beside its peers, on real vectors, in one run: build, memory, bytes, recall, queries a second.

    make bench-search                                     # encodes the corpus once, then 200,000 vectors
    python benchmarks/search_bench.py --encode ../shared/data/package_summaries.jsonl.gz --n 800000
    python benchmarks/search_bench.py --n 50000 --peers clsindex hnswlib
    python benchmarks/search_bench.py --plot ROWS.jsonl   # what runs of several sizes printed, one below the other

Queries are vectors held out of the corpus. Each index lives in a process of its own and is asked in turns, so that what
else the machine does falls on all of them. A peer gets the cheapest effort whose recall@10 reaches the target; ours
gets what it was tuned to when it was built, which saw none of these queries. All but LanceDB and Chroma, which choose
for themselves, search with one thread, batches too. A hit is a slot whose cosine reaches that of the tenth nearest.
Prints one JSON object an index, and a table; `--plot` draws search_size.svg and search_filter.svg.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from chart import write_plot
from numpy.typing import NDArray
from search_corpus import encode_corpus, read_vectors
from search_peers import ONE_THREAD, PEERS, anonymous_bytes

HERE = Path(__file__).parent
K = 10
BUCKETS = 100_000
SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5)
SEED = 20


def serve(name: str, base: Path, connection: Connection, folder: str) -> None:
    """Build one index and answer searches until told to end."""
    before = anonymous_bytes()
    stored = np.load(base)
    vectors, buckets = stored["vectors"].astype(np.float32), stored["buckets"]
    del stored
    peer = PEERS[name]()
    start = time.perf_counter()
    peer.build(vectors, buckets, Path(folder))
    seconds = getattr(peer, "seconds", time.perf_counter() - start)
    n_bytes = peer.n_bytes()
    peer.search(vectors[:2], K, peer.efforts[0], None)
    del vectors
    connection.send((seconds, n_bytes, anonymous_bytes() - before))
    while (asked := connection.recv()) is not None:
        queries, effort, below, batch = asked
        found: list[NDArray] = []
        start = time.perf_counter()
        for first in range(0, len(queries), batch):
            found += peer.search(queries[first : first + batch], K, effort, below)
        connection.send((found, time.perf_counter() - start))


class Truth:
    """What exact search finds, for all vectors and for each filter."""

    def __init__(self, base: NDArray[np.float32], queries: NDArray[np.float32], buckets: NDArray[np.int64]) -> None:
        self._scores = queries @ base.T
        self._buckets = buckets

    def recall(self, found: list[NDArray], below: int | None) -> tuple[float, float]:
        """Return mean recall@10, and the share of queries that got as many hits as there are, up to ten."""
        keep = np.arange(len(self._buckets)) if below is None else np.flatnonzero(self._buckets < below)
        if not len(keep):
            return 1.0, 1.0
        k = min(K, len(keep))
        hits, full = [], []
        for scores, slots in zip(self._scores[: len(found)], found, strict=True):
            least = np.partition(scores[keep], -k)[-k] - 1e-5
            allowed = slots if below is None else slots[self._buckets[slots] < below]
            hits.append(min(int((scores[allowed] >= least).sum()), k) / k)
            full.append(len(slots) >= k)
        return float(np.mean(hits)), float(np.mean(full))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encode", type=Path, metavar="SOURCE", help="build the cache from this corpus first")
    parser.add_argument("--cache", type=Path, default=Path("build/package_summaries.index"), metavar="DIR")
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--plot", type=Path, metavar="ROWS", help="only draw what was measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    arguments = parser.parse_args()
    if arguments.plot:
        plot(arguments.plot)
        return
    if arguments.encode:
        encode_corpus(arguments.encode, arguments.cache)
    stored = read_vectors(arguments.cache, arguments.n)
    random = np.random.default_rng(SEED)
    held = np.sort(random.choice(len(stored), arguments.queries, replace=False))
    queries = stored[held].astype(np.float32)
    base = np.delete(stored, held, axis=0)
    buckets = random.integers(0, BUCKETS, len(base))
    truth = Truth(base.astype(np.float32), queries, buckets)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "base.npz")
        np.savez(path, vectors=base, buckets=buckets)
        rows = compare(arguments, path, queries, truth)
    for row in rows.values():
        sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.write(table(rows))


def compare(arguments: Any, path: Path, queries: NDArray[np.float32], truth: Truth) -> dict[str, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    rows: dict[str, dict[str, Any]] = {}
    pipes: dict[str, Connection] = {}
    workers = []
    os.environ[ONE_THREAD] = "1"  # for the workers; it is too late for this process
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.peers:
            own = Path(folder, name)
            own.mkdir()
            pipes[name], theirs = context.Pipe()
            workers.append(context.Process(target=serve, args=(name, path, theirs, str(own)), daemon=True))
            workers[-1].start()
            theirs.close()  # so that the death of a worker is noticed
            seconds, n_bytes, anonymous = pipes[name].recv()
            rows[name] = {"index": name, "n": arguments.n, "build_s": round(seconds, 1)}
            rows[name] |= {"mb": round(n_bytes / 1e6, 1), "anonymous_mb": round(anonymous / 1e6, 1)}
            choose_effort(pipes[name], rows[name], queries, truth, arguments.target)
            sys.stderr.write(json.dumps(rows[name]) + "\n")
        take_turns(pipes, rows, queries, arguments.rounds)
        sys.stderr.write(json.dumps(rows) + "\n")
        for name, pipe in pipes.items():
            if PEERS[name].filters:
                rows[name]["filtered"] = filtered(pipe, rows[name]["effort"], queries[:100], truth, name)
                sys.stderr.write(json.dumps(rows[name]) + "\n")
        for pipe in pipes.values():
            pipe.send(None)
        for worker in workers:
            worker.join(30)
    return rows


def ask(pipe: Connection, queries: NDArray[np.float32], effort: Any, below: int | None, batch: int) -> Any:
    pipe.send((queries, effort, below, batch))
    return pipe.recv()


def choose_effort(
    pipe: Connection, row: dict[str, Any], queries: NDArray[np.float32], truth: Truth, target: float
) -> None:
    for effort in PEERS[row["index"]].efforts:
        found, _ = ask(pipe, queries, effort, None, 100)
        row |= {"effort": effort, "recall@10": round(truth.recall(found, None)[0], 4)}
        if row["recall@10"] >= target:
            break


def take_turns(pipes: dict[str, Connection], rows: dict[str, Any], queries: NDArray[np.float32], rounds: int) -> None:
    """Time single queries and batches, one index after the other in each round."""
    times: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in pipes for batch in (1, len(queries))}
    for _ in range(rounds):
        for name, batch in times:
            times[name, batch].append(ask(pipes[name], queries, rows[name]["effort"], None, batch)[1])
    for (name, batch), seconds in times.items():
        word = "single" if batch == 1 else "batched"
        rates = sorted(len(queries) / s for s in seconds)
        rows[name][f"queries_per_s_{word}"] = round(median(rates))
        rows[name][f"spread_{word}"] = [round(rates[0]), round(rates[-1])]


def filtered(
    pipe: Connection, effort: Any, queries: NDArray[np.float32], truth: Truth, name: str
) -> list[dict[str, Any]]:
    """Measure recall and rate at each selectivity, with the cheapest effort that reaches the target."""
    rows = []
    for share in SHARES:
        below = round(share * BUCKETS)
        ask(pipe, queries[:1], effort, below, 1)  # ours and FAISS's keep the bitmap of a filter
        efforts = [each for each in PEERS[name].efforts if each is None or each >= effort]
        for each in efforts:
            found, seconds = ask(pipe, queries, each, below, 1)
            recall, full = truth.recall(found, below)
            if recall >= 0.95 or each == efforts[-1]:
                break
        row = {"share": share, "recall@10": round(recall, 4), "full": full, "effort": each}
        rate = len(queries) / seconds
        rows.append({**row, "queries_per_s": round(rate, 2 if rate < 10 else None)})
    return rows


def plot(path: Path) -> None:
    """Draw queries/s by size, and by the share that a filter passes at the largest size."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    sizes = sorted({row["n"] for row in rows})
    rates = {(row["index"], row["n"]): row["queries_per_s_single"] for row in rows}
    by_size = {name: [rates[name, n] for n in sizes] for name in PEERS if all((name, n) in rates for n in sizes)}
    write_plot(HERE / "search_size.svg", sizes, by_size, "vectors", "queries/s, single, one thread")
    largest = [row for row in rows if row["n"] == sizes[-1] and "filtered" in row]
    by_share = {row["index"]: [each["queries_per_s"] for each in row["filtered"]] for row in largest}
    write_plot(HERE / "search_filter.svg", SHARES, by_share, "share of the vectors that the filter passes", "queries/s")


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "\n| index | build s | anonymous MB | MB | recall@10 | queries/s single | batched |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        cells = [row["index"], row["build_s"], row["anonymous_mb"], row["mb"], row["recall@10"]]
        cells += [
            f"{row[f'queries_per_s_{w}']:,} ({row[f'spread_{w}'][0]:,}–{row[f'spread_{w}'][1]:,})"
            for w in ("single", "batched")
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    lines += ["\n| index | " + " | ".join(f"{share:.2%}" for share in SHARES) + " |", "|---" * (len(SHARES) + 1) + "|"]
    for row in rows.values():
        cells = [
            f"{f['recall@10']:.3f} ({f['full']:.0%} full), {f['queries_per_s']:,}/s" for f in row.get("filtered", [])
        ]
        lines.append(f"| {row['index']} | " + " | ".join(cells or ["cannot"] * len(SHARES)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
