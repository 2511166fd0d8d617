"""What a GPU does for FAISS: it places and finds the lists of an IVF index, builds graphs, and searches a copy.

All of it needs a FAISS wheel for GPUs, the extra `gpu` or `cuvs`. What is written to a file is what the CPU would
write, but for the order of sums, and any wheel reads it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from indexer.ann.index import load_faiss
from indexer.ann.kinds import GRAPH_DEGREE
from indexer.storage.vectors import VectorReader

logger = logging.getLogger(__name__)

_SCRATCH_BYTES = 256 << 20  # FAISS's own choice is 1.5 GiB, beside an encoder that may need them
_TABLE_BYTES = 48 << 10  # of shared memory, for the distances of a query to the centroids of a product quantiser


@dataclass(frozen=True)
class Gpu:
    """A GPU that FAISS can use; `number` counts as CUDA does."""

    number: int

    @classmethod
    def find(cls, device: str | None) -> Gpu | None:
        """Return the first GPU of a device such as cuda:1, the first there is for None, and None when there is none.

        Args:
            device: as the encoder is told; `cpu` means that no GPU is used.
        """
        faiss = load_faiss()
        found = re.match(r"\s*cuda(?::(\d+))?\s*(?:,|$)", device or "cuda")
        if found is None or (number := int(found[1] or 0)) >= faiss.get_num_gpus():
            return None
        return cls(number)

    @cached_property
    def _resources(self) -> Any:  # noqa: ANN401 - faiss is untyped
        """Streams and scratch memory, taken when the GPU is first used: to ask for it costs nothing."""
        resources = load_faiss().StandardGpuResources()
        resources.setTempMemory(_SCRATCH_BYTES)
        return resources

    def copy(self, index: Any) -> Any | None:  # noqa: ANN401 - faiss is untyped
        """Return a copy of a FAISS index in the memory of the GPU, None when that is no kind for it or too large."""
        faiss = load_faiss()
        options = faiss.GpuClonerOptions()
        options.useFloat16 = _table_bytes(faiss.downcast_index(index)) > _TABLE_BYTES
        try:
            return faiss.index_cpu_to_gpu(self._resources, self.number, index, options)
        except (RuntimeError, MemoryError) as error:
            logger.info("%s stays on the CPU: %s", type(index).__name__, error)
            return None

    @property
    def can_build_graphs(self) -> bool:
        """Whether the wheel has CAGRA, which the extra `cuvs` brings."""
        return hasattr(load_faiss(), "GpuIndexCagra")

    def build_graph(self, vectors: VectorReader) -> Any:  # noqa: ANN401 - faiss is untyped
        """Return an HNSW index with a CAGRA graph over all rows as its lowest level, which every wheel can search.

        All rows are held in float32 twice while it is built, and once by whoever searches it. Source: Ootomo et al.,
        CAGRA (2023), https://arxiv.org/abs/2308.15136.
        """
        faiss = load_faiss()
        rows = np.empty((vectors.n_rows, vectors.layout.dim), np.float32)
        for first, block in vectors.streamed():
            rows[first : first + len(block)] = block
        config = faiss.GpuIndexCagraConfig()
        config.device = self.number
        config.graph_degree = GRAPH_DEGREE
        config.intermediate_graph_degree = 2 * GRAPH_DEGREE
        config.store_dataset = False  # the graph is all that is wanted
        graph = faiss.GpuIndexCagra(self._resources, rows.shape[1], faiss.METRIC_INNER_PRODUCT, config)
        graph.train(rows)
        index = faiss.IndexHNSWCagra()
        graph.copyTo(index)
        return index


def _table_bytes(index: Any) -> int:  # noqa: ANN401 - faiss is untyped
    """Return the bytes in float32 of the distances of a query to the centroids of a product quantiser; 0 if none."""
    return 4 * index.pq.M * index.pq.ksub if isinstance(index, load_faiss().IndexIVFPQ) else 0
