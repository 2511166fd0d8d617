"""Generation files: FAISS indexes over the first slots of a vector file.

A generation is derived. It counts only while a row of the database names it; its FAISS ids are slots.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from indexer.ann.gpu import Gpu
from indexer.ann.index import AnnIndex, Effort, load_faiss, unevenness
from indexer.ann.kinds import Kind, Recipe
from indexer.ann.training import OnStep, grow_index, make_index
from indexer.errors import IndexCorruptError, StorageError, UsageError
from indexer.storage.files import (
    discard,
    mend,
    new_name,
    open_regular,
    own_path,
    storage_errors,
    sync_directory,
    write_all,
)
from indexer.storage.generations import GenerationRow
from indexer.storage.vectors import VectorReader

HASHED_AT_OPEN_BYTES = 100_000_000
_MOST_UNEVEN = 1.5  # times what it was when the lists were placed
_reading = threading.Lock()  # FAISS's limits for what it reads belong to the process


def build_generation(
    directory: Path, vectors: VectorReader, recipe: Recipe, gpu: Gpu | None, created_at: str, on_step: OnStep
) -> GenerationRow:
    """Write a generation over all rows of a vector file, durable under its name, and return the row to commit.

    Until a commit names it the file means nothing; a failure leaves at most a stray that the next writer removes.

    Args:
        directory: of the index.
        vectors: the vector file.
        recipe: what to build.
        gpu: what helps with it.
        created_at: UTC, ISO 8601.
        on_step: told how far the work is.

    Raises:
        UsageError: FAISS cannot make such an index of these vectors.
        StorageError: the file system refused, or what was written does not read back.
    """
    return _write_generation(directory, vectors, recipe, make_index(vectors, recipe, gpu, on_step), created_at)


def grow_generation(
    directory: Path, before: GenerationRow, vectors: VectorReader, recipe: Recipe, created_at: str, on_step: OnStep
) -> GenerationRow:
    """Write a generation over all rows that begins with what another one holds, and return the row to commit.

    Vectors unlike those that the lists were placed for crowd into a few of them, which makes every search slower; that
    is refused.

    Args:
        directory: of the index.
        before: the generation over the first rows, made by the same recipe; its file is checked to the last byte.
        vectors: the vector file.
        recipe: of both.
        created_at: UTC, ISO 8601.
        on_step: told how far the work is.

    Raises:
        FileNotFoundError: the file is gone.
        IndexCorruptError: the file is not the one that the database names.
        UsageError: FAISS cannot add to such an index, or its lists have become uneven.
        StorageError: the file system refused, or what was written does not read back.
    """
    index = _open(directory, before, vectors.layout.dim, check_every_byte=True, is_mapped=False)
    if type(index).__name__ != before.details.get("index"):
        msg = f"{before.name} is a {type(index).__name__}, not what the database records"
        raise IndexCorruptError(msg)
    even = before.details.get("unevenness", unevenness(index))
    index = grow_index(index, vectors, recipe, on_step)
    if isinstance(even, float) and (uneven := unevenness(index)) > _MOST_UNEVEN * even:
        msg = f"the lists of {before.name} have become uneven, by {uneven:.2f} where it was {even:.2f}"
        raise UsageError(msg)
    return _write_generation(directory, vectors, recipe, index, created_at)


def _write_generation(
    directory: Path,
    vectors: VectorReader,
    recipe: Recipe,
    index: Any,  # noqa: ANN401 - faiss is untyped
    created_at: str,
) -> GenerationRow:
    name = new_name("gen", "faiss")
    temporary = directory / name.replace(".faiss", ".tmp")
    try:
        with storage_errors(temporary):
            n_bytes, sha256 = _write(index, temporary)
            _check_reads_back(temporary, sha256)
            temporary.rename(directory / name)
            sync_directory(directory)
    except BaseException:
        discard(temporary)
        raise
    return GenerationRow(
        name=name,
        vector_file=vectors.path.name,
        kind=recipe.kind.value,
        n_slots=vectors.n_rows,
        n_bytes=n_bytes,
        sha256=sha256,
        details={
            "faiss": load_faiss().__version__,
            "index": type(index).__name__,
            "factory": recipe.factory,
            "copies": recipe.copies,
            "unevenness": round(unevenness(index), 3),
        },
        created_at=created_at,
    )


def _write(index: Any, path: Path) -> tuple[int, str]:  # noqa: ANN401 - faiss is untyped
    faiss = load_faiss()
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
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return n_bytes, digest.hexdigest()


def _check_reads_back(path: Path, sha256: str) -> None:
    if _hash(path) != sha256:
        msg = f"{path}: reads back other bytes than were written; check the disk, then run again"
        raise StorageError(msg)


def _hash(path: Path) -> str:
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Generation:
    """A generation opened for searching; memory-mapped, but for FastScan codes, which FAISS cannot map."""

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
        index = _open(directory, row, dim, check_every_byte=check_every_byte)
        self.kind = Kind(row.kind)
        self.index = AnnIndex(index, _copies(row))
        self.n_slots = row.n_slots
        self.effort = _effort(row, self.index)
        self._file = (row.name, row.sha256, _copies(row))

    def as_of(self, row: GenerationRow) -> Generation | None:
        """Return the same file, opened, with what another commit says of it; None when that names another file."""
        if (row.name, row.sha256, _copies(row)) != self._file:
            return None
        same = copy.copy(self)
        same.effort = _effort(row, self.index)
        return same


def _open(directory: Path, row: GenerationRow, dim: int, *, check_every_byte: bool, is_mapped: bool = True) -> Any:  # noqa: ANN401 - faiss is untyped
    """Return the FAISS index of a generation; `Generation` says more."""
    path = _checked_file(directory, row, check_every_byte=check_every_byte)
    try:
        index = _read(path, row.n_bytes, is_mapped=is_mapped)
    except (MemoryError, RuntimeError) as error:
        if not path.exists():  # a writer replaced it since it was hashed
            raise FileNotFoundError(path) from error
        msg = f"{path} is damaged: FAISS cannot read it; {mend(directory)}"
        raise IndexCorruptError(msg) from error
    n_codes = row.n_slots * _copies(row)
    if (index.d, index.ntotal) != (dim, n_codes):
        msg = f"{path} holds {index.ntotal} vectors of {index.d} dimensions, not {n_codes} of {dim}"
        raise IndexCorruptError(msg)
    return index


def _checked_file(directory: Path, row: GenerationRow, *, check_every_byte: bool) -> Path:
    """Return the path of the file of a generation, which is what the database records as far as that is checked."""
    path = own_path(directory, row.name)
    os.close(open_regular(path, os.O_RDONLY))
    if path.stat().st_size != row.n_bytes or (
        (check_every_byte or row.n_bytes <= HASHED_AT_OPEN_BYTES) and _hash(path) != row.sha256
    ):
        msg = f"{path} is damaged: size or hash is not what the database records; the next build or add makes it anew"
        raise IndexCorruptError(msg)
    if row.kind not in set(Kind):
        msg = f"{path} is of the kind {row.kind!r}, which this version does not know; exact search still works"
        raise IndexCorruptError(msg)
    return path


def _read(path: Path, n_bytes: int, *, is_mapped: bool) -> Any:  # noqa: ANN401 - faiss is untyped
    faiss = load_faiss()
    # The table of distances between centroids, for L2 alone, would count against the limit.
    flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
    if is_mapped:
        flags |= faiss.IO_FLAG_MMAP_IFC
    with _reading:
        # A crafted file may announce more than it holds; nothing in a file is larger than the file. The limits are
        # those of the process, in which others may read files of theirs.
        limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        _limit_reading(n_bytes, n_bytes)
        try:
            return faiss.read_index(str(path), flags)
        finally:
            _limit_reading(*limits)


def _limit_reading(n_bytes: int, n_loops: int) -> None:
    faiss = load_faiss()
    faiss.set_deserialization_vector_byte_limit(n_bytes)
    faiss.set_deserialization_loop_limit(n_loops)


def _copies(row: GenerationRow) -> int:
    return 2 if row.details.get("copies") == 2 else 1


def _effort(row: GenerationRow, index: AnnIndex) -> Effort:
    """Return how hard a search should try, as it was tuned; all that there is when the row does not say."""
    search = row.details.get("search")
    match search:
        case {"probes": int(probes), "depth": int(depth), "reach": float(reach)} if depth > 0 and reach >= 0:
            return Effort(probes=probes, depth=depth, reach=reach)
        case {"probes": int(probes), "depth": int(depth)} if depth > 0:
            return Effort(probes=probes, depth=depth)
        case _:
            return Effort(probes=index.max_probes, depth=100)


def is_usable(directory: Path, row: GenerationRow, dim: int) -> bool:
    """Tell whether a generation can be opened; of a large one that FAISS cannot map, whether its file is there."""
    try:
        if row.n_bytes > HASHED_AT_OPEN_BYTES and "FastScan" in str(row.details.get("index")):
            _checked_file(directory, row, check_every_byte=False)
        else:
            Generation(directory, row, dim)
    except (FileNotFoundError, IndexCorruptError):
        return False
    return True
