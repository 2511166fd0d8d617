"""The index that a build goes to: what it records, which options contradict it, and opening or creating it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.config import EncoderOptions, ReadOptions, VectorDtype
from indexer.encoder.contract import CANARY_TEXTS, Contract
from indexer.errors import ContractError, EncoderError, IndexNotFoundError, UsageError
from indexer.ingest import TextEncoder
from indexer.storage.files import DATABASE, LOCK, is_own_name, storage_errors, sync_directory
from indexer.storage.lock import writer_lock
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store

REJECTS = "rejects.jsonl"
CANARY_COSINE = 0.999


class TextEncoderLoader(Protocol):
    """Makes the encoder of a build: from options alone, or for an index with a contract."""

    def __call__(self, options: EncoderOptions, *, contract: Contract | None) -> TextEncoder: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an index records of how it is made."""

    contract: Contract
    read: ReadOptions
    vector_dtype: VectorDtype
    n_rows: int


def read_recorded(directory: Path) -> Recorded | None:
    """Return what the index at a path records, None when there is no index yet.

    Raises:
        IndexFormatError: this version cannot read it.
        IndexCorruptError: the database is damaged.
    """
    try:
        reader = SnapshotReader(directory)
    except IndexNotFoundError:
        return None
    with closing(reader):
        snapshot = reader.snapshot()
        return Recorded(
            Contract.from_json(reader.setting("contract")),
            ReadOptions.from_json(reader.setting("read")),
            snapshot.layout.dtype,
            snapshot.n_rows,
        )


def check_target(directory: Path) -> None:
    """Refuse a place where a new index would stand among other files."""
    if directory.exists() and not directory.is_dir():
        msg = f"{directory} is a file; give --out a directory that is new, empty or an index"
        raise UsageError(msg)
    if directory.is_dir():
        ours = {DATABASE, f"{DATABASE}-journal", LOCK, REJECTS}
        foreign = sorted(p.name for p in directory.iterdir() if p.name not in ours and not is_own_name(p.name))
        if foreign:
            msg = f"{directory} is not an index and holds other files ({foreign[0]}); give --out another directory"
            raise UsageError(msg)


def discard_empty(directory: Path) -> bool:
    """Remove an index without a single vector, so that it can be begun anew with other options; tell whether it was."""
    with writer_lock(directory), closing(Store.open(directory)) as store, storage_errors(directory):
        if store.n_rows:
            return False
        for name in (DATABASE, store.vector_file):
            (directory / name).unlink()
        sync_directory(directory)
    return True


def settle(
    read: ReadOptions | None, vector_dtype: VectorDtype | None, recorded: Recorded | None, *, adds: bool
) -> ReadOptions:
    """Return how records are read, after refusing options that contradict the index."""
    if recorded is None:
        return read or ReadOptions()
    advice = "leave the option out, or build another directory"
    if vector_dtype not in (None, recorded.vector_dtype):
        raise ContractError("vector-dtype", recorded.vector_dtype.value, vector_dtype.value, advice)
    if read is None:
        return recorded.read
    if adds or recorded.n_rows == 0:
        return read
    for option, name in (("text-field", "text_fields"), ("id-field", "id_field"), ("columns", "columns")):
        stored, given = getattr(recorded.read, name), getattr(read, name)
        if stored != given:
            raise ContractError(option, _shown(stored), _shown(given), advice)
    return read


def _shown(value: str | tuple[str, ...] | None) -> str | None:
    return ",".join(value) if isinstance(value, tuple) else value


def load_bulk_encoder(options: EncoderOptions, *, contract: Contract | None) -> TextEncoder:
    """Load the encoder of a model; `BulkEncoder.load` says more."""
    from indexer.encoder.bulk import BulkEncoder

    return BulkEncoder.load(options, contract=contract)


def open_store(
    directory: Path, encoder: TextEncoder, vector_dtype: VectorDtype, read: ReadOptions, recorded: Recorded | None
) -> Store:
    """Open the index for writing, or create it.

    Args:
        directory: of the index.
        encoder: must give the vectors that it gave at creation.
        vector_dtype: of a new index.
        read: how records are read.
        recorded: by the index; None when there was none before the model was loaded.
    """
    with storage_errors(directory):
        if recorded is not None:
            store = Store.open(directory)
            try:
                check_canaries(store.canaries(), encoder)
                if store.n_rows == 0:
                    store.set_setting("read", asdict(read))
            except BaseException:
                store.close()
                raise
            return store
        if read_recorded(directory) is not None:
            msg = f"{directory} became an index while the model was loaded; run again to add to it"
            raise UsageError(msg)
        settings: dict[str, object] = {
            "contract": encoder.contract.to_json(),
            "read": json.loads(json.dumps(asdict(read))),
            "recorded": {
                "clsindex": version("clsindex"),
                "device": encoder.device,
                "dtype": encoder.dtype,
                "engine": encoder.engine,
            },
        }
        return Store.create(
            directory,
            dim=encoder.contract.dim,
            vector_dtype=vector_dtype,
            settings=settings,
            canaries=list(zip(CANARY_TEXTS, encoder.encode(CANARY_TEXTS), strict=True)),
        )


def check_canaries(canaries: Sequence[tuple[str, NDArray[np.float32]]], encoder: TextEncoder) -> None:
    """Check that the encoder still gives the vectors that it gave when the index was created.

    Args:
        canaries: texts with their vectors, (d,) float32.
        encoder: the one to check.

    Raises:
        EncoderError: a cosine is below 0.999.
    """
    vectors = encoder.encode([text for text, _ in canaries])
    cosines = [float(now_ @ then) for now_, (_, then) in zip(vectors, canaries, strict=True)]
    if not all(cosine >= CANARY_COSINE for cosine in cosines):  # a NaN is not
        msg = (
            f"the model no longer gives the vectors that it gave when the index was created (cosine {min(cosines):.4f} "
            f"on a canary text, at least {CANARY_COSINE} is needed); use the same model and libraries, or build anew"
        )
        raise EncoderError(msg)
