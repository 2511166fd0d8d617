"""Judges what a disturbance left: does it open, is it whole, is it a state that was committed, can a writer go on?"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from disk import Image, write_tree
from indexes import searching
from workloads import QUERIES, WORKLOADS, K, State, Workload, small_commits

from indexer.errors import IndexerError, IndexNotFoundError
from indexer.maintenance.verify import verify_index
from indexer.storage.files import is_own_name
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store


class ViolationError(Exception):
    """A promise was broken."""


def inspect(workload: Workload, root: Path, acknowledged: int, *, writer_first: bool = False) -> int:
    """Check all promises on what stands in a root, let the run go on, and return the state that was found.

    Args:
        workload: what was going on.
        root: is changed.
        acknowledged: how many states the program told to be committed.
        writer_first: open for writing before reading; a reader comes first otherwise.

    Raises:
        ViolationError: a promise was broken.
    """
    try:
        if writer_first and (root / "index").exists():
            try:
                Store.open(root / "index").close()
            except IndexNotFoundError:
                if workload.states[0] is not None:
                    raise
        found = check_state(workload, root / workload.output, acknowledged, workload.last, deep=True)
        if workload.untouched is not None:
            _check_untouched(workload, root / workload.untouched)
        workload.run(root, lambda _: None)
        check_state(workload, root / workload.output, workload.last, workload.last, deep=False)
        _check_tidy(root / workload.output)
    except IndexerError as error:
        raise ViolationError(f"{type(error).__name__}: {error}") from error
    return found


def documents(index: Path) -> dict[str, dict[str, object]]:
    """Return the documents of an index by id, as records."""
    with closing(SnapshotReader(index)) as reader, reader.transaction():
        snapshot = reader.snapshot()
        stored = reader.passages(range(snapshot.n_rows))
        if len(stored) != snapshot.n_passages or len(stored) != reader.totals().documents:
            raise ViolationError(f"{snapshot.n_passages} passages, {len(stored)} readable")
        return {p.id: {"id": p.id, "text": p.text, **p.metadata} for p in stored.values()}


def check_state(workload: Workload, index: Path, lowest: int, highest: int, *, deep: bool) -> int:
    """Return which state stands there, after checking it."""
    try:
        held = documents(index)
    except IndexNotFoundError as error:
        if lowest == 0 and workload.states[0] is None:
            return 0
        raise ViolationError(f"{lowest} states were acknowledged: {error}") from error
    for number in range(highest, lowest - 1, -1):
        state = workload.states[number]
        if state is not None and state.documents == held:
            _check_sound(state, index, deep=deep)
            return number
    raise ViolationError(f"{len(held)} documents that are no state from {lowest} to {highest}: {sorted(held)[:9]}")


def _check_untouched(workload: Workload, index: Path) -> None:
    state = workload.states[-1]
    if state is None or documents(index) != state.documents:
        raise ViolationError(f"{index.name}, which is only read, changed")
    _check_sound(state, index, deep=True)


def _check_sound(state: State, index: Path, *, deep: bool) -> None:
    """Check that nothing is damaged, and the answers: through the generation where there is one, and without (deep)."""
    if problems := verify_index(index, deep=deep):
        raise ViolationError(f"verify: {'; '.join(problems)}")
    with patch("search.nearest.EXACT_SLOTS", -1), searching(index) as searcher:
        for exact in (False, True) if deep else (False,):
            for hits, expected in zip(searcher.search_batch(QUERIES, K, exact=exact), state.answers, strict=True):
                if [hit.id for hit in hits] != [id_ for id_, _ in expected]:
                    raise ViolationError(f"wrong hits: {[hit.id for hit in hits]}, not {expected}")
                if not np.allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-6):
                    raise ViolationError(f"wrong scores: {[hit.score for hit in hits]}, not {expected}")


def _check_tidy(index: Path) -> None:
    """Check that a run that came to its end is marked complete and left no file that nothing names."""
    with closing(SnapshotReader(index)) as reader:
        snapshot = reader.snapshot()
    named = {snapshot.vector_file, *(row.name for row in snapshot.generations)}
    strays = [path.name for path in index.iterdir() if is_own_name(path.name) and path.name not in named]
    if strays or not snapshot.is_complete or not snapshot.generations:
        raise ViolationError(
            f"at the end: strays {strays}, complete {snapshot.is_complete}, {len(named) - 1} generations"
        )


@dataclass(frozen=True)
class Find:
    """An image to judge, and afterwards what was wrong with it, "" for nothing."""

    workload: str
    acknowledged: int
    position: int
    image: Image
    writer_first: bool
    violation: str = ""


def prepare_worker() -> None:
    """Prepare a process that judges: one core is one worker's share."""
    import faiss

    faiss.omp_set_num_threads(1)


def judge(find: Find) -> Find:
    """Write an image to a directory of its own, inspect it, and return what was found, the image only if it is bad."""
    root = Path(tempfile.mkdtemp(prefix="torture-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        write_tree(root, find.image)
        with small_commits():
            inspect(WORKLOADS[find.workload], root, find.acknowledged, writer_first=find.writer_first)
    except ViolationError as error:
        return replace(find, violation=str(error).replace(str(root), ""))
    finally:
        shutil.rmtree(root)
    return replace(find, image={})
