"""FAISS itself, loaded when it is first needed, and an index of it with the same way to search every type."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.ann.kinds import Recipe
from indexer.errors import MissingExtraError, UsageError
from indexer.exact import ROUNDING

if TYPE_CHECKING:
    from indexer.ann.gpu import Gpu

_GPU_MOST = 2_048  # hits, and probes, that a search on a GPU can have
# How FastScan goes through the lists: list by list, a fifth faster for one query; by itself (0) it is half as fast
# again for many.
_LIST_BY_LIST = 11


def require_faiss() -> None:
    """Check that a FAISS wheel is installed, without importing it.

    Raises:
        MissingExtraError: there is none; the message names the extra.
    """
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError("faiss", "cpu")


def load_faiss() -> ModuleType:
    """Return the library."""
    require_faiss()
    import faiss

    return faiss


def said(error: RuntimeError) -> str:
    """Return what FAISS says of an error, without its place in the source."""
    return " ".join(str(error).split(": ", 1)[-1].split())


def empty_index(recipe: Recipe, dim: int) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return the untrained index of a recipe, for inner product.

    Raises:
        UsageError: FAISS does not understand the factory string, or cannot make that for so many dimensions.
    """
    faiss = load_faiss()
    try:
        return faiss.index_factory(dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        msg = (
            f"--kind {recipe.factory!r} gives no index of {dim} dimensions: {said(error)}; "
            "choose auto, flat, ivf, hnsw, cagra, or another FAISS factory string"
        )
        raise UsageError(msg) from error


class AnnIndex:
    """A FAISS index; searches pass their parameters with each call and change nothing that others share.

    The scores of an exact index differ from those of `indexer.exact` by less than `rounding`.
    """

    rounding = ROUNDING

    def __init__(self, index: Any, copies: int = 1) -> None:  # noqa: ANN401 - faiss is untyped
        """Search an index that holds each slot so many times."""
        self._faiss = load_faiss()
        self._index = index
        self._threads = self._faiss.omp_get_max_threads()
        self.copies = copies
        self.n_slots: int = index.ntotal // copies
        inner = self._inner()
        self._is_ivf = isinstance(inner, self._faiss.IndexIVF)
        self._is_hnsw = isinstance(inner, self._faiss.IndexHNSW)
        self._fast = inner if isinstance(inner, self._faiss.IndexIVFFastScan) else None
        self.max_probes: int = inner.nlist if self._is_ivf else 2048 if self._is_hnsw else 0
        self._copy: Any = None

    def copy_to(self, gpu: Gpu) -> bool:
        """Let a GPU answer the searches that it can, those of an IVF index without a filter; return whether it will."""
        self._copy = gpu.copy(self._index) if self._is_ivf else None
        return self._copy is not None

    def _inner(self) -> Any:  # noqa: ANN401 - faiss is untyped
        index = self._faiss.downcast_index(self._index)
        while isinstance(index, self._faiss.IndexPreTransform):
            index = self._faiss.downcast_index(index.index)
        return index

    def search(
        self, queries: NDArray[np.float32], k: int, *, probes: int = 0, allowed: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest slots of each query, as the codes of the index see them.

        Args:
            queries: (q, d) float32, unit length.
            k: how many at most; of an index with copies of the slots, so many with the copies.
            probes: lists to look into (IVF) or length of the beam (HNSW); other types have no such thing.
            allowed: a bit for each slot, lowest first, that may be returned; None for all.

        Returns:
            scores, (q, k) float32, descending; slots, (q, k) int64, -1 = none.
        """
        # The number of threads belongs to the calling thread; starting a second one costs more than one query gains.
        self._faiss.omp_set_num_threads(1 if len(queries) == 1 else self._threads)
        if self._fast is not None:  # another thread may change it meanwhile: both ways find the same
            self._fast.implem = _LIST_BY_LIST if len(queries) == 1 else 0
        selector = None if allowed is None else self._faiss.IDSelectorBitmap(allowed)
        k = min(k, self.n_slots * self.copies)
        probes = max(1, min(probes, self.max_probes))
        can_copy = self._copy is not None and selector is None and max(k, probes) <= _GPU_MOST
        index = self._copy if can_copy else self._index
        parameters = self._parameters(probes, k, selector)
        scores, slots = index.search(np.ascontiguousarray(queries), k, params=parameters)
        if self.copies > 1:
            slots[_is_repeated(slots)] = -1
        return scores, slots

    def _parameters(self, probes: int, k: int, selector: Any) -> Any:  # noqa: ANN401 - faiss is untyped
        chosen = {} if selector is None else {"sel": selector}
        if self._is_ivf:
            inner = self._faiss.SearchParametersIVF(nprobe=probes, **chosen)
        elif self._is_hnsw:
            inner = self._faiss.SearchParametersHNSW(efSearch=max(probes, k), **chosen)
        elif selector is None:
            return None
        else:
            inner = self._faiss.SearchParameters(**chosen)
        if isinstance(self._faiss.downcast_index(self._index), self._faiss.IndexPreTransform):
            return self._faiss.SearchParametersPreTransform(index_params=inner)
        return inner


def _is_repeated(slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each slot, (q, k), whether it stands in its row before."""
    order = slots.argsort(axis=1, kind="stable")
    ascending = np.take_along_axis(slots, order, axis=1)
    repeated = np.zeros(slots.shape, np.bool_)
    np.put_along_axis(repeated, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], axis=1)
    return repeated
