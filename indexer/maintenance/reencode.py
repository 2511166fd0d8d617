"""Damaged vectors: which they are, and encoding their texts again as the index prescribes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.config import EncoderOptions
from indexer.encoder.contract import Contract
from indexer.errors import IndexerError, StorageError
from indexer.ingest import TextEncoder
from indexer.maintenance.compact import rewrite_vectors
from indexer.maintenance.verify import damaged_blocks
from indexer.opening import TextEncoderLoader, check_canaries
from indexer.progress import OnProgress, OnShare, Phase, Progress
from indexer.storage.store import Store
from indexer.storage.vectors import Block, VectorReader, encode_rows


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a vector file: `reason` in words, and the damaged blocks, each with the live slots in it."""

    reason: str
    blocks: dict[Block, NDArray[np.int64]]

    @property
    def n_live(self) -> int:
        """How many live passages lost their vector."""
        return sum(map(len, self.blocks.values()))


def find_damage(store: Store, on_share: OnShare) -> Damage | None:
    """Compare every block of the vector file with its checksum, and return what is wrong, None when all is sound.

    Args:
        store: opened without its vectors.
        on_share: told after each block.
    """
    live, blocks = store.live_slots(), store.blocks()
    vectors, reason = _what_is_there(store)
    with vectors or nullcontext():
        problems = damaged_blocks(vectors, blocks, on_share) if vectors else dict.fromkeys(blocks, reason)
    reason = reason or next(iter(problems.values()), "")
    damaged = {block: live[slice(*np.searchsorted(live, (block[0], block[0] + block[1])))] for block in problems}
    return Damage(reason, damaged) if reason else None


def mend_vectors(
    store: Store,
    damage: Damage,
    load_encoder: TextEncoderLoader,
    options: EncoderOptions,
    on_progress: OnProgress,
) -> None:
    """Let the index name a new vector file: sound rows are copied, those of damaged blocks encoded from their texts.

    All of it is one commit, and every passage keeps its place in the order.

    Args:
        store: opened without its vectors.
        damage: as `find_damage` gives it.
        load_encoder: makes the encoder; it is called only when a live passage lost its vector.
        options: where the model is, and where to encode.
        on_progress: told after each block.

    Raises:
        EncoderError: the model no longer gives the vectors that it gave; nothing was changed.
    """
    live = store.live_slots()
    if not damage.n_live:
        rewrite_vectors(store, _rows(store, live, damage, None), len(live), on_progress)
        return
    on_progress(Progress(phase=Phase.LOAD))
    with closing(load_encoder(options, contract=Contract.from_json(store.setting("contract")))) as encoder:
        check_canaries(store.canaries(), encoder)
        rewrite_vectors(store, _rows(store, live, damage, encoder), len(live), on_progress)


def _what_is_there(store: Store) -> tuple[VectorReader | None, str]:
    """Open as much of the vector file as there is, and say what is wrong with it as a whole, if anything."""
    reason = ""
    n_rows = store.n_rows
    try:
        path = store.directory / store.vector_file
        there = max(0, path.stat().st_size - store.layout.file_bytes(0)) // store.layout.stride
        if there < n_rows:
            reason = f"{path} holds {there} of {n_rows} committed rows"
        return VectorReader(store.directory, store.vector_file, store.layout, min(there, n_rows)), reason
    except (OSError, IndexerError) as error:
        return None, str(error)


def _rows(
    store: Store, live: NDArray[np.int64], damage: Damage, encoder: TextEncoder | None
) -> Iterator[NDArray[np.generic]]:
    vectors, _ = _what_is_there(store)
    with vectors or nullcontext():
        for block in store.blocks():
            start, stop = np.searchsorted(live, (block[0], block[0] + block[1]))
            slots = live[start:stop]
            if not len(slots):
                continue
            if block not in damage.blocks and vectors is not None:
                yield vectors.checked(*block)[slots - block[0]]
            elif encoder is not None:
                yield encode_rows(_encoded(encoder, store.passage_texts(slots)), store.layout)
            else:
                msg = f"{store.directory}: a vector was damaged while the index was mended; run again"
                raise StorageError(msg)


def _encoded(encoder: TextEncoder, texts: list[str]) -> NDArray[np.float32]:
    vectors = np.empty((len(texts), encoder.contract.dim), np.float32)
    for batch in encoder.encode_stream(texts):
        vectors[batch.positions] = batch.vectors
    return vectors
