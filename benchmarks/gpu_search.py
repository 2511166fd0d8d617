"""Search on a GPU: exact search of ten million rows against memory bandwidth, and what a GPU does for indexes.

    python benchmarks/gpu_search.py [--rows 10000000] [--stand-in]

`make gpu` runs it. The rows are made up: 384 dimensions, float16, 50,000 loose clusters; the queries are drawn from the
same clusters, and are no rows. Prints one JSON object. Exits with code 1 without a GPU, where an answer of the GPU is
not that of the CPU, or where a kind could not be built. --stand-in runs all of it on the CPU with few rows, to show
that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu import median_s
from numpy.typing import NDArray

from indexer.allowed import Allowed
from indexer.ann.gpu import Gpu
from indexer.ann.index import AnnIndex, load_faiss
from indexer.ann.kinds import AnnOptions, choose_recipe
from indexer.ann.training import make_index
from indexer.ann.tuning import Trial
from indexer.card import Card
from indexer.config import VectorDtype
from indexer.errors import IndexerError
from indexer.exact import rank, scan
from indexer.storage.vectors import VectorLayout, VectorReader, VectorWriter, create_vector_file, encode_rows

DIM, CLUSTERS, K, RUNS = 384, 50_000, 10, 5
BATCHES = (1, 32, 256)
QUERIES, CHECKED = 512, 8
# The last two are copied to the GPU and searched there; the first cannot be, the graph is searched on the CPU.
KINDS = ("ivf", "cagra", "IVF4096,SQ8", "IVF4096,PQ64")


def made_up(n: int, seed: int, block: int = 100_000) -> Iterator[NDArray[np.float32]]:
    """Yield unit vectors in loose clusters, blocks of them."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, DIM), np.float32)
    random = np.random.default_rng(seed)
    for first in range(0, n, block):
        size = min(block, n - first)
        rows = centres[random.integers(0, CLUSTERS, size)] + random.standard_normal((size, DIM), np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_rows(folder: Path, n: int) -> VectorReader:
    layout = VectorLayout(dim=DIM, dtype=VectorDtype.F16, index_uuid="ab" * 16)
    name = create_vector_file(folder, layout)
    writer = VectorWriter(folder, name, layout)
    first = 0
    for block in made_up(n, 1):
        writer.write(first, encode_rows(block, layout))
        first += len(block)
    writer.close()
    return VectorReader(folder, name, layout, n)


def bandwidth(card: Card, n_bytes: int) -> float:
    """Return the bytes that the device reads and writes in a second while it copies."""
    import torch

    source = torch.zeros(n_bytes, dtype=torch.uint8, device=card.device)
    target = torch.empty_like(source)
    return 2 * n_bytes / median_s(lambda: target.copy_(source), card.device.type)


def exact_search(card: Card, vectors: VectorReader, queries: NDArray[np.float32]) -> dict[str, Any]:
    """Time the copy to the device and batches of queries there, with and without a filter, and check some answers."""
    start = time.perf_counter()
    held = card.hold(vectors)
    if not held:
        return {"error": "no room on the device"}
    found: dict[str, Any] = {"copy_s": time.perf_counter() - start}
    rate = bandwidth(card, min(1 << 30, vectors.n_rows * vectors.layout.stride))
    least_s = vectors.n_rows * vectors.layout.stride / rate
    found |= {"bandwidth_gb_per_s": rate / 1e9, "bandwidth_ms": 1e3 * least_s}
    half = np.full(-(-vectors.n_rows // 8), 0x55, np.uint8)
    for batch in BATCHES:
        for name, allowed in (("", None), ("_filtered", half)):
            seconds = median_s(lambda: card.search(queries[:batch], K, allowed=allowed), card.device.type)  # noqa: B023
            found[f"batch_{batch}{name}_ms"] = 1e3 * seconds
    found["times_bandwidth"] = found["batch_1_ms"] / found["bandwidth_ms"]
    found["queries_per_s"] = 1e3 * BATCHES[-1] / found[f"batch_{BATCHES[-1]}_ms"]
    every = Allowed.all_but(np.empty(0, np.int64), vectors.n_rows)
    found["same_as_cpu"] = all(
        np.array_equal(rank(vectors, query, near, K)[1], rank(vectors, query, slots, K)[1])
        for query, near, slots in zip(
            queries[:CHECKED],
            scan(vectors, queries[:CHECKED], K, every),
            card.search(queries[:CHECKED], K + 16)[1],
            strict=True,
        )
    )
    return found


def built(
    kind: str, vectors: VectorReader, gpu: Gpu | None, queries: NDArray[np.float32], card: Card
) -> dict[str, Any]:
    """Build an index with and without the GPU, tune it, and search it with queries that it has not seen."""
    recipe = choose_recipe(AnnOptions(kind=kind), vectors.n_rows, DIM, VectorDtype.F16)
    found: dict[str, Any] = {"factory": recipe.factory}
    if kind == "cagra" and (gpu is None or not gpu.can_build_graphs):
        return {**found, "error": "the FAISS wheel has no CAGRA"}
    helpers = {"gpu": gpu} if gpu is not None else {}
    for name, helper in (helpers if kind == "cagra" else {"cpu": None, **helpers}).items():
        start = time.perf_counter()
        index = AnnIndex(make_index(vectors, recipe, helper, lambda *_: None), recipe.copies)
        found[f"build_{name}_s"] = time.perf_counter() - start
    tuned = Trial(vectors, vectors.n_rows).tune(index, 0.95).chosen
    found["tuned"] = tuned.to_json()
    effort, depth = tuned.effort, tuned.effort.depth
    live = Allowed.all_but(np.arange(0, vectors.n_rows, 100), vectors.n_rows).bits
    truth = [
        rank(vectors, query, near, K) for query, near in zip(queries, card.search(queries, K + 16)[1], strict=True)
    ]
    for name in ("cpu", "gpu"):
        if name == "gpu" and (gpu is None or not index.copy_to(gpu)):
            continue
        seconds = median_s(lambda: index.search(queries, depth, effort=effort), "cpu")
        found[f"{name}_queries_per_s_batched"] = len(queries) / seconds
        for what, allowed in (("", None), ("_a_hundredth_deleted", live)):
            seconds = median_s(lambda: index.search(queries[:1], depth, effort=effort, allowed=allowed), "cpu")  # noqa: B023
            found[f"{name}_ms_single{what}"] = 1e3 * seconds
        recalls = [
            np.isin(right, rank(vectors, query, near, K)[1]).mean()
            for query, near, (_, right) in zip(
                queries, index.search(queries, depth, effort=effort)[1], truth, strict=True
            )
        ]
        found[f"{name}_recall@10"] = float(np.mean(recalls))
    return found


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--stand-in", action="store_true", help="run on the CPU with few rows, to show that it runs")
    arguments = parser.parse_args()
    if not arguments.stand_in and not torch.cuda.is_available():
        sys.stderr.write("no GPU here: nothing was measured\n")
        return 1
    device = "cpu" if arguments.stand_in else "cuda"
    n_rows = min(arguments.rows, 30_000) if arguments.stand_in else arguments.rows
    gpu, card = Gpu.find(device), Card(device)
    queries = next(made_up(32 if arguments.stand_in else QUERIES, 2))
    with tempfile.TemporaryDirectory() as folder, write_rows(Path(folder), n_rows) as vectors:
        result: dict[str, Any] = {
            "card": "none, the CPU stands in" if arguments.stand_in else torch.cuda.get_device_name(0),
            "faiss": f"{load_faiss().__version__}, {load_faiss().get_num_gpus()} GPUs",
            "rows": n_rows,
            "exact": exact_search(card, vectors, queries),
        }
        result["built"] = {}
        for kind in arguments.kinds:
            try:
                result["built"][kind] = built(kind, vectors, gpu, queries, card)
            except (IndexerError, RuntimeError, MemoryError) as error:
                # The other kinds are worth measuring all the same.
                result["built"][kind] = {"error": str(error)}
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")
    failed = any("error" in found for found in result["built"].values())
    return int(failed or not result["exact"].get("same_as_cpu"))


if __name__ == "__main__":
    sys.exit(main())
