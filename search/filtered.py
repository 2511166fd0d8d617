"""Search under a filter: by a bitmap of all that meets it, or candidate by candidate while nothing is known of it.

The bitmap takes a pass over the metadata of all documents, once for each commit. Where a filter passes much of what is
near a query, some hundred candidates that are found without it tell the same sooner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.ann.generation import Generation
from indexer.ann.kinds import Kind
from indexer.exact import distinct, rank, scan
from indexer.filters import CompiledFilter, Filter, compile_filter
from indexer.storage.snapshot import SnapshotReader
from search.nearest import AROUND, Nearest, how_hard, is_flooded, most_one_by_one, nearest, probes_text
from search.view import View

# Returns those of some slots, int64 ascending, whose document meets the filter.
Meeting: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.int64]]

_FEW_SLOTS = 10_000  # which an SQL index gives in the time of a search
_SAMPLE = 64
# Few candidates tell the share around a query roughly: more are asked for than it says, and more again where it turns
# out to be much less.
_TO_SPARE = 1.5
_MUCH_LESS = 0.8
_LONGEST_SEARCH = 8_192  # candidates


def nearest_filtered(
    view: View, reader: SnapshotReader, queries: NDArray[np.float32], k: int, wanted: Filter, *, exact: bool
) -> Nearest | None:
    """Find the k nearest slots that meet a filter, as `nearest` does for those that are allowed.

    Args:
        view: what to search.
        reader: of the same index.
        queries: (q, d) float32, unit length.
        k: how many, at least 1; fewer come back only when fewer meet the filter.
        wanted: the filter.
        exact: compare with every slot that meets it.

    Returns:
        The hits; None when a commit came in between.

    Raises:
        FilterError: no document has a field that the filter names.
        As `nearest`.
    """
    if (known := view.filtered.get(wanted)) is not None:
        return nearest(view, queries, k, known, exact=exact)
    may_look_up = len(queries) == 1 and not exact
    with reader.transaction() as seq:
        if seq != view.snapshot.seq:  # a newer commit may have other fields
            return None
        condition = compile_filter(wanted, view.snapshot.fields)
        slots = reader.indexed_slots(condition, _FEW_SLOTS) if may_look_up and view.is_new(wanted) else None
    if slots is None and may_look_up:
        looking_up = partial(_look_up, view, reader, wanted, condition)
        found = nearest_checked(view, queries, k, looking_up, view.lookups_left(wanted))
        if found is not None:
            return found
    if slots is None:
        with reader.transaction() as seq:
            if seq != view.snapshot.seq:
                return None
            slots = reader.matching_slots(condition)
    return nearest(view, queries, k, view.keep(wanted, slots), exact=exact)


def _look_up(
    view: View, reader: SnapshotReader, wanted: Filter, condition: CompiledFilter, slots: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return those of some slots that meet a filter, none when a commit came in between."""
    view.count_lookups(wanted, len(slots))
    with reader.transaction() as seq:
        return reader.meeting(slots, condition) if seq == view.snapshot.seq else np.empty(0, np.int64)


def nearest_checked(view: View, query: NDArray[np.float32], k: int, meeting: Meeting, most: int) -> Nearest | None:
    """Find the k nearest slots that meet a filter among candidates that are found without it.

    As many of them meet it as a search with the bitmap would compare, and they come from as many lists as it would look
    into if the filter passed everywhere what it passes around the query.

    Args:
        view: what to search.
        query: (1, d) float32, unit length.
        k: how many, at least 1.
        meeting: looks slots up.
        most: how many slots may be looked up, about.

    Returns:
        The hits; None where the bitmap must tell: when the filter passes too little around the query, when what it
        passes can be compared one by one, and where there is no approximate index.

    Raises:
        As `nearest`.
    """
    row = view.snapshot.generation
    if row is None or row.kind == Kind.FLAT or most < k or view.held_by_card():
        return None
    live, at_most_exact = view.live(), most_one_by_one(view)
    if live.n <= at_most_exact or not (view.is_searched() or len(meeting(_sample(view)))):
        return None
    generation = view.generation()
    if generation is None or not generation.index.takes_filters or _TO_SPARE * how_hard(generation, k, 1.0)[0] > most:
        return None
    index, effort = generation.index, generation.effort
    n_newer = live.n_from(generation.n_slots)
    share, n_asked = _share_around(view, generation, query, meeting), 0
    most = min(most - effort.depth, _LONGEST_SEARCH)
    while True:
        depth, times = how_hard(generation, k, share)
        n_asked = max(math.ceil(_TO_SPARE * depth / share), n_asked)
        if n_asked + min(n_asked, n_newer) > most or share * live.n <= at_most_exact:
            return None
        _, (found,) = index.search(query, n_asked, effort=effort, times=times, allowed=live.bits)
        newer = scan(view.vectors, query, n_asked, live, generation.n_slots)[0] if n_newer else found[:0]
        near = distinct(np.concatenate((found, newer)))
        good = meeting(near)
        most -= len(near)
        n_good = np.count_nonzero(np.isin(found, good))
        share_found = (n_good + 1) / (np.count_nonzero(found >= 0) + 1)
        is_enough = n_good >= depth and len(good) >= k
        if not is_enough or share_found < _MUCH_LESS * share or share_found * live.n <= at_most_exact:
            share = min(share_found, _MUCH_LESS * share)
            continue
        scores, slots = best = rank(view.vectors, query[0], good, max(k, 2))  # one hit has no equal
        # All newer ones that were not looked up are farther than the farthest that was.
        is_sure = len(newer) == n_newer or scores[k - 1] >= rank(view.vectors, query[0], newer, len(newer))[0][-1]
        older = good[good < generation.n_slots]
        best_older = rank(view.vectors, query[0], older, max(k, 2)) if n_newer else best
        if is_sure and not is_flooded(view.vectors, query[0], older, best_older):
            break
        n_asked *= 4
    plan = f"{generation.kind} index over {generation.n_slots:,} passages{probes_text(index, effort, times)}"
    plan += f", {len(good):,} of {len(near):,} candidates meet the filter"
    if n_newer:
        plan += f", {n_newer:,} newer ones compared one by one"
    return Nearest([scores[:k]], [slots[:k]], plan, False)


def _share_around(view: View, generation: Generation, query: NDArray[np.float32], meeting: Meeting) -> float:
    """Return about which share of the passages near a query meets a filter, never 0."""
    effort = generation.effort
    _, (around,) = generation.index.search(query, effort.depth, effort=effort, times=AROUND, allowed=view.live().bits)
    near = distinct(around)
    return (len(meeting(near)) + 1) / (len(near) + 1)


def _sample(view: View) -> NDArray[np.int64]:
    """Return some slots, ascending: to open the FAISS index is in vain where the filter passes next to nothing."""
    n_rows = view.snapshot.n_rows
    return np.sort(np.random.default_rng(0).choice(n_rows, min(_SAMPLE, n_rows), replace=False))
