"""How the nearest slots are found: which of the ways fits, and the answer with its plan."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.ann.generation import Generation
from indexer.errors import IndexCorruptError
from indexer.exact import ROUNDING, rank, scan
from indexer.filters import Filter
from indexer.snapshot import Snapshot
from indexer.vectors import VectorReader

logger = logging.getLogger(__name__)

# Up to here comparing with every vector is as fast as anything, and spares loading FAISS.
EXACT_SLOTS = 20_000
_SPARE = 16
_CACHED_FILTERS = 8


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest slots of each query, each (at most k,) descending by score, with how they were found."""

    scores: list[NDArray[np.float64]]
    slots: list[NDArray[np.int64]]
    plan: str
    exact: bool


@dataclass(slots=True)
class View:
    """A snapshot with its files opened; the generation is opened when a search first needs it."""

    directory: Path
    snapshot: Snapshot
    vectors: VectorReader
    masks: dict[Filter, NDArray[np.bool_]] = field(default_factory=dict)
    _generation: Generation | None = None
    _trouble: str = ""

    @classmethod
    def open(cls, directory: Path, snapshot: Snapshot) -> View:
        """Open the files of a snapshot.

        Raises:
            FileNotFoundError: the vector file is gone; take a newer snapshot.
            IndexCorruptError: the vector file is damaged.
        """
        return cls(directory, snapshot, VectorReader(directory, snapshot.vector_file, snapshot.layout, snapshot.n_rows))

    def close(self) -> None:
        """Let go of the files."""
        self.vectors.close()
        self._generation = None

    def live(self) -> NDArray[np.bool_] | None:
        """Return which slots are live, (n_rows,) bool, None when all are."""
        if not len(self.snapshot.dead):
            return None
        mask = np.ones(self.snapshot.n_rows, np.bool_)
        mask[self.snapshot.dead] = False
        return mask

    def keep_mask(self, wanted: Filter, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Remember the slots that meet a filter, and return them as (n_rows,) bool."""
        mask = np.zeros(self.snapshot.n_rows, np.bool_)
        mask[slots] = True
        if len(self.masks) >= _CACHED_FILTERS:
            self.masks.pop(next(iter(self.masks)))
        self.masks[wanted] = mask
        return mask

    def generation(self) -> Generation | None:
        """Return the generation, None when there is none that can be used; exact search then takes its place.

        Raises:
            FileNotFoundError: the file is gone; take a newer snapshot.
            MissingExtraError: no FAISS wheel is installed.
        """
        row = self.snapshot.generation
        if row is None or self._trouble:
            return None
        if self._generation is None:
            try:
                self._generation = Generation(self.directory, row, self.snapshot.layout.dim)
            except IndexCorruptError as error:
                self.do_without_generation(str(error))
        return self._generation

    def do_without_generation(self, reason: str) -> None:
        """Let exact search take the place of the generation for as long as this view lasts."""
        self._trouble = reason
        logger.warning("exact search takes the place of the FAISS file: %s", reason)


def nearest(
    view: View, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, *, exact: bool
) -> Nearest:
    """Find the k nearest allowed slots of each query.

    Few candidates are compared one by one. Many go through the generation; the slots that it does not cover, the tail,
    are compared one by one beside it.

    Args:
        view: what to search.
        queries: (q, d) float32, unit length.
        k: how many, at least 1; fewer come back only when fewer are allowed.
        allowed: (n_rows,) bool, which slots may be returned; None for all.
        exact: compare with every allowed slot, whatever it costs.
    """
    n_rows = view.snapshot.n_rows
    n_allowed = n_rows if allowed is None else int(np.count_nonzero(allowed))
    generation = None if exact or n_allowed <= EXACT_SLOTS else view.generation()
    of_all = f"{n_allowed:,}" if n_allowed == n_rows else f"{n_allowed:,} of {n_rows:,}"
    if generation is None:
        slots = range(n_rows) if allowed is None else np.flatnonzero(allowed)
        found = [
            rank(view.vectors, query, near, k)
            for query, near in zip(queries, scan(view.vectors, queries, k, slots), strict=True)
        ]
        return _answer(found, f"exact: compared with {of_all} passages", is_exact=True)
    tail = np.arange(generation.n_slots, n_rows)
    if allowed is not None:
        tail = tail[allowed[generation.n_slots :]]
    found = _through_generation(view, generation, queries, k, allowed, tail)
    plan = f"{generation.kind} index over {generation.n_slots:,} passages"
    if n_allowed != n_rows:
        plan += f", {of_all} allowed"
    if len(tail):
        plan += f", {len(tail):,} newer ones compared one by one"
    return _answer(found, plan, is_exact=generation.kind.is_exact)


def _through_generation(
    view: View,
    generation: Generation,
    queries: NDArray[np.float32],
    k: int,
    allowed: NDArray[np.bool_] | None,
    tail: NDArray[np.int64],
) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    in_tail = scan(view.vectors, queries, k, tail)
    wanted = k + _SPARE
    covered = None if allowed is None else allowed[: generation.n_slots]
    while True:
        scores, slots = generation.search(queries, wanted, covered)
        found = [
            rank(view.vectors, query, np.concatenate((near[near >= 0], newer)), k)
            for query, near, newer in zip(queries, slots, in_tail, strict=True)
        ]
        # Slots with the score of the last hit may still be outside: equal texts stand in any number.
        settled = all(
            near[-1] < 0 or len(best) < k or row[-1] < best[-1] - ROUNDING
            for row, near, (best, _) in zip(scores, slots, found, strict=True)
        )
        if settled or wanted >= generation.n_slots:
            return found
        wanted = min(wanted * 4, generation.n_slots)


def _answer(found: list[tuple[NDArray[np.float64], NDArray[np.int64]]], plan: str, *, is_exact: bool) -> Nearest:
    return Nearest([scores for scores, _ in found], [slots for _, slots in found], plan, is_exact)
