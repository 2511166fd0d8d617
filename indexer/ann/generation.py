"""Generation files: FAISS indexes over the first slots of a vector file. The only home of faiss.

A generation is derived. It counts only while a row of the database names it; its FAISS ids are slots.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.ann.kinds import Kind
from indexer.config import VectorDtype
from indexer.errors import IndexCorruptError, MissingExtraError, StorageError
from indexer.files import discard, new_name, open_regular, own_path, storage_error, sync_directory, write_all
from indexer.generations import GenerationRow
from indexer.vectors import VectorReader

HASHED_AT_OPEN_BYTES = 100_000_000


def require_faiss() -> None:
    """Check that a FAISS wheel is installed, without importing it.

    Raises:
        MissingExtraError: there is none; the message names the extra.
    """
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError("faiss", "cpu")


def _faiss() -> ModuleType:
    require_faiss()
    import faiss

    return faiss


def build_generation(directory: Path, vectors: VectorReader, kind: Kind, created_at: str) -> GenerationRow:
    """Write a generation over all rows of a vector file, durable under its name, and return the row to commit.

    Until a commit names it the file means nothing; a failure leaves at most a stray that the next writer removes.

    Args:
        directory: of the index.
        vectors: the vector file.
        kind: a kind other than AUTO.
        created_at: UTC, ISO 8601.

    Raises:
        StorageError: the file system refused, or what was written does not read back.
    """
    faiss = _faiss()
    index = _empty_index(faiss, vectors.layout.dim, vectors.layout.dtype)
    for _, block in vectors.blocks(0, vectors.n_rows):
        index.add(block)
    name = new_name("gen", "faiss")
    temporary = directory / name.replace(".faiss", ".tmp")
    try:
        n_bytes, sha256 = _write(faiss, index, temporary)
        if _hash(temporary) != sha256:
            msg = f"{temporary}: reads back other bytes than were written; check the disk, then run again"
            raise StorageError(msg)
        temporary.rename(directory / name)
        sync_directory(directory)
    except OSError as error:
        discard(temporary)
        raise storage_error(temporary, error) from error
    return GenerationRow(
        name=name,
        vector_file=vectors.path.name,
        kind=kind.value,
        n_slots=vectors.n_rows,
        n_bytes=n_bytes,
        sha256=sha256,
        details={"faiss": faiss.__version__, "index": type(index).__name__},
        created_at=created_at,
    )


def _empty_index(faiss: ModuleType, dim: int, dtype: VectorDtype) -> Any:  # noqa: ANN401 - faiss is untyped
    match dtype:
        case VectorDtype.F16:
            return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        case VectorDtype.F32:
            return faiss.IndexFlatIP(dim)


def _write(faiss: ModuleType, index: Any, path: Path) -> tuple[int, str]:  # noqa: ANN401 - faiss is untyped
    # faiss.write_index(path) reports success on a full disk when the last buffer is lost; a callback cannot.
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    digest = hashlib.sha256()
    n_bytes = 0

    def write(data: bytes) -> None:
        nonlocal n_bytes
        write_all(descriptor, data, n_bytes)
        digest.update(data)
        n_bytes += len(data)

    try:
        writer = faiss.PyCallbackIOWriter(write)
        faiss.write_index(index, writer)
        del writer  # flushes what it buffers
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return n_bytes, digest.hexdigest()


def _hash(path: Path) -> str:
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Generation:
    """A generation opened for searching, memory-mapped."""

    def __init__(self, directory: Path, row: GenerationRow, dim: int, *, check_every_byte: bool = False) -> None:
        """Open a generation that the database names.

        Args:
            directory: of the index.
            row: what the database says of the file.
            dim: dimensions of the vectors.
            check_every_byte: hash the file whatever its size; files up to 100 MB are always hashed.

        Raises:
            FileNotFoundError: the file is gone; take a new snapshot.
            IndexCorruptError: the file is not the one that the database names. Exact search still works.
        """
        path = own_path(directory, row.name)
        os.close(open_regular(path, os.O_RDONLY))
        if path.stat().st_size != row.n_bytes or (
            (check_every_byte or row.n_bytes <= HASHED_AT_OPEN_BYTES) and _hash(path) != row.sha256
        ):
            msg = (
                f"{path} is damaged: size or hash is not what the database records; the next build or add makes it anew"
            )
            raise IndexCorruptError(msg)
        self._faiss = _faiss()
        # A crafted file may announce more than it holds; nothing in a file is larger than the file.
        self._faiss.set_deserialization_vector_byte_limit(row.n_bytes)
        self._faiss.set_deserialization_loop_limit(row.n_bytes)
        try:
            self._index = self._faiss.read_index(str(path), self._faiss.IO_FLAG_MMAP_IFC)
        except (MemoryError, RuntimeError) as error:
            if not path.exists():  # a writer replaced it since it was hashed
                raise FileNotFoundError(path) from error
            msg = f"{path} is damaged: FAISS cannot read it; the next build or add makes it anew"
            raise IndexCorruptError(msg) from error
        if (self._index.d, self._index.ntotal) != (dim, row.n_slots):
            msg = f"{path} holds {self._index.ntotal} vectors of {self._index.d} dimensions, not {row.n_slots} of {dim}"
            raise IndexCorruptError(msg)
        try:
            self.kind = Kind(row.kind)
        except ValueError as error:
            msg = f"{path} is of the kind {row.kind!r}, which this version does not know; exact search still works"
            raise IndexCorruptError(msg) from error
        self.n_slots = row.n_slots

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest slots of each query.

        Args:
            queries: (q, d) float32, unit length.
            k: how many at most.
            allowed: (n_slots,) bool, which slots may be returned; None for all.

        Returns:
            scores, (q, k) float32, cosine as FAISS rounds it, descending; slots, (q, k) int64, -1 = none.
        """
        parameters = None
        if allowed is not None:
            selector = self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            parameters = self._faiss.SearchParameters(sel=selector)
        scores, slots = self._index.search(np.ascontiguousarray(queries), min(k, self.n_slots), params=parameters)
        return scores, slots


def is_usable(directory: Path, row: GenerationRow, dim: int) -> bool:
    """Tell whether a generation that the database names can be opened."""
    try:
        Generation(directory, row, dim)
    except (FileNotFoundError, IndexCorruptError):
        return False
    return True
