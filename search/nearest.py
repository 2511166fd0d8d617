"""How the nearest slots are found: which of the ways fits, and the answer with its plan."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.allowed import Allowed
from indexer.ann.generation import Generation
from indexer.ann.index import AnnIndex, Effort
from indexer.ann.kinds import Kind
from indexer.exact import rank, scan, share_of_scores
from indexer.storage.vectors import VectorReader
from search.view import View

# Up to here comparing with every vector takes a few milliseconds, and spares loading FAISS.
EXACT_SLOTS = 10_000
# An IVF index takes about as long for what a filter leaves of a million as comparing with these.
EXACT_SLOTS_BESIDE_IVF = 3_000
# A flat index finds nothing sooner than the vector file does, so twice as many are worth 0.1 s of loading FAISS.
_TIMES_FOR_FLAT = 2
_SPARE = 16
_TUNED_K = 10
_FILTER_POWER = 0.6  # probes grow with this power of what a filter takes away
# Of a filter that passes less it is looked up how much it leaves around the query, in this part of its lists.
_NARROW = 0.25
AROUND = 0.25
# Where fewer of the candidates have a score of their own, copies of one text stand before others; then so many are
# compared at most.
_MOSTLY = 0.5
_SAME = 0.999
_DEEPEST = 8_192


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest slots of each query, each (at most k,) descending by score, with how they were found."""

    scores: list[NDArray[np.float64]]
    slots: list[NDArray[np.int64]]
    plan: str
    exact: bool


class _Exact(Protocol):
    """What finds the nearest of `n_slots` slots, its scores at most `rounding` beside the exact ones.

    `search` returns scores, (q, k) float32, descending, and slots, (q, k) int64, -1 = none.
    """

    n_slots: int

    @property
    def rounding(self) -> float: ...

    def search(
        self, queries: NDArray[np.float32], k: int, *, allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...


def nearest(view: View, queries: NDArray[np.float32], k: int, allowed: Allowed, *, exact: bool) -> Nearest:
    """Find the k nearest allowed slots of each query.

    Few candidates are compared one by one. Many go to the GPU, where there is one with room for the vectors, else
    through the generation; the slots that it does not cover, the tail, are compared one by one beside it.

    Args:
        view: what to search.
        queries: (q, d) float32, unit length.
        k: how many, at least 1; fewer come back only when fewer are allowed.
        allowed: which slots may be returned.
        exact: compare with every allowed slot, whatever it costs.

    Returns:
        The hits of each query; a tie goes to the lower slot.

    Raises:
        FileNotFoundError: the generation is gone; take a newer snapshot.
        MissingExtraError: no FAISS wheel is installed.
        StorageError: the disk cannot be read.
        IndexCorruptError: the vector file has become shorter.
        UsageError: the memory of the GPU does not suffice.
    """
    is_few = allowed.n <= most_one_by_one(view)
    holder = None if is_few else view.held_by_card() or (None if exact else view.generation())
    if holder is None:
        return _one_by_one(view, queries, k, allowed)
    n_newer = allowed.n_from(holder.n_slots)
    in_tail = scan(view.vectors, queries, k, allowed, holder.n_slots) if n_newer else None
    search = _Search(view, queries, k, allowed, in_tail)
    if isinstance(holder, Generation):
        is_exact = holder.kind.is_exact
        found = search.all_ties(holder.index) if is_exact else search.at_tuned_effort(holder)
        plan = f"{holder.kind} index over {holder.n_slots:,} passages{search.how}"
    else:
        found, is_exact = search.all_ties(holder), True
        plan = f"exact: compared with {holder.n_slots:,} passages on {holder.device}"
    if found is None:  # the index cannot give k hits though there are k, or takes no filter
        return _one_by_one(view, queries, k, allowed)
    if allowed.n != view.snapshot.n_rows:
        plan += f", {allowed.n:,} of {view.snapshot.n_rows:,} allowed"
    if n_newer:
        plan += f", {n_newer:,} newer ones compared one by one"
    return _answer(found, plan, is_exact=is_exact)


def most_one_by_one(view: View) -> int:
    """Return up to how many candidates are compared one by one where there is a generation."""
    match None if view.snapshot.generation is None else view.snapshot.generation.kind:
        case Kind.FLAT:
            return EXACT_SLOTS * _TIMES_FOR_FLAT
        case Kind.IVF:
            return EXACT_SLOTS_BESIDE_IVF
        case _:
            return EXACT_SLOTS


def _one_by_one(view: View, queries: NDArray[np.float32], k: int, allowed: Allowed) -> Nearest:
    n_rows = view.snapshot.n_rows
    of_all = f"{allowed.n:,}" if allowed.n == n_rows else f"{allowed.n:,} of {n_rows:,}"
    near = scan(view.vectors, queries, k, allowed)
    found = [rank(view.vectors, query, slots, k) for query, slots in zip(queries, near, strict=True)]
    return _answer(found, f"exact: compared with {of_all} passages", is_exact=True)


Best = tuple[NDArray[np.float64], NDArray[np.int64]]
_Found = list[Best]


@dataclass(slots=True)
class _Search:
    """One search through a generation or a GPU; `how` says what it took.

    `in_tail` holds what may be near each query among the newer slots, None when there are none.
    """

    view: View
    queries: NDArray[np.float32]
    k: int
    allowed: Allowed
    in_tail: list[NDArray[np.int64]] | None
    how: str = ""

    def all_ties(self, index: _Exact) -> _Found:
        """Ask an exact index for more until no slot with the score of the last hit can be outside."""
        wanted = self.k + _SPARE
        found: _Found = [(np.empty(0), np.empty(0, np.int64))] * len(self.queries)
        asked = np.arange(len(self.queries))
        while len(asked):
            scores, slots = index.search(self.queries[asked], wanted, allowed=self.allowed.bits)
            for i, best in zip(asked, self._ranked(slots, asked, self.k), strict=True):
                found[i] = best
            if wanted >= index.n_slots:
                break
            is_open = [
                near[-1] >= 0 and len(found[i][0]) == self.k and row[-1] >= found[i][0][-1] - index.rounding
                for i, row, near in zip(asked, scores, slots, strict=True)
            ]
            asked = asked[is_open]
            wanted = min(wanted * 4, index.n_slots)
        return found

    def at_tuned_effort(self, generation: Generation) -> _Found | None:
        """Search as hard as was tuned, harder for more hits and for a filter, and wider until there are k hits.

        Returns:
            The hits; None when the index takes no filter, or has looked everywhere and still has fewer than k.
        """
        index, effort = generation.index, generation.effort
        if self.allowed.bits is not None and not index.takes_filters:
            return None
        share = self.allowed.n / self.view.snapshot.n_rows
        if share < _NARROW:
            share = min(share, self._share_around(generation))
        depth, times = how_hard(generation, self.k, share)
        while True:
            probes = index.probes(effort, times)
            self.how = f"{probes_text(index, effort, times)}, {depth:,} candidates compared"
            _, slots = index.search(self.queries, depth, effort=effort, times=times, allowed=self.allowed.bits)
            is_all = probes >= index.max_probes
            # Where a filter leaves fewer candidates than are to be compared, nearer ones lie in other lists.
            if is_all or self.allowed.bits is None or (slots[:, -1] >= 0).all():
                found = self._ranked(slots, range(len(slots)), max(self.k, 2))  # one hit has no equal
                if all(len(best) >= self.k for best, _ in found):
                    self._look_past_copies(generation, slots, found, depth, times)
                    return [(scores[: self.k], best[: self.k]) for scores, best in found]
            if is_all:
                return None
            times *= 4

    def _look_past_copies(
        self, generation: Generation, slots: NDArray[np.int64], found: _Found, depth: int, times: float
    ) -> None:
        """Replace what was found for the queries of whose candidates copies of a text are most."""
        flooded = [i for i, near in enumerate(slots) if self._is_flooded(i, near, found[i])]
        for i in flooded:
            found[i] = self._deeper(generation, i, depth, times)
        if flooded:
            self.how += ", more where copies of a text stood before others"

    def _is_flooded(self, i: int, near: NDArray[np.int64], best: Best) -> bool:
        """Tell whether copies took the places of others among the candidates of a query, whatever is newer."""
        if self.in_tail is not None:
            best = rank(self.view.vectors, self.queries[i], near, max(self.k, 2))
        return is_flooded(self.view.vectors, self.queries[i], near, best)

    def _deeper(self, generation: Generation, i: int, depth: int, times: float) -> Best:
        """Return the nearest of one query among more and more candidates, until most are different."""
        index = generation.index
        most = min(max(_DEEPEST, depth), index.n_slots * index.copies)
        while True:
            depth = min(depth * 4, most)
            _, slots = index.search(
                self.queries[i : i + 1], depth, effort=generation.effort, times=times, allowed=self.allowed.bits
            )
            (best,) = self._ranked(slots, [i], max(self.k, 2))
            if depth == most or not self._is_flooded(i, slots[0], best):
                return best

    def _share_around(self, generation: Generation) -> float:
        """Return which share of the passages near a query the filter allows, never 0: the least of all queries."""
        effort = generation.effort
        _, slots = generation.index.search(self.queries, effort.depth, effort=effort, times=AROUND)
        is_near = slots >= 0
        is_allowed = is_near & self.allowed.has(slots)
        return float(((is_allowed.sum(axis=1) + 1) / (is_near.sum(axis=1) + 1)).min())

    def _ranked(self, slots: NDArray[np.int64], asked: Iterable[int], k: int) -> _Found:
        """Return the k nearest among the slots found for some queries, given by their places, and the newer slots."""
        found = []
        for i, near in zip(asked, slots, strict=True):
            candidates = near if self.in_tail is None else np.concatenate((near, self.in_tail[i]))
            found.append(rank(self.view.vectors, self.queries[i], candidates, k))
        return found


def probes_text(index: AnnIndex, effort: Effort, times: float) -> str:
    """Return what a plan says of the lists that a search looks into."""
    return f", {index.probes(effort, times):,} probes of {index.max_probes:,}" if index.max_probes else ""


def how_hard(generation: Generation, k: int, share: float) -> tuple[int, float]:
    """Return how many candidates k hits want, and how many times as hard to search where a filter passes a share."""
    index = generation.index
    more = max(1.0, k / _TUNED_K)
    depth = max(math.ceil(generation.effort.depth * more), k * index.copies)
    return min(depth, index.n_slots * index.copies), math.sqrt(more) * share**-_FILTER_POWER


def is_flooded(vectors: VectorReader, query: NDArray[np.float32], near: NDArray[np.int64], best: Best) -> bool:
    """Tell whether equal vectors take most of the places among the candidates of a query, whose nearest are given."""
    scores, _ = best
    # Else they are not the last hits, or nothing can be nearer than they are.
    if len(scores) < 2 or scores[-1] != scores[-2] or scores[-1] >= _SAME:
        return False
    return share_of_scores(vectors, query, near) < _MOSTLY


def _answer(found: _Found, plan: str, *, is_exact: bool) -> Nearest:
    return Nearest([scores for scores, _ in found], [slots for _, slots in found], plan, is_exact)
