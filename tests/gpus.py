"""GPUs for tests: the real one where there is one, else the CPU with the same interfaces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import pytest


def let_a_card_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every searcher a card that holds the rows in several chunks and copies 25 new ones or more."""
    import torch

    from indexer.card import Card

    monkeypatch.setattr("indexer.card._CHUNK_NUMBERS", 1_000)
    monkeypatch.setattr("indexer.card._NEW_ROWS", 24)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr("search.searcher._open_card", lambda _: Card(device))


@dataclass
class FakeFaissGpu:
    """FAISS's functions for GPUs, done by the CPU.

    `copied` holds the type of each index that was copied, `halved` of those that use float16; with `fails` a copy
    cannot be used.
    """

    copied: list[str] = field(default_factory=list)
    halved: list[str] = field(default_factory=list)
    fails: bool = False

    def index_cpu_to_gpu(self, resources: Any, number: int, index: Any, options: Any) -> Any:
        index = faiss.downcast_index(index)
        if isinstance(index, faiss.IndexIVFFastScan):
            raise RuntimeError("not implemented on a GPU")  # noqa: TRY004 - as FAISS does
        self.copied.append(type(index).__name__)
        if options.useFloat16:
            self.halved.append(type(index).__name__)
        return Failing(index.d) if self.fails else faiss.clone_index(index)

    def cagra(self, resources: Any, dim: int, metric: int, config: Any) -> Any:
        return Failing(dim) if self.fails else FakeCagra(dim, metric, config)


class Failing(faiss.IndexFlatIP):
    """An index in a memory that is full."""

    def search(self, rows: np.ndarray, k: int = 1, params: Any = None) -> None:
        raise RuntimeError("Error in void x() at y.cu:1: out of memory")

    train = search


class FakeCagra:
    """Builds an HNSW graph in the place of one by CAGRA."""

    def __init__(self, dim: int, metric: int, config: Any) -> None:
        self.index = faiss.IndexHNSWCagra(dim, config.graph_degree // 2, metric)

    def train(self, rows: np.ndarray) -> None:
        self.index.add(rows)

    def copyTo(self, index: Any) -> None:
        mine = self.index
        for name in ("d", "metric_type", "ntotal", "is_trained", "hnsw", "storage"):
            setattr(index, name, getattr(mine, name))
        index.referenced_objects = [self]  # the storage stays ours


class Settings:
    """What FAISS takes as options and resources."""

    def setTempMemory(self, n_bytes: int) -> None:
        assert n_bytes > 0


def let_faiss_have_a_gpu(monkeypatch: pytest.MonkeyPatch, *, cuvs: bool = True) -> FakeFaissGpu:
    """Let FAISS see one GPU, whatever wheel and machine this is."""
    fake = FakeFaissGpu()
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    for name in ("StandardGpuResources", "GpuClonerOptions", "GpuIndexCagraConfig"):
        monkeypatch.setattr(faiss, name, Settings, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", fake.index_cpu_to_gpu, raising=False)
    if cuvs:
        monkeypatch.setattr(faiss, "GpuIndexCagra", fake.cagra, raising=False)
    else:
        monkeypatch.delattr(faiss, "GpuIndexCagra", raising=False)
    return fake
