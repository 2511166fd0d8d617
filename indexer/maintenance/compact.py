"""Giving back the space of deleted documents: a new vector file of the live rows, then SQLite's free pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.ann.index import require_faiss
from indexer.progress import OnProgress, OnShare, Phase, part_of, tell_nobody
from indexer.storage.files import directory_bytes, discard
from indexer.storage.lock import writer_lock
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store
from indexer.storage.vectors import Block, VectorReader, VectorWriter, create_vector_file
from indexer.upkeep import asked_before, bring_generation_up_to_date

BLOCK_ROWS = 2_048
# A step of so many pages holds readers up for a few milliseconds.
_VACUUM_PAGES = 1_024


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactReport:
    """What compaction did: documents and passages that stayed, dead slots that went, bytes of the directory.

    `warnings` are lines for the user.
    """

    documents: int
    passages: int
    dropped: int
    bytes_before: int
    bytes_after: int
    warnings: tuple[str, ...]


def compact_index(directory: Path, on_progress: OnProgress = tell_nobody) -> CompactReport:
    """Give back the space of deleted and replaced documents; `Index.compact` says more.

    Readers go on meanwhile: until they refresh they read the old vector file, which has no name any more.

    Args:
        directory: of the index.
        on_progress: told after each step.

    Raises:
        IndexLockedError: another writer holds the index.
        IndexCorruptError: a vector that would have to be copied is damaged; nothing was changed.
        StorageError: the file system refused; the index is as it was, or compacted but for its free pages.
    """
    require_faiss()
    SnapshotReader(directory).close()  # says so when there is no index
    with writer_lock(directory), closing(Store.open(directory)) as store:
        bytes_before = directory_bytes(directory)
        asked = asked_before(store)
        dropped = store.n_dead()
        if dropped:
            with VectorReader(store.directory, store.vector_file, store.layout, store.n_rows) as vectors:
                live = store.live_slots()
                rewrite_vectors(store, live_rows(vectors, store.blocks(), live), len(live), on_progress)
        warnings = bring_generation_up_to_date(store, asked, on_progress)
        if not store.give_back_pages(_VACUUM_PAGES):
            warnings.append(
                "somebody is reading, so the database keeps its free pages; compact again to give them back"
            )
        counts = store.counts()
        bytes_after = directory_bytes(directory)
    return CompactReport(
        documents=counts["documents"],
        passages=counts["passages"],
        dropped=dropped,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        warnings=tuple(warnings),
    )


def rewrite_vectors(store: Store, parts: Iterable[NDArray[np.generic]], n_rows: int, on_progress: OnProgress) -> None:
    """Let the index name a new vector file with the rows of its live slots, in their order and without a gap.

    Args:
        store: the index.
        parts: the rows as they are stored, (n, d) each.
        n_rows: how many they are in all.
        on_progress: told after each part.
    """
    name = create_vector_file(store.directory, store.layout)
    try:
        with closing(VectorWriter(store.directory, name, store.layout)) as writer:
            blocks = _write(writer, parts, n_rows, part_of(on_progress, Phase.COPY))
    except BaseException:
        discard(store.directory / name)  # no commit can have named it
        raise
    store.replace_vectors(name, blocks)


def live_rows(vectors: VectorReader, blocks: Sequence[Block], live: NDArray[np.int64]) -> Iterator[NDArray[np.generic]]:
    """Yield the stored rows of live slots in their order, checked, about `BLOCK_ROWS` at a time.

    Args:
        vectors: where they are.
        blocks: all blocks, ascending.
        live: slots, int64 ascending.
    """
    waiting: list[NDArray[np.generic]] = []
    for first_slot, n_rows, crc in blocks:
        start, stop = np.searchsorted(live, (first_slot, first_slot + n_rows))
        if start == stop:
            continue
        waiting.append(vectors.checked(first_slot, n_rows, crc)[live[start:stop] - first_slot])
        if sum(map(len, waiting)) >= BLOCK_ROWS:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _write(
    writer: VectorWriter, parts: Iterable[NDArray[np.generic]], n_expected: int, on_share: OnShare
) -> list[Block]:
    """Write rows one behind the other, make them durable, and return their blocks."""
    blocks: list[Block] = []
    n_rows = 0
    for rows in parts:
        blocks.append((n_rows, len(rows), writer.write(n_rows, rows)))
        n_rows += len(rows)
        on_share(n_rows / n_expected)
    writer.sync()
    return blocks
