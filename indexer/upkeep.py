"""Keeps the generation of an index in step with its vectors: builds, tunes, and tells when that is due."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from indexer.ann.engine import empty_index
from indexer.ann.generation import Generation, build_generation, grow_generation, is_usable
from indexer.ann.gpu import Gpu
from indexer.ann.kinds import LEAST_FOR_CAGRA, AnnOptions, Kind, Recipe, choose_recipe
from indexer.ann.training import OnStep
from indexer.ann.tuning import Point, Trial, Tuning
from indexer.documents import JsonValue
from indexer.errors import IndexCorruptError, UsageError
from indexer.generations import GenerationRow
from indexer.lock import writer_lock
from indexer.progress import OnProgress, Phase, Progress, tell_nobody
from indexer.snapshot import SnapshotReader
from indexer.store import Store, now
from indexer.vectors import VectorReader

logger = logging.getLogger(__name__)

TAIL_SLOTS = 20_000
DEAD_SHARE = 0.2
# After so many appended or dead slots, or this share of all, the recall is measured again: of newer queries, without
# what is dead.
CHECK_SLOTS = 5_000
CHECK_SHARE = 0.01
# What a generation was trained with may be a quarter of what it holds.
_MOST_GROWTH = 4
_GROWING = {Kind.IVF, Kind.HNSW, Kind.FACTORY}


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuildReport:
    """What a rebuild made: its kind, the FAISS factory string, slots, bytes, and the recall@10 that was measured.

    `recall` is None for an index that is exact or too small to measure; `warnings` are lines for the user.
    """

    kind: str
    factory: str
    slots: int
    bytes: int
    recall: float | None
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, row: GenerationRow, warnings: Sequence[str]) -> RebuildReport:
        """Return the report of a generation."""
        return cls(
            kind=row.kind,
            factory=str(row.details["factory"]),
            slots=row.n_slots,
            bytes=row.n_bytes,
            recall=_recorded_recall(row),
            warnings=tuple(warnings),
        )


def asked_before(store: Store) -> AnnOptions:
    """Return what was asked of the last generation, so that the next one is made alike; nothing when it is unknown."""
    current = _current(store)
    match (current.details.get("asked") if current else None) or store.asked():
        case {
            "kind": str() | None as kind,
            "target_recall": float() | int() | None as target,
            "max_memory_bytes": int() | None as memory,
        }:
            try:
                return AnnOptions(kind=kind, target_recall=target, max_memory_bytes=memory)
            except UsageError:
                return AnnOptions()
        case _:
            return AnnOptions()


def bring_generation_up_to_date(
    store: Store, asked: AnnOptions, on_progress: OnProgress = tell_nobody, device: str | None = None
) -> list[str]:
    """Build a new generation where there is none, many slots are dead, or another one is asked for.

    Where the tail is long, the generation that is there grows by it, into a new file, as long as the same recipe is
    due. Its recall is measured again when enough has changed.

    Args:
        store: the index, open for writing.
        asked: of the generation; what it leaves open is taken from the one that is there.
        on_progress: told after each step.
        device: whose GPU FAISS may use, e.g. cuda:1 or cpu; the default is the first GPU, where the wheel can use one.

    Returns:
        What the user should know, one line each.
    """
    current = _current(store)
    before = asked_before(store)
    asked = asked.over(before)
    if store.n_rows == 0:
        if asked != before:
            store.set_asked(asdict(asked))
        return []
    if current is None or asked != before or not is_usable(store.directory, current, store.layout.dim):
        return _rebuild(store, asked, on_progress, device)
    n_dead = store.counts()["dead"]
    n_newly_dead = n_dead - _number(current.details, "n_dead")
    n_tail = store.n_rows - current.n_slots
    if n_newly_dead > DEAD_SHARE * store.n_rows:
        return _rebuild(store, asked, on_progress, device)
    n_unchecked = n_tail + n_newly_dead - _number(current.details, "n_changed_at_check")
    warnings: list[str] = []
    if n_tail > TAIL_SLOTS:
        grown = _grown(store, current, asked, on_progress)
        if grown is None:
            return _rebuild(store, asked, on_progress, device)
        n_tail = 0
        # What has not been checked goes on counting.
        current = replace(grown, details={**grown.details, "n_changed_at_check": n_newly_dead - n_unchecked})
        store.replace_generation(current)
        warnings += _too_large(current, asked)
    is_due = n_unchecked >= max(CHECK_SLOTS, CHECK_SHARE * store.n_rows)
    if is_due and "search" in current.details and _n_live(store, current) > 1:
        warnings += _check(store, current, asked, n_tail + n_newly_dead, on_progress, device)
    return warnings


def check_recipe(asked: AnnOptions, dim: int, device: str | None = None) -> None:
    """Refuse what FAISS does not understand or cannot build here, before anything is encoded for it.

    Raises:
        UsageError: with what FAISS says.
    """
    if asked.named_kind is Kind.CAGRA and not _builds_graphs(Gpu.find(device)):
        msg = (
            "--kind cagra needs an NVIDIA GPU and: pip install 'clsindex[cuvs]' 'torch==2.10.*'; "
            "choose hnsw or ivf without them"
        )
        raise UsageError(msg)
    if asked.kind is not None and asked.named_kind is Kind.FACTORY:
        empty_index(Recipe(kind=Kind.FACTORY, factory=asked.kind, n_bytes=0), dim)


def _builds_graphs(gpu: Gpu | None) -> bool:
    return gpu is not None and gpu.can_build_graphs


def rebuild_generation(
    directory: Path, asked: AnnOptions, on_progress: OnProgress, device: str | None = None
) -> tuple[GenerationRow, list[str]]:
    """Make another generation of an index, whatever it has; nothing is encoded.

    Args:
        directory: of the index.
        asked: of the generation; what it leaves open is taken from the one that is there.
        on_progress: told after each step.
        device: as for `bring_generation_up_to_date`.

    Returns:
        The generation, and what the user should know, one line each.

    Raises:
        IndexNotFoundError: there is no index at the path.
        UsageError: the index is empty, or FAISS cannot make what is asked for, or cannot use the device.
    """
    if device not in {None, "cpu"} and Gpu.find(device) is None:
        msg = f"--device {device} is no GPU that FAISS can use here (extras gpu, cuvs); leave it out, or pass cpu"
        raise UsageError(msg)
    SnapshotReader(directory).close()  # says so when there is no index
    with writer_lock(directory), closing(Store.open(directory)) as store:
        _refuse_empty(store)
        asked = asked.over(asked_before(store))
        check_recipe(asked, store.layout.dim, device)
        warnings = _rebuild(store, asked, on_progress, device)
        return store.generations()[0], warnings


def tune_generation(directory: Path, target_recall: float | None, on_progress: OnProgress) -> Tuning:
    """Measure recall against latency of the generation of an index, and keep the parameters that reach the target.

    Args:
        directory: of the index.
        target_recall: recall@10; the default is the one asked for before.
        on_progress: told after each step.

    Raises:
        IndexNotFoundError: there is no index at the path.
        IndexCorruptError: the generation is damaged or missing.
        UsageError: there is no generation, or one that is exact.
    """
    SnapshotReader(directory).close()  # says so when there is no index
    with writer_lock(directory), closing(Store.open(directory)) as store:
        _refuse_empty(store)
        current = _current(store)
        if current is None:
            msg = f"{directory} has no generation to tune; make one: index rebuild {directory}"
            raise UsageError(msg)
        asked = AnnOptions(target_recall=target_recall).over(asked_before(store))
        try:
            generation = Generation(directory, current, store.layout.dim)
        except FileNotFoundError as error:
            msg = f"{directory / current.name} is missing; make it anew: index rebuild {directory}"
            raise IndexCorruptError(msg) from error
        if generation.kind.is_exact:
            msg = f"the generation of {directory} is {current.kind}, which is exact: there is nothing to tune"
            raise UsageError(msg)
        if _n_live(store, current) < 2:
            msg = f"the generation of {directory} holds fewer than two vectors: nothing to tune; add documents first"
            raise UsageError(msg)
        with _open_vectors(store) as vectors:
            tuning = _tune(store, vectors, generation, asked, on_progress)
        details = {**current.details, **_tuned(tuning), "asked": asdict(asked)}
        store.update_generation(replace(current, details=details))
        return tuning


def _rebuild(store: Store, asked: AnnOptions, on_progress: OnProgress, device: str | None) -> list[str]:
    warnings = []
    gpu = Gpu.find(device)
    can_be = asked
    if asked.named_kind is Kind.CAGRA and not _builds_graphs(gpu):
        can_be = AnnOptions(kind=Kind.HNSW).over(asked)
        warnings.append("--kind cagra, as asked before, needs an NVIDIA GPU and the extra cuvs; made hnsw this time")
    elif asked.named_kind is Kind.CAGRA and store.n_rows < LEAST_FOR_CAGRA:
        warnings.append(f"--kind cagra needs {LEAST_FOR_CAGRA:,} vectors, there are {store.n_rows:,}; made hnsw")
    recipe = choose_recipe(can_be, store.n_rows, store.layout.dim, store.layout.dtype)
    with _open_vectors(store) as vectors:
        row = build_generation(store.directory, vectors, recipe, gpu, now(), _shares(on_progress))
        details = {
            **row.details,
            "asked": asdict(asked),
            "n_dead": store.counts()["dead"],
            "n_trained": row.n_slots,
        }
        if not recipe.kind.is_exact and _n_live(store, row) > 1:
            generation = Generation(store.directory, row, store.layout.dim)
            tuning = _tune(store, vectors, generation, asked, on_progress)
            details |= _tuned(tuning)
            if not tuning.is_reached:
                warnings.append(_missed(row, tuning.chosen, tuning.target))
            if not generation.index.takes_filters:
                warnings.append(
                    f"FAISS cannot leave vectors out of a search of {recipe.factory}: with a filter, and once a "
                    "document is deleted, exact search takes its place; choose another --kind if that matters"
                )
    store.replace_generation(replace(row, details=details))
    return warnings + _too_large(row, asked)


def _grown(store: Store, current: GenerationRow, asked: AnnOptions, on_progress: OnProgress) -> GenerationRow | None:
    """Write a generation that goes on where the current one ends, and return its row to commit.

    None where one is to be made anew: another recipe is due, what the current one was trained with has become a small
    part, it was too small to be tuned, or FAISS cannot go on with it.
    """
    recipe = choose_recipe(asked, store.n_rows, store.layout.dim, store.layout.dtype)
    made = (current.kind, current.details.get("factory"), current.details.get("copies"))
    n_trained = _number(current.details, "n_trained") or current.n_slots
    if (
        recipe.kind not in _GROWING
        or made != (recipe.kind.value, recipe.factory, recipe.copies)
        or store.n_rows > _MOST_GROWTH * n_trained
        or "search" not in current.details
    ):
        return None
    with _open_vectors(store) as vectors:
        try:
            row = grow_generation(store.directory, current, vectors, recipe, now(), _shares(on_progress))
        except (FileNotFoundError, IndexCorruptError, UsageError) as error:
            logger.info("the FAISS file is made anew, not grown: %s", error)
            return None
    return replace(row, details={**current.details, **row.details, "n_trained": n_trained})


def _too_large(row: GenerationRow, asked: AnnOptions) -> list[str]:
    if asked.max_memory_bytes is None or row.n_bytes <= asked.max_memory_bytes:
        return []
    return [
        f"the {row.kind} index takes {row.n_bytes:,} bytes, more than --max-index-memory "
        f"{asked.max_memory_bytes:,}; no kind that was tried is smaller"
    ]


def _check(
    store: Store,
    current: GenerationRow,
    asked: AnnOptions,
    n_changed: int,
    on_progress: OnProgress,
    device: str | None,
) -> list[str]:
    """Measure the recall again; where it is surely too low, tune again, and build anew where that does not help.

    What has reached its target by no tuning is not built again for it.
    """
    generation = Generation(store.directory, current, store.layout.dim)
    with _open_vectors(store) as vectors:
        trial = _trial(store, vectors, generation, on_progress)
        point = trial.measure(generation.index, generation.effort)
        found: dict[str, JsonValue] = {"search": point.to_json(), "checked_at": now()}
        warnings = []
        if point.possible_recall < asked.target:
            tuning = trial.tune(generation.index, asked.target, _steps(on_progress))
            if not tuning.is_reached and _was_reached(current):
                return _rebuild(store, asked, on_progress, device)
            found = _tuned(tuning)
            if not tuning.is_reached:
                warnings.append(_missed(current, tuning.chosen, tuning.target))
    details = {**current.details, **found, "n_changed_at_check": n_changed}
    store.update_generation(replace(current, details=details))
    return warnings


def _n_live(store: Store, row: GenerationRow) -> int:
    """Return how many vectors of documents that stand a generation holds."""
    return row.n_slots - int(np.searchsorted(store.dead_slots(), row.n_slots))


def _trial(store: Store, vectors: VectorReader, generation: Generation, on_progress: OnProgress) -> Trial:
    # An index that takes no filter is not searched once there are dead slots.
    dead = store.dead_slots() if generation.index.takes_filters else None
    return Trial(vectors, generation.n_slots, _steps(on_progress), dead=dead)


def _tune(
    store: Store, vectors: VectorReader, generation: Generation, asked: AnnOptions, on_progress: OnProgress
) -> Tuning:
    return _trial(store, vectors, generation, on_progress).tune(generation.index, asked.target, _steps(on_progress))


def _was_reached(row: GenerationRow) -> bool:
    """Tell whether the last tuning of a generation reached its target; checks since then may have found less."""
    match row.details:
        case {"reached": bool(reached)}:
            return reached
        case {"target_recall": float(target)}:  # tuned before that was kept
            return (_recorded_recall(row) or 0.0) >= target
        case _:
            return False


def _recorded_recall(row: GenerationRow) -> float | None:
    """Return the recall@10 that was measured of a generation, None when none was."""
    match row.details.get("search"):
        case {"recall@10": float(recall)}:
            return recall
        case _:
            return None


def _shares(on_progress: OnProgress) -> OnStep:
    return lambda fraction, _step: on_progress(Progress(phase=Phase.INDEX, fraction=fraction * 0.8))


def _steps(on_progress: OnProgress) -> Callable[[], None]:
    return lambda: on_progress(Progress(phase=Phase.INDEX, fraction=0.9))


def _tuned(tuning: Tuning) -> dict[str, JsonValue]:
    return {
        "search": tuning.chosen.to_json(),
        "target_recall": tuning.target,
        "reached": tuning.is_reached,
        "tuning_queries": tuning.n_queries,
        "checked_at": now(),
    }


def _missed(row: GenerationRow, point: Point, target: float) -> str:
    effort = point.effort
    return (
        f"the {row.kind} index ({row.details['factory']}) reaches recall@10 {point.recall:.3f} at most (probes "
        f"{effort.probes}, depth {effort.depth}), not {target}; choose another --kind, or search with --exact"
    )


def _current(store: Store) -> GenerationRow | None:
    return next((row for row in store.generations() if row.vector_file == store.vector_file), None)


def _number(details: Mapping[str, JsonValue], key: str) -> int:
    value = details.get(key)
    return value if isinstance(value, int) else 0


def _open_vectors(store: Store) -> VectorReader:
    return VectorReader(store.directory, store.vector_file, store.layout, store.n_rows)


def _refuse_empty(store: Store) -> None:
    if store.n_rows == 0:
        msg = f"{store.directory} is empty; add documents first"
        raise UsageError(msg)
