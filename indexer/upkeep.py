"""Keeps the generation of an index in step with its vectors: builds, tunes, and tells when that is due."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from indexer.ann.generation import Generation, build_generation, grow_generation, is_usable
from indexer.ann.gpu import Gpu
from indexer.ann.index import empty_index
from indexer.ann.kinds import LEAST_FOR_CAGRA, AnnOptions, Kind, Recipe, choose_recipe
from indexer.ann.training import OnStep
from indexer.ann.tuning import Tuning
from indexer.documents import JsonValue
from indexer.errors import IndexCorruptError, UsageError
from indexer.measuring import (
    as_details,
    missed,
    n_live,
    new_trial,
    open_vectors,
    recorded_recall,
    tune,
    tuned_share,
    was_reached,
)
from indexer.progress import OnProgress, Phase, part_of, tell_nobody
from indexer.storage.files import discard
from indexer.storage.generations import GenerationRow
from indexer.storage.lock import writer_lock
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store, now

logger = logging.getLogger(__name__)

TAIL_SLOTS = 20_000
DEAD_SHARE = 0.2
# After so many appended or dead slots, or this share of all, the recall is measured again: of newer queries, without
# what is dead.
CHECK_SLOTS = 5_000
CHECK_SHARE = 0.01
# What a generation was trained with may be half of what it holds.
_MOST_GROWTH = 2
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
            recall=recorded_recall(row),
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
    due. Its recall is measured again when enough has changed. What FAISS cannot make of the vectors is left undone, and
    tried again when the next one is due.

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
        return _rebuild_if_possible(store, asked, on_progress, device)
    if _n_newly_dead(store, current) > DEAD_SHARE * store.n_rows:
        return _rebuild_if_possible(store, asked, on_progress, device)
    n_unchecked = _n_changed(store, current) - _number(current.details, "n_changed_at_check")
    if store.n_rows - current.n_slots > TAIL_SLOTS:
        grown = _grown(store, current, asked, on_progress, device)
        if grown is None:
            return _rebuild_if_possible(store, asked, on_progress, device)
        # What has not been checked goes on counting.
        left = {"n_changed_at_check": _n_changed(store, grown) - n_unchecked}
        current = replace(grown, details={**grown.details, **left})
        store.replace_generation(current)
    is_due = n_unchecked >= max(CHECK_SLOTS, CHECK_SHARE * store.n_rows)
    if is_due and "search" in current.details and n_live(store, current) > 1:
        return _check(store, current, asked, on_progress, device)
    return []


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
        if n_live(store, current) < 2:
            msg = f"the generation of {directory} holds fewer than two vectors: nothing to tune; add documents first"
            raise UsageError(msg)
        with open_vectors(store) as vectors:
            tuning = tune(store, vectors, generation, asked, on_progress)
        checked: dict[str, JsonValue] = {"asked": asdict(asked), "n_changed_at_check": _n_changed(store, current)}
        details = {**current.details, **as_details(tuning), **checked}
        store.update_generation(replace(current, details=details))
        return tuning


def _rebuild_if_possible(store: Store, asked: AnnOptions, on_progress: OnProgress, device: str | None) -> list[str]:
    """Make another generation; where FAISS cannot, keep what is there, and what was asked for."""
    try:
        return _rebuild(store, asked, on_progress, device)
    except UsageError as error:
        current = _current(store)
        if current is None:
            store.set_asked(asdict(asked))
            instead = f"the {store.counts()['documents']:,} documents are searched one by one, exactly"
        else:
            store.update_generation(replace(current, details={**current.details, "asked": asdict(asked)}))
            instead = f"the {current.kind} index of before stays"
        return [f"{error}; {instead}; a kind that fits: index rebuild {store.directory} --kind auto"]


def _rebuild(store: Store, asked: AnnOptions, on_progress: OnProgress, device: str | None) -> list[str]:
    warnings = []
    gpu = Gpu.find(device)
    if asked.named_kind is Kind.CAGRA and not _builds_graphs(gpu):
        warnings.append("--kind cagra, as asked before, needs an NVIDIA GPU and the extra cuvs; made hnsw this time")
    elif asked.named_kind is Kind.CAGRA and store.n_rows < LEAST_FOR_CAGRA:
        warnings.append(f"--kind cagra needs {LEAST_FOR_CAGRA:,} vectors, there are {store.n_rows:,}; made hnsw")
    recipe = _recipe(store, asked, gpu)
    with open_vectors(store) as vectors:
        row = build_generation(store.directory, vectors, recipe, gpu, now(), _shares(on_progress))
        details = {
            **row.details,
            "asked": asdict(asked),
            "n_dead": store.n_dead(),
            "n_trained": row.n_slots,
        }
        if not recipe.kind.is_exact and n_live(store, row) > 1:
            generation = Generation(store.directory, row, store.layout.dim)
            tuning = tune(store, vectors, generation, asked, on_progress)
            details |= as_details(tuning)
            if not tuning.is_reached:
                warnings.append(missed(row, tuning.chosen, tuning.target))
            if not generation.index.takes_filters:
                warnings.append(
                    f"FAISS cannot leave vectors out of a search of {recipe.factory}: with a filter, and once a "
                    "document is deleted, exact search takes its place; choose another --kind if that matters"
                )
    if asked.max_memory_bytes is not None and row.n_bytes > asked.max_memory_bytes:
        warnings.append(
            f"the {row.kind} index takes {row.n_bytes:,} bytes, more than --max-index-memory "
            f"{asked.max_memory_bytes:,}; " + _advice_on_size(recipe, asked.max_memory_bytes)
        )
    store.replace_generation(replace(row, details=details))
    return warnings


def _advice_on_size(recipe: Recipe, limit: int) -> str:
    if recipe.kind is not Kind.IVF:
        return "--kind ivf makes a smaller one"
    return "there are no smaller codes" if recipe.n_bytes > limit else "a little less memory gives shorter codes"


def _recipe(store: Store, asked: AnnOptions, gpu: Gpu | None) -> Recipe:
    """Return what to make of what is asked for, where a graph that needs a GPU can be had from no GPU."""
    if asked.named_kind is Kind.CAGRA and not _builds_graphs(gpu):
        asked = AnnOptions(kind=Kind.HNSW).over(asked)
    return choose_recipe(asked, store.n_rows, store.layout.dim, store.layout.dtype)


def _grown(
    store: Store, current: GenerationRow, asked: AnnOptions, on_progress: OnProgress, device: str | None
) -> GenerationRow | None:
    """Write a generation that goes on where the current one ends, and return its row; None where it cannot."""
    recipe = _recipe(store, asked, Gpu.find(device))
    if why := _reason_not_to_grow(store, current, asked, recipe):
        logger.info("the FAISS file is made anew, not grown: %s", why)
        return None
    try:
        with open_vectors(store) as vectors:
            row = grow_generation(store.directory, current, vectors, recipe, now(), _shares(on_progress))
    except (FileNotFoundError, IndexCorruptError, UsageError) as error:
        logger.info("the FAISS file is made anew, not grown: %s", error)
        return None
    if asked.max_memory_bytes is not None and row.n_bytes > asked.max_memory_bytes:
        discard(store.directory / row.name)
        return None
    kept = {name: value for name, value in current.details.items() if name != "faiss"}
    return replace(row, details={**row.details, "n_trained": current.n_slots, **kept})


def _reason_not_to_grow(store: Store, current: GenerationRow, asked: AnnOptions, recipe: Recipe) -> str:
    """Say why a generation had better be made anew; empty when it can grow."""
    details = current.details
    n_trained = _n_trained(current)
    if recipe.kind not in _GROWING:
        return f"{recipe.kind} does not grow"
    if (current.kind, details.get("factory"), details.get("copies")) != (recipe.kind, recipe.factory, recipe.copies):
        return f"{recipe.factory} is due after {details.get('factory')}"
    if store.n_rows > _MOST_GROWTH * n_trained:
        return f"it was trained when there were {n_trained:,} slots, of now {store.n_rows:,}"
    if asked.max_memory_bytes is not None and max(recipe.n_bytes, current.n_bytes) > asked.max_memory_bytes:
        return f"it takes more than --max-index-memory {asked.max_memory_bytes:,}"
    return "" if "search" in details else "it was too small to be tuned"


def _check(
    store: Store,
    current: GenerationRow,
    asked: AnnOptions,
    on_progress: OnProgress,
    device: str | None,
) -> list[str]:
    """Measure the recall again; where it is surely too low, tune again, and build anew where that does not help.

    What has grown is tuned again where its recall is not surely high enough, and built anew at once where it is surely
    too low: tuning would search hard for what lists of its own would give. What has reached its target by no tuning is
    not built again for it.
    """
    generation = Generation(store.directory, current, store.layout.dim)
    with open_vectors(store) as vectors:
        trial = new_trial(store, vectors, generation, on_progress)
        point = trial.measure(generation.index, generation.effort)
        found: dict[str, JsonValue] = {"search": point.to_json(), "checked_at": now()}
        warnings = []
        is_grown = current.n_slots > _n_trained(current)
        if is_grown and point.possible_recall < asked.target and was_reached(current):
            return _rebuild_if_possible(store, asked, on_progress, device)
        if (point.sure_recall if is_grown else point.possible_recall) < asked.target:
            tuning = trial.tune(generation.index, asked.target, tuned_share(on_progress))
            if not tuning.is_reached and was_reached(current):
                return _rebuild_if_possible(store, asked, on_progress, device)
            found = as_details(tuning)
            if not tuning.is_reached:
                warnings.append(missed(current, tuning.chosen, tuning.target))
    details = {**current.details, **found, "n_changed_at_check": _n_changed(store, current)}
    store.update_generation(replace(current, details=details))
    return warnings


def _shares(on_progress: OnProgress) -> OnStep:
    on_share = part_of(on_progress, Phase.INDEX)
    return lambda share, _step: on_share(share)


def _current(store: Store) -> GenerationRow | None:
    return next((row for row in store.generations() if row.vector_file == store.vector_file), None)


def _n_trained(row: GenerationRow) -> int:
    """Return how many slots there were when a generation was trained."""
    return _number(row.details, "n_trained") or row.n_slots


def _n_newly_dead(store: Store, row: GenerationRow) -> int:
    """Return how many slots died since a generation was made, or the one that it grew from."""
    return store.n_dead() - _number(row.details, "n_dead")


def _n_changed(store: Store, row: GenerationRow) -> int:
    """Return how many slots came after those of a generation, or died since it was made."""
    return store.n_rows - row.n_slots + _n_newly_dead(store, row)


def _number(details: Mapping[str, JsonValue], key: str) -> int:
    value = details.get(key)
    return value if isinstance(value, int) else 0


def _refuse_empty(store: Store) -> None:
    if store.n_rows == 0:
        msg = f"{store.directory} is empty; add documents first"
        raise UsageError(msg)
