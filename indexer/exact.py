"""Exact search in the raw vector file, and the final ranking that every plan ends with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.allowed import Allowed
from indexer.storage.vectors import VectorReader

if TYPE_CHECKING:
    from indexer.progress import OnShare

# Two float32 dot products of the same unit vectors, summed in another order, differ by less than this.
ROUNDING = 1e-5
# Of decoded rows at a time: they stay in the cache of a core, and the process keeps their memory from block to block.
_SCAN_BYTES = 1 << 20
_RANK_ROWS = 8_192


def scan(
    vectors: VectorReader,
    queries: NDArray[np.float32],
    k: int,
    allowed: Allowed,
    first: int = 0,
    on_share: OnShare | None = None,
) -> list[NDArray[np.int64]]:
    """Return for each query the slots that may be among its k nearest, by comparing it with every slot allowed.

    Args:
        vectors: the vector file.
        queries: (q, d) float32, unit length.
        k: how many are wanted, at least 1.
        allowed: which slots to compare with.
        first: the lowest of them.
        on_share: told after each block how far the work is.

    Returns:
        One int64 array a query: at least the k nearest (all slots when there are fewer), with all that rounding could
        not tell from the k-th, in no particular order.
    """
    best = [_Best(k) for _ in queries]
    floors = np.full((len(queries), 1), -np.inf, np.float32)  # what is below is not among the k nearest
    for block_slots, block in _blocks(vectors, allowed, first):
        # One query stays on one thread: two gain little on so short a product, and wait long on a busy machine.
        scores = np.vecdot(block, queries[0])[None] if len(queries) == 1 else queries @ block.T  # (q, b)
        good = scores >= floors
        for i in np.flatnonzero(good.any(axis=1)):
            floors[i] = best[i].add(scores[i, good[i]], block_slots[good[i]])
        if on_share is not None:
            on_share((block_slots[-1] + 1) / allowed.n_rows)
    return [each.settled() for each in best]


class _Best:
    """What may be among the k nearest of one query.

    What is new waits until it is as much as what is held, so that many with one score are not merged again and again.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._floor = -np.inf
        self._scores = [np.empty(0, np.float32)]
        self._slots = [np.empty(0, np.int64)]
        self._n_waiting = 0

    def add(self, scores: NDArray[np.float32], slots: NDArray[np.int64]) -> float:
        """Take in some slots; return the score below which none is among the k nearest."""
        self._scores.append(scores)
        self._slots.append(slots)
        self._n_waiting += len(slots)
        if self._n_waiting >= len(self._slots[0]):
            self.settled()
        return self._floor

    def settled(self) -> NDArray[np.int64]:
        """Return the slots, without those that are not among the k nearest of all that came."""
        scores, slots = np.concatenate(self._scores), np.concatenate(self._slots)
        if len(scores) > self._k:
            self._floor = np.partition(scores, -self._k)[-self._k] - ROUNDING
            near = scores >= self._floor
            scores, slots = scores[near], slots[near]
        self._scores, self._slots, self._n_waiting = [scores], [slots], 0
        return slots


def _blocks(
    vectors: VectorReader, allowed: Allowed, first: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    size = max(1, _SCAN_BYTES // (4 * vectors.layout.dim))
    if allowed.bits is None:
        for start, block in vectors.blocks(first, allowed.n_rows, size):
            yield np.arange(start, start + len(block)), block
        return
    for part in allowed.parts(first):
        for start in range(0, len(part), size):
            slots = part[start : start + size]
            yield slots, vectors.rows(slots)


def rank(
    vectors: VectorReader, query: NDArray[np.float32], slots: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the k nearest of some slots, with scores that depend on nothing but the two vectors.

    Each score is summed in float64 in one fixed order, so equal vectors have equal scores and a tie goes to the lower
    slot, which is the older document.

    Args:
        vectors: the vector file.
        query: (d,) float32, unit length.
        slots: int64, in any order; one that stands there again, and -1, count for nothing.
        k: how many at most.

    Returns:
        scores, (at most k,) float64, cosine clamped to [-1, 1], descending; slots, int64, beside them.
    """
    slots = distinct(slots)
    if not len(slots):
        return np.empty(0, np.float64), slots
    query64 = query.astype(np.float64)
    found, kept = [], []
    for first in range(0, len(slots), _RANK_ROWS):
        part = slots[first : first + _RANK_ROWS]
        rows = vectors.rows(part)
        if len(part) > 2 * k:  # only what float32 cannot tell from the k nearest needs the exact score
            rough = np.vecdot(rows, query)
            near = np.flatnonzero(rough >= np.partition(rough, -k)[-k] - ROUNDING)
            part, rows = part.take(near), rows.take(near, axis=0)
        kept.append(part)
        found.append((rows * query64).sum(axis=1))
    scores, slots = np.concatenate(found), np.concatenate(kept)
    order = np.lexsort((slots, -scores))[:k]
    return np.minimum(np.maximum(scores.take(order), -1.0), 1.0), slots.take(order)


def share_of_scores(vectors: VectorReader, query: NDArray[np.float32], slots: NDArray[np.int64]) -> float:
    """Return how many different scores some slots have, as a share of the slots: equal vectors have one.

    Args:
        vectors: the vector file.
        query: (d,) float32.
        slots: int64, in any order; one that stands there again, and -1, count for nothing.
    """
    slots = distinct(slots)
    scores = [np.vecdot(vectors.rows(part), query) for part in np.array_split(slots, -(-len(slots) // _RANK_ROWS) or 1)]
    return len(np.unique(np.concatenate(scores))) / max(len(slots), 1)


def distinct(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return slots ascending, each once and without -1."""
    ascending = np.sort(slots)
    is_new = np.greater(ascending, -1)
    is_new[1:] &= ascending[1:] > ascending[:-1]
    return ascending[is_new]
