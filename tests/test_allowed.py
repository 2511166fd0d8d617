"""Allowed slots: the same as bits and as slots, and found wherever they lie and whatever the type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from anns import DIM, N, clustered, exact, nearest_through_generation, snapshot_of

from indexer.allowed import Allowed
from indexer.ann.kinds import AnnOptions
from indexer.progress import tell_nobody
from indexer.upkeep import rebuild_generation
from search.view import View


def test_allowed_slots_are_the_same_as_bits_and_as_slots() -> None:
    random = np.random.default_rng(0)
    for n in (1, 7, 8, 9, 100, 60_000):
        mask = random.random(n) < 0.7
        for allowed in (Allowed.only(np.flatnonzero(mask), n), Allowed.all_but(np.flatnonzero(~mask), n)):
            assert allowed.n == mask.sum()
            np.testing.assert_array_equal(allowed.has(np.arange(n)[::-1]), mask[::-1])
            for first in {0, 1, 8, n // 2, n}:
                if first <= n:
                    rest = np.concatenate(list(allowed.parts(first)) or [np.empty(0, np.int64)])
                    np.testing.assert_array_equal(rest, np.flatnonzero(mask[first:]) + first)
                    assert allowed.n_from(first) == len(rest)
    every = Allowed.all_but(np.empty(0, np.int64), 5)
    assert every.bits is None
    assert every.has(np.arange(5)).all()


def test_matches_that_lie_where_no_query_looks_are_found_all_the_same(
    ann_index: Path, vectors_6000: np.ndarray
) -> None:
    rebuild_generation(ann_index, AnnOptions(kind="ivf", target_recall=0.8), tell_nobody)
    query = vectors_6000[:1]
    keep = np.zeros(N, np.bool_)
    keep[np.argsort(vectors_6000 @ query[0])[:12]] = True  # the twelve farthest
    view = View.open(ann_index, snapshot_of(ann_index))
    found = nearest_through_generation(view, query, 10, Allowed.only(np.flatnonzero(keep), N))
    assert "index over" in found.plan
    assert [set(found.slots[0].tolist())] == exact(vectors_6000, query, 10, keep)


def test_a_type_that_takes_no_filter_is_told_and_exact_search_takes_its_place(
    ann_index: Path, vectors_6000: np.ndarray
) -> None:
    _, warnings = rebuild_generation(ann_index, AnnOptions(kind="PQ32", target_recall=0.5), tell_nobody)
    assert [warning for warning in warnings if "cannot leave vectors out of a search of PQ32" in warning] == warnings
    assert len(warnings) == 1
    view = View.open(ann_index, snapshot_of(ann_index))
    queries = clustered(3, DIM, 5)
    assert nearest_through_generation(view, queries, 10, view.live()).plan.startswith("factory index over")
    keep = np.arange(N) % 2 == 0
    found = nearest_through_generation(view, queries, 10, Allowed.only(np.flatnonzero(keep), N))
    assert found.exact
    assert [set(slots.tolist()) for slots in found.slots] == exact(vectors_6000, queries, 10, keep)
