"""Puts vectors into the lists of an IVF index, each into one of them or into two."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.ann.gpu import Gpu
from indexer.ann.index import load_faiss

_CHOICES = 16  # the nearest lists, among which the second one is chosen


class ListFiller:
    """Adds vectors to an IVF index; their lists are found by the CPU, or a GPU.

    Each goes into the list of its nearest centre. With two `copies` it goes into one more: a query that misses the
    nearest neighbours of a vector looks off its first centre in a direction that the second list should not share.
    Source: Sun et al., SOAR (2023), https://arxiv.org/abs/2404.00774, with lambda = 1.
    """

    def __init__(self, index: Any, copies: int, gpu: Gpu | None) -> None:  # noqa: ANN401 - faiss is untyped
        """Fill a trained index.

        Args:
            index: an IVF index, but no FastScan one, which takes no lists that were found elsewhere.
            copies: 1 or 2.
            gpu: what finds the nearest centres, where they fit.
        """
        self._faiss = load_faiss()
        self._index = index
        on_gpu = None if gpu is None else gpu.copy(index.quantizer)
        self._quantizer = index.quantizer if on_gpu is None else on_gpu
        self._n_choices = 1
        self._products: NDArray[np.float32] | None = None  # of each two centres
        if copies > 1:
            centres = index.quantizer.reconstruct_n(0, index.nlist)
            self._n_choices = min(_CHOICES, index.nlist)
            self._products = centres @ centres.T

    def add(self, first_slot: int, vectors: NDArray[np.float32]) -> None:
        """Add vectors, (n, d) float32, under the slots from `first_slot` on."""
        scores, near = self._quantizer.search(vectors, self._n_choices)
        self._add(first_slot, vectors, near[:, 0])
        if self._products is not None:
            self._add(first_slot, vectors, _second(self._products, vectors, scores, near))

    def _add(self, first_slot: int, vectors: NDArray[np.float32], lists: NDArray[np.int64]) -> None:
        slots = np.arange(first_slot, first_slot + len(vectors))
        pointer = self._faiss.swig_ptr
        lists = np.ascontiguousarray(lists)
        self._index.add_core(len(vectors), pointer(vectors), pointer(slots), pointer(lists))


def _second(
    products: NDArray[np.float32],
    vectors: NDArray[np.float32],
    scores: NDArray[np.float32],
    near: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return for each vector the list, but the first, with the least |e|^2 + (e . u)^2.

    e is the vector less the centre, and u the direction in which it lies from its first centre; all of it follows
    from the products of vectors and centres.
    """
    first, others = near[:, :1], near[:, 1:]
    squares = np.vecdot(vectors, vectors)[:, None]
    errors = squares - 2 * scores + products.diagonal()[near]  # |e|^2
    along = squares - scores[:, :1] - scores[:, 1:] + products[first, others]  # e . u, times the length of u
    losses = errors[:, 1:] + along**2 / np.maximum(errors[:, :1], np.finfo(np.float32).eps)
    return np.take_along_axis(others, losses.argmin(axis=1, keepdims=True), axis=1)[:, 0]
