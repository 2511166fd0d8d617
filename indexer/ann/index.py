"""FAISS itself, loaded when it is first needed, and an index of it with the same way to search every type."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.allowed import are_set
from indexer.ann.kinds import Recipe
from indexer.errors import MissingExtraError, UsageError
from indexer.exact import ROUNDING

if TYPE_CHECKING:
    from indexer.ann.gpu import Gpu

logger = logging.getLogger(__name__)

_GPU_MOST = 2_048  # hits, and probes, that a search on a GPU can have
# A GPU looks into as many lists for every query: on the CPU 21 for all gave what a reach gave with 17 on average.
_GPU_TIMES = 1.3
_GPU_TO_SPARE = 3  # times as many as leave enough on average
# How FastScan goes through the lists: list by list takes a seventh less for one query, and twice as long for many.
_LIST_BY_LIST = 11
_TOGETHER = 0
_LONGEST_BEAM = 2_048
_QUERIES_AT_ONCE = 1_024


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


def said(error: RuntimeError | MemoryError) -> str:
    """Return what FAISS says of an error, without its place in the source."""
    return " ".join(str(error).split(": ", 1)[-1].split())


def empty_index(recipe: Recipe, dim: int) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return the untrained index of a recipe, for inner product.

    Raises:
        UsageError: FAISS does not understand the factory string, or cannot make that for so many dimensions.
    """
    faiss = load_faiss()
    try:
        index = faiss.index_factory(dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _no_index(recipe, dim, said(error)) from error
    inner = _innermost(index)
    if isinstance(inner, faiss.IndexIDMap):
        raise _no_index(recipe, dim, "ids are slots, and need no map")
    if getattr(inner, "nlist", 1) < 1:
        raise _no_index(recipe, dim, "it has no list")
    if hasattr(inner, "do_polysemous_training"):  # a minute for PQ32, and for a search that is never made here
        inner.do_polysemous_training = False
    return index


def _no_index(recipe: Recipe, dim: int, reason: str) -> UsageError:
    return UsageError(
        f"--kind {recipe.factory!r} gives no index of {dim} dimensions: {reason}; "
        "choose auto, flat, ivf, hnsw, cagra, or another FAISS factory string"
    )


def unevenness(index: Any) -> float:  # noqa: ANN401 - faiss is untyped
    """Return how many times as many codes a query meets as if the lists of an IVF index were alike; else 1."""
    inner = _innermost(index)
    return float(inner.invlists.imbalance_factor()) if isinstance(inner, load_faiss().IndexIVF) else 1.0


def _innermost(index: Any) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return the index behind the transforms of vectors."""
    faiss = load_faiss()
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How hard a search tries.

    `probes` is how many lists of an IVF index a query looks into, on average, or the length of the beam of HNSW, and
    `depth` how many candidates are scored from the vector file. With a `reach` a query looks into the lists whose
    centres score at most so much less than its nearest one, an easy query into few and a hard one into many; with None
    all look into the same number.
    """

    probes: int
    depth: int
    reach: float | None = None


class AnnIndex:
    """A FAISS index; searches pass their parameters with each call and change no answer of others.

    The scores of an exact index differ from those of `indexer.exact` by less than `rounding`.
    """

    rounding = ROUNDING

    def __init__(self, index: Any, copies: int = 1) -> None:  # noqa: ANN401 - faiss is untyped
        """Search an index that holds each slot so many times."""
        self._faiss = load_faiss()
        self._index = index
        self.copies = copies
        self.n_slots: int = index.ntotal // copies
        inner = _innermost(index)
        self._is_transformed = isinstance(self._faiss.downcast_index(index), self._faiss.IndexPreTransform)
        self._is_ivf = isinstance(inner, self._faiss.IndexIVF)
        self.is_graph = isinstance(inner, self._faiss.IndexHNSW)
        self._fast = inner if isinstance(inner, self._faiss.IndexIVFFastScan) else None
        self.max_probes: int = inner.nlist if self._is_ivf else _LONGEST_BEAM if self.is_graph else 0
        self._copy: Any = None
        self._plain_parameters: dict[int, Any] = {}  # by effort, without a filter

    @cached_property
    def _centres(self) -> NDArray[np.float32] | None:
        """The centres of the lists, (lists, d) float32; None for other types."""
        if not self._is_ivf or self._is_transformed:
            return None
        quantizer = self._faiss.downcast_index(self._faiss.downcast_index(self._index).quantizer)
        if not isinstance(quantizer, self._faiss.IndexFlat):
            return None
        # A copy: where the file is mapped they lie at any byte, and numpy would align them in each search.
        return np.array(self._faiss.rev_swig_ptr(quantizer.get_xb(), quantizer.ntotal * quantizer.d)).reshape(
            quantizer.ntotal, quantizer.d
        )

    def copy_to(self, gpu: Gpu) -> bool:
        """Let a GPU answer the searches that it can, those of an IVF index; return whether it will."""
        self._copy = gpu.copy(self._index) if self._is_ivf else None
        return self._copy is not None

    @cached_property
    def takes_filters(self) -> bool:
        """Whether `search` takes the slots that are allowed; FAISS has types that cannot."""
        if self._is_ivf or self.is_graph:
            return True
        every = np.full(-(-self.n_slots // 8), 255, np.uint8)
        try:
            self.search(np.zeros((1, self._index.d), np.float32), 1, allowed=every)
        except RuntimeError:
            return False
        return True

    def probes(self, effort: Effort, times: float = 1.0) -> int:
        """Return how many probes an effort, so many times as hard, comes to."""
        return max(1, min(math.ceil(effort.probes * times), self.max_probes))

    def reach(self, queries: NDArray[np.float32], probes: int) -> float | None:
        """Return the reach with which some queries, (q, d) float32, have so many lists on average.

        None where only a fixed number of probes is possible, or all lists are meant.
        """
        if self._centres is None or probes >= self.max_probes:
            return None
        scores = self._centre_scores(self._centres, queries)
        gaps = (scores.max(axis=1, keepdims=True) - scores).ravel()
        last = probes * len(queries) - 1
        return float(np.partition(gaps, last)[last])

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        effort: Effort | None = None,
        times: float = 1.0,
        allowed: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest slots of each query, as the codes of the index see them.

        Args:
            queries: (q, d) float32, unit length.
            k: how many at most; an index with copies of the slots may return a slot as often.
            effort: its probes and reach; None for as many as there are.
            times: how many times as hard.
            allowed: a bit for each slot, lowest first, that may be returned; None for all.

        Returns:
            scores, (q, k) float32, descending; slots, (q, k) int64, -1 = none.
        """
        if len(queries) > _QUERIES_AT_ONCE:
            parts = np.split(queries, range(_QUERIES_AT_ONCE, len(queries), _QUERIES_AT_ONCE))
            found = [self.search(part, k, effort=effort, times=times, allowed=allowed) for part in parts]
            return np.concatenate([scores for scores, _ in found]), np.concatenate([slots for _, slots in found])
        queries = np.ascontiguousarray(queries)
        self._go_through_lists(_LIST_BY_LIST if len(queries) == 1 else _TOGETHER)
        selector = None if allowed is None else self._faiss.IDSelectorBitmap(allowed)
        k = int(min(k, self.n_slots * self.copies))  # FAISS takes no integer of numpy
        probes = self.max_probes if effort is None else self.probes(effort, times)
        if self._copy is not None:
            by_reach = effort is not None and effort.reach is not None
            copy_probes = self.probes(effort, times * _GPU_TIMES) if effort is not None and by_reach else probes
            if (answer := self._allowed_by_copy(queries, k, copy_probes, allowed)) is not None:
                return answer
        if effort is None or effort.reach is None or self._centres is None or probes >= self.max_probes:
            with self._one_thread_for_one(len(queries)):
                scores, slots = self._index.search(queries, k, params=self._parameters(probes, k, selector))
            return scores, slots
        lists, list_scores = self._lists_within(self._centres, queries, effort.reach, times)
        return self._search_lists(queries, k, lists, list_scores, selector)

    @contextmanager
    def _one_thread_for_one(self, n_queries: int) -> Iterator[None]:
        """Starting a second thread costs more than one query gains; the number belongs to the thread that calls.

        A query whose lists are given takes one in any case.
        """
        before = self._faiss.omp_get_max_threads()
        if n_queries == 1:
            self._faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)

    def _go_through_lists(self, way: int) -> None:
        """Choose how FastScan does; another thread may change it meanwhile: all ways find the same."""
        if self._fast is not None and self._fast.implem != way:  # to set it takes longer than to ask
            self._fast.implem = way

    def _allowed_by_copy(
        self, queries: NDArray[np.float32], k: int, probes: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Return what the copy on the GPU finds; None where it cannot tell k allowed slots.

        It takes no filter. So it is asked for as many as should leave k, as they do where documents are deleted.
        """
        if allowed is None:
            return self._ask_copy(queries, k, probes)
        n_allowed = max(int(np.bitwise_count(allowed).sum()), 1)
        answer = self._ask_copy(queries, math.ceil(_GPU_TO_SPARE * k * self.n_slots / n_allowed), probes)
        if answer is None:
            return None
        scores, slots = answer
        is_good = (slots >= 0) & are_set(allowed, slots)
        if (np.count_nonzero(is_good, axis=1) < k).any():
            return None
        best = np.argsort(~is_good, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(slots, best, axis=1)

    def _ask_copy(
        self, queries: NDArray[np.float32], k: int, probes: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Search the copy on the GPU; None where that is too much for it, and no copy from then on where it fails."""
        if max(k, probes) > _GPU_MOST:
            return None
        try:
            scores, slots = self._copy.search(queries, k, params=self._parameters(probes, k, None))
        except (RuntimeError, MemoryError) as error:
            logger.warning("the CPU searches from here on, because the GPU failed: %s", said(error))
            self._copy = None
            return None
        return scores, slots

    @staticmethod
    def _centre_scores(centres: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.vecdot(centres, queries[0])[None] if len(queries) == 1 else queries @ centres.T  # one thread for one

    def _lists_within(
        self, centres: NDArray[np.float32], queries: NDArray[np.float32], reach: float, times: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the lists that each query looks into, (q, most) int64, -1 = none, and the scores of their centres."""
        scores = self._centre_scores(centres, queries)
        chosen = [_within(row, reach, times) for row in scores]
        if len(chosen) == 1:
            return chosen[0][None], scores.take(chosen[0], axis=1)
        lists = np.full((len(chosen), max(map(len, chosen))), -1)
        list_scores = np.zeros(lists.shape, np.float32)
        for i, each in enumerate(chosen):
            lists[i, : len(each)] = each
            list_scores[i, : len(each)] = scores[i, each]
        return lists, list_scores

    def _search_lists(
        self,
        queries: NDArray[np.float32],
        k: int,
        lists: NDArray[np.int64],
        list_scores: NDArray[np.float32],
        selector: Any,  # noqa: ANN401 - faiss is untyped
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        pointer = self._faiss.swig_ptr
        scores, slots = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        # FAISS's own wrapper, without the suffix, takes no parameters.
        self._index.search_preassigned_c(
            len(queries),
            pointer(queries),
            k,
            pointer(lists),
            pointer(list_scores),
            pointer(scores),
            pointer(slots),
            False,
            self._parameters(lists.shape[1], k, selector),
        )
        return scores, slots

    def _parameters(self, probes: int, k: int, selector: Any) -> Any:  # noqa: ANN401 - faiss is untyped
        effort = max(probes, k) if self.is_graph else probes
        if selector is not None:
            return self._make_parameters(effort, {"sel": selector})
        if effort not in self._plain_parameters:  # to make them takes FAISS's wrapper longer than to choose the lists
            self._plain_parameters[effort] = self._make_parameters(effort, {})
        return self._plain_parameters[effort]

    def _make_parameters(self, effort: int, chosen: dict[str, Any]) -> Any:  # noqa: ANN401 - faiss is untyped
        if self._is_ivf:
            inner = self._faiss.SearchParametersIVF(nprobe=effort, **chosen)
        elif self.is_graph:
            inner = self._faiss.SearchParametersHNSW(efSearch=effort, **chosen)
        elif not chosen:
            return None
        else:
            inner = self._faiss.SearchParameters(**chosen)
        if self._is_transformed:
            return self._faiss.SearchParametersPreTransform(index_params=inner)
        return inner


def _within(scores: NDArray[np.float32], reach: float, times: float) -> NDArray[np.int64]:
    """Return the lists whose centres score at most `reach` less than the nearest, or so many times as many lists."""
    within = np.flatnonzero(scores >= scores.max() - reach)
    if times == 1.0:
        return within
    n = min(math.ceil(len(within) * times), len(scores))
    return np.argpartition(scores, -n)[-n:]
