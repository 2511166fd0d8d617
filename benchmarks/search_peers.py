"""The indexes that search_bench.py compares: each is built once in a process of its own and then asked in turns.

An index has `build(vectors, buckets, folder)`, `efforts` (in the order of cost), `search(queries, k, effort, below)`
and `n_bytes()`. `below` is a filter, bucket < below, with buckets drawn from [0, 100,000); None is no filter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ONE_THREAD = "OPENBLAS_NUM_THREADS"  # of numpy's products
BEAMS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)


class Peer(Protocol):
    efforts: tuple[Any, ...]
    filters: bool

    def build(self, vectors: NDArray[np.float32], buckets: NDArray[np.int64], folder: Path) -> None: ...
    def search(self, queries: NDArray[np.float32], k: int, effort: Any, below: int | None) -> list[NDArray]: ...
    def n_bytes(self) -> int: ...


class Ours:
    """An index directory without texts; `effort` None is what was tuned when it was built."""

    efforts = (None,)
    filters = True

    def build(self, vectors: NDArray[np.float32], buckets: NDArray[np.int64], folder: Path) -> None:
        import faiss

        from indexer.storage.snapshot import SnapshotReader
        from search.view import View

        # Built by another process, as an index is: what this one holds is what a reader holds.
        np.save(folder / "vectors.npy", vectors)
        command = [sys.executable, __file__, str(folder)]
        all_cores = {name: value for name, value in os.environ.items() if name != ONE_THREAD}
        built = subprocess.run(command, check=True, capture_output=True, text=True, env=all_cores)
        self.seconds = float(built.stdout)
        self._buckets = buckets
        self._view = View.open(folder / "index", SnapshotReader(folder / "index").snapshot())
        self._filtered: dict[int, Any] = {}
        faiss.omp_set_num_threads(1)  # as the others, for batches too

    def search(self, queries: NDArray[np.float32], k: int, effort: None, below: int | None) -> list[NDArray]:  # noqa: ARG002
        from indexer.allowed import Allowed
        from search.nearest import nearest

        allowed = self._view.live()
        if below is not None:
            if below not in self._filtered:
                self._filtered[below] = Allowed.only(np.flatnonzero(self._buckets < below), len(self._buckets))
            allowed = self._filtered[below]
        return nearest(self._view, queries, k, allowed, exact=False).slots

    def n_bytes(self) -> int:
        row = self._view.snapshot.generation
        return row.n_bytes if row else 0


class Hnswlib:
    efforts = BEAMS
    filters = True

    def build(self, vectors: NDArray[np.float32], buckets: NDArray[np.int64], folder: Path) -> None:
        import hnswlib

        self._buckets = buckets
        self._index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        self._index.init_index(max_elements=len(vectors), ef_construction=200, M=32)
        self._index.add_items(vectors, num_threads=2)
        self._index.set_num_threads(1)
        self._path = folder / "hnswlib.bin"

    def search(self, queries: NDArray[np.float32], k: int, effort: int, below: int | None) -> list[NDArray]:
        self._index.set_ef(max(effort, k))
        if below is None:
            return list(self._index.knn_query(queries, k=k)[0].astype(np.int64))
        buckets = self._buckets
        try:
            found, _ = self._index.knn_query(queries, k=k, filter=lambda label: bool(buckets[label] < below))
        except RuntimeError:  # fewer than k were found
            return [np.empty(0, np.int64) for _ in queries]
        return list(found.astype(np.int64))

    def n_bytes(self) -> int:
        self._index.save_index(str(self._path))
        return self._path.stat().st_size


class Usearch:
    efforts = BEAMS
    filters = False

    def build(self, vectors: NDArray[np.float32], buckets: NDArray[np.int64], folder: Path) -> None:  # noqa: ARG002
        from usearch.index import Index

        self._index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=16)
        self._index.add(np.arange(len(vectors)), vectors, threads=2)
        self._path = folder / "usearch.bin"

    def search(self, queries: NDArray[np.float32], k: int, effort: int, below: int | None) -> list[NDArray]:  # noqa: ARG002
        self._index.expansion_search = max(effort, k)
        found = self._index.search(queries, k, threads=1)
        keys = np.atleast_2d(found.keys)
        return list(keys.astype(np.int64))

    def n_bytes(self) -> int:
        self._index.save(str(self._path))
        return self._path.stat().st_size


class FaissHnsw:
    efforts = BEAMS
    filters = True

    def build(self, vectors: NDArray[np.float32], buckets: NDArray[np.int64], folder: Path) -> None:  # noqa: ARG002
        import faiss

        self._faiss, self._buckets = faiss, buckets
        self._bits: dict[int, NDArray[np.uint8]] = {}
        self._index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        faiss.omp_set_num_threads(2)
        self._index.add(vectors)
        faiss.omp_set_num_threads(1)

    def search(self, queries: NDArray[np.float32], k: int, effort: int, below: int | None) -> list[NDArray]:
        parameters = self._faiss.SearchParametersHNSW(efSearch=max(effort, k))
        if below is not None:
            if below not in self._bits:
                self._bits[below] = np.packbits(self._buckets < below, bitorder="little")
            parameters.sel = self._faiss.IDSelectorBitmap(self._bits[below])
        return list(self._index.search(queries, k, params=parameters)[1])

    def n_bytes(self) -> int:
        return len(self._faiss.serialize_index(self._index))


class Lance:
    efforts = tuple((probes, refine) for probes in (8, 16, 32, 64, 128, 256) for refine in (5, 20))
    filters = True

    def build(self, vectors: NDArray[np.float32], buckets: NDArray[np.int64], folder: Path) -> None:
        import lancedb
        import pyarrow as pa

        dim = vectors.shape[1]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
        table = pa.table({"id": np.arange(len(vectors)), "bucket": buckets, "vector": column})
        self._folder = folder
        self._table = lancedb.connect(folder).create_table("t", table)
        self._table.create_index(
            metric="dot", num_partitions=round(2 * len(vectors) ** 0.5), num_sub_vectors=dim // 8, index_type="IVF_PQ"
        )
        self._table.create_scalar_index("bucket")

    def search(self, queries: NDArray[np.float32], k: int, effort: tuple[int, int], below: int | None) -> list[NDArray]:
        found = []
        for query in queries:
            asked = self._table.search(query).distance_type("dot").nprobes(effort[0]).refine_factor(effort[1]).limit(k)
            if below is not None:
                asked = asked.where(f"bucket < {below}", prefilter=True)
            found.append(asked.select(["id"]).to_arrow()["id"].to_numpy())
        return found

    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())


class Chroma:
    efforts = (32, 64, 128, 256, 512)
    filters = True

    def build(self, vectors: NDArray[np.float32], buckets: NDArray[np.int64], folder: Path) -> None:
        import chromadb

        self._folder, self._effort = folder, 0
        client = chromadb.PersistentClient(str(folder), chromadb.config.Settings(anonymized_telemetry=False))
        settings = {"hnsw": {"space": "ip", "max_neighbors": 32, "ef_construction": 200}}
        self._collection = client.create_collection("vectors", configuration=settings, embedding_function=None)
        for first in range(0, len(vectors), 5_000):
            part = range(first, min(first + 5_000, len(vectors)))
            self._collection.add(
                ids=[str(i) for i in part],
                embeddings=vectors[part.start : part.stop],
                metadatas=[{"bucket": int(buckets[i])} for i in part],
            )

    def search(self, queries: NDArray[np.float32], k: int, effort: int, below: int | None) -> list[NDArray]:
        if effort != self._effort:
            self._collection.modify(configuration={"hnsw": {"ef_search": effort}})
            self._effort = effort
        where = None if below is None else {"bucket": {"$lt": below}}
        found = self._collection.query(query_embeddings=queries, n_results=k, where=where, include=[])
        return [np.array([int(i) for i in row], np.int64) for row in found["ids"]]

    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())


PEERS: dict[str, type[Peer]] = {
    "clsindex": Ours,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "faiss-hnsw": FaissHnsw,
    "lancedb": Lance,
    "chroma": Chroma,
}


def anonymous_bytes() -> int:
    """Return the anonymous resident memory of this process."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def build_ours(folder: Path) -> float:
    """Build our index of `vectors.npy`, and return the seconds for training, adding and tuning."""
    from search_corpus import write_index

    from indexer.ann.kinds import AnnOptions
    from indexer.upkeep import rebuild_generation

    (folder / "index").mkdir()
    vectors = np.load(folder / "vectors.npy")
    write_index(folder / "index", np.array_split(vectors, -(-len(vectors) // 20_000)), vectors.shape[1])
    start = time.perf_counter()
    rebuild_generation(folder / "index", AnnOptions(kind="ivf"), lambda _: None)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.stdout.write(str(build_ours(Path(sys.argv[1]))))
