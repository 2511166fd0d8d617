"""What is measured of a generation on vectors of its index, and how its row keeps that."""

from __future__ import annotations

import numpy as np

from indexer.ann.generation import Generation
from indexer.ann.kinds import AnnOptions
from indexer.ann.tuning import Point, Trial, Tuning
from indexer.documents import JsonValue
from indexer.progress import OnProgress, OnShare, Phase, part_of
from indexer.storage.generations import GenerationRow
from indexer.storage.store import Store, now
from indexer.storage.vectors import VectorReader

# How far a tuning is when it has the exact neighbours of its queries.
_COMPARED = 0.5


def open_vectors(store: Store) -> VectorReader:
    """Open the vector file with all rows that are committed."""
    return VectorReader(store.directory, store.vector_file, store.layout, store.n_rows)


def n_live(store: Store, row: GenerationRow) -> int:
    """Return how many vectors of documents that stand a generation holds."""
    return row.n_slots - int(np.searchsorted(store.dead_slots(), row.n_slots))


def new_trial(store: Store, vectors: VectorReader, generation: Generation, on_progress: OnProgress) -> Trial:
    """Draw queries among the live vectors of an index, and find their nearest among those that a generation holds."""
    # An index that takes no filter is not searched once there are dead slots.
    dead = store.dead_slots() if generation.index.takes_filters else None
    return Trial(vectors, generation.n_slots, part_of(on_progress, Phase.TUNE, 0.0, _COMPARED), dead=dead)


def tune(
    store: Store, vectors: VectorReader, generation: Generation, asked: AnnOptions, on_progress: OnProgress
) -> Tuning:
    """Tune a generation for the recall that was asked for."""
    trial = new_trial(store, vectors, generation, on_progress)
    return trial.tune(generation.index, asked.target, tuned_share(on_progress))


def was_reached(row: GenerationRow) -> bool:
    """Tell whether the last tuning of a generation reached its target; checks since then may have found less."""
    match row.details:
        case {"reached": bool(reached)}:
            return reached
        case {"target_recall": float(target)}:  # tuned before that was kept
            return (recorded_recall(row) or 0.0) >= target
        case _:
            return False


def recorded_recall(row: GenerationRow) -> float | None:
    """Return the recall@10 that was measured of a generation, None when none was."""
    match row.details.get("search"):
        case {"recall@10": float(recall)}:
            return recall
        case _:
            return None


def as_details(tuning: Tuning) -> dict[str, JsonValue]:
    """Return what the row of a generation keeps of a tuning."""
    return {
        "search": tuning.chosen.to_json(),
        "target_recall": tuning.target,
        "reached": tuning.is_reached,
        "tuning_queries": tuning.n_queries,
        "checked_at": now(),
    }


def missed(row: GenerationRow, point: Point, target: float) -> str:
    """Return what the user is told where no effort reaches the target."""
    effort = point.effort
    return (
        f"the {row.kind} index ({row.details['factory']}) reaches recall@10 {point.recall:.3f} at most (probes "
        f"{effort.probes}, depth {effort.depth}), not {target}; choose another --kind, or search with --exact"
    )


def tuned_share(on_progress: OnProgress) -> OnShare:
    """Return what a tuning tells how far it is."""
    return part_of(on_progress, Phase.TUNE, _COMPARED)
