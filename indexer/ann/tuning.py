"""Search parameters that reach a recall, measured against exact search on vectors of the corpus.

A live vector drawn from the corpus, which the index may not hold yet, is the query; its own slot is left out of truth
and answer. Among the parameters whose recall is above the target with 99 % confidence the fastest are taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from indexer.allowed import Allowed
from indexer.ann.index import AnnIndex, Effort
from indexer.documents import JsonValue
from indexer.exact import ROUNDING, rank, scan
from indexer.progress import OnShare
from indexer.storage.vectors import VectorReader

K = 10
_QUERIES = 1_000
_TIMED = 100
_ROUNDS = 5
_DEPTHS = (10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 160, 200, 300, 400)
_CONFIDENCE = 2.326  # standard errors, one-sided 99 %
_STEPS_MORE = 5
_SEED = 4321


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What an effort gives: mean recall@10, its standard error, and the milliseconds of one query on one thread."""

    effort: Effort
    recall: float
    error: float
    latency_ms: float

    @property
    def sure_recall(self) -> float:
        """The recall that is reached with 99 % confidence."""
        return _sure(self.recall, self.error)

    @property
    def possible_recall(self) -> float:
        """The recall that is not reached with 99 % confidence."""
        return _sure(self.recall, -self.error)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the point as it is kept with the generation."""
        return {
            "probes": self.effort.probes,
            "depth": self.effort.depth,
            "reach": self.effort.reach,
            "recall@10": round(self.recall, 4),
            "standard_error": round(self.error, 4),
            "latency_ms": round(self.latency_ms, 3),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What was measured with `n_queries` vectors of the corpus, in the order of effort, and what was chosen."""

    target: float
    n_queries: int
    chosen: Point
    points: tuple[Point, ...]

    @property
    def is_reached(self) -> bool:
        """Whether the chosen effort reaches the target."""
        return self.chosen.recall >= self.target

    def to_json(self) -> dict[str, JsonValue]:
        """Return the tuning as `index tune --json` prints it."""
        return {
            "target_recall": self.target,
            "reached": self.is_reached,
            "queries": self.n_queries,
            "chosen": self.chosen.to_json(),
            "points": [point.to_json() for point in self.points],
        }


class Trial:
    """Queries from the corpus with their exact nearest, to try an index with.

    `own` (q,) int64 are the slots of the queries, ascending, `queries` (q, d) float32 their vectors, and `k`, at most
    ten, how many nearest are looked for.
    """

    def __init__(
        self,
        vectors: VectorReader,
        n_slots: int,
        on_share: OnShare | None = None,
        *,
        dead: NDArray[np.int64] | None = None,
    ) -> None:
        """Draw the queries among all rows and find their nearest among slots below `n_slots`.

        Args:
            vectors: the vector file.
            n_slots: how many slots the indexes hold that will be tried.
            on_share: told how far the search for the nearest is.
            dead: slots, int64 ascending, that are neither query nor answer; an index that is tried must take filters.
        """
        dead = np.empty(0, np.int64) if dead is None else dead
        self._vectors = vectors
        held = Allowed.all_but(dead[dead < n_slots], n_slots)
        self._allowed = held.bits
        self.k = max(min(K, held.n - 1), 0)
        own = _draw(_QUERIES, vectors.n_rows, dead)
        rows = vectors.rows(own)
        # Copies of one text are one query: they find one another in any case.
        firsts = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        self.own, self.queries = own[firsts], rows[firsts]
        self._is_held = self.own < n_slots
        # The score of the k-th nearest; whatever reaches it is a hit.
        self.least = np.full(len(self.own), -np.inf, np.float32)
        if self.k > 0:
            near = scan(vectors, self.queries, self.k + 1, held, on_share=on_share)
            for i, slots in enumerate(near):
                scores, slots = rank(vectors, self.queries[i], slots, self.k + 1)
                self.least[i] = scores[slots != self.own[i]][self.k - 1] - ROUNDING

    def _scores(self, query: int, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the exact scores of some slots, -inf for none (-1) and for the query's own."""
        scores = np.vecdot(self._vectors.rows(np.maximum(slots, 0)), self.queries[query])
        scores[(slots < 0) | (slots == self.own[query])] = -np.inf
        return np.asarray(scores, np.float32)

    def recalls(self, index: AnnIndex, effort: Effort) -> NDArray[np.float64]:
        """Return the recall of each query at every depth from 1 to that of the effort, (q, depth) float64 in [0, 1]."""
        # The query's own slot takes as many places as it has copies; a depth means what is left to other slots.
        most = effort.depth + index.copies
        _, found = index.search(self.queries, most, effort=effort, allowed=self._allowed)
        is_hit = np.zeros(found.shape, np.bool_)
        for i, slots in enumerate(found):
            _, first = np.unique(slots, return_index=True)  # where a slot has copies, the first one counts
            is_hit[i, first] = self._scores(i, slots[first]) >= self.least[i]
        hits = np.minimum(np.cumsum(is_hit, axis=1), self.k)
        others = np.where(self._is_held[:, None], hits[:, index.copies :], hits[:, : -index.copies])
        return others / max(self.k, 1)

    def latency_ms(self, index: AnnIndex, effort: Effort) -> float:
        """Return the median time of one query on one thread, its candidates ranked by the vector file."""
        times = []
        for query in self.queries[:_TIMED]:
            start = time.perf_counter()
            _, found = index.search(query[None], effort.depth, effort=effort, allowed=self._allowed)
            rank(self._vectors, query, found[0], self.k)
            times.append(time.perf_counter() - start)
        return 1e3 * float(np.median(times))

    def _latencies_ms(self, index: AnnIndex, points: Sequence[Point]) -> list[float]:
        """Return the latency of each, timed in turns, so that what else the machine does falls on all of them."""
        rounds = [[self.latency_ms(index, point.effort) for point in points] for _ in range(_ROUNDS)]
        return [float(np.median(times)) for times in zip(*rounds, strict=True)]

    def measure(self, index: AnnIndex, effort: Effort) -> Point:
        """Return what one effort gives."""
        return self._point(index, effort, self.recalls(index, effort))

    def _point(self, index: AnnIndex, effort: Effort, recalls: NDArray[np.float64]) -> Point:
        recall, error = _mean(_at_depth(recalls, effort.depth))
        return Point(effort=effort, recall=recall, error=error, latency_ms=self.latency_ms(index, effort))

    def tune(self, index: AnnIndex, target: float, on_share: OnShare | None = None) -> Tuning:
        """Return the fastest effort that reaches a recall, the best one when none does.

        Args:
            index: to search.
            target: recall@10 in (0, 1].
            on_share: told after each step how far the work is, at most: the target may be reached sooner.
        """
        points: list[Point] = []
        steps_left = _STEPS_MORE
        ladder = list(_ladder(index.max_probes))
        for number, probes in enumerate(ladder, 1):
            depth = _DEPTHS[-1]
            if index.is_graph:  # a beam is as long as what is asked of it; the query's own slot takes a place
                depth = min(probes - 1, depth)
                if depth < K:
                    continue
            effort = Effort(probes=probes, depth=depth, reach=index.reach(self.queries, probes))
            point = self._cheapest(index, effort, self.recalls(index, effort), target)
            points.append(point)
            if on_share is not None:
                on_share(number / len(ladder))
            if self._meets(point, target):
                steps_left -= 1
                if not steps_left:
                    break
        if on_share is not None:
            on_share(1.0)
        meeting = [i for i, point in enumerate(points) if self._meets(point, target)]
        for i, latency_ms in zip(meeting, self._latencies_ms(index, [points[i] for i in meeting]), strict=True):
            points[i] = replace(points[i], latency_ms=latency_ms)
        chosen = (
            min((points[i] for i in meeting), key=lambda point: point.latency_ms)
            if meeting
            else max(points, key=lambda point: (point.recall, -point.effort.probes))
        )
        return Tuning(target=target, n_queries=len(self.queries), chosen=chosen, points=tuple(points))

    def _cheapest(self, index: AnnIndex, effort: Effort, recalls: NDArray[np.float64], target: float) -> Point:
        """Return the point of the smallest depth that meets the target, else of the smallest that gives as much."""
        best = float(recalls[:, -1].mean())
        for step in _DEPTHS:
            depth = min(max(step, K * index.copies), effort.depth)
            recall, error = _mean(_at_depth(recalls, depth))
            if _sure(recall, error) >= target or recall >= best - 1e-3:
                break
        return self._point(index, replace(effort, depth=depth), recalls)

    @staticmethod
    def _meets(point: Point, target: float) -> bool:
        return point.sure_recall >= target or point.recall >= 1.0


def _draw(n: int, n_rows: int, dead: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return so many of the slots that are not dead, or all where they are fewer, int64 ascending."""
    n_live = n_rows - len(dead)
    drawn = np.sort(np.random.default_rng(_SEED).choice(n_live, min(n, n_live), replace=False))
    # Before a dead slot lie as many live ones as it has lower slots that are not dead.
    return drawn + np.searchsorted(dead - np.arange(len(dead)), drawn, side="right")


def _mean(of_query: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(of_query.mean()), float(of_query.std()) / math.sqrt(len(of_query))


def _sure(recall: float, error: float) -> float:
    return recall - _CONFIDENCE * error


def _at_depth(recalls: NDArray[np.float64], depth: int) -> NDArray[np.float64]:
    return recalls[:, min(depth, recalls.shape[1]) - 1]


def _ladder(most: int) -> Iterator[int]:
    """Yield efforts from 1 to the most, each about an eighth more than the one before."""
    probes = 0
    while probes < most:
        probes = max(probes + 1, round(probes * 2 ** (1 / 6)))
        yield min(probes, most)
    if most == 0:
        yield 0
