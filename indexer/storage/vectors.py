"""The raw vector file: a 4 KiB header, then one row per slot. Append, read, checksum; nothing is rewritten in place."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from indexer.config import VectorDtype
from indexer.errors import IndexCorruptError, StorageError
from indexer.storage.files import (
    discard,
    mend,
    new_name,
    open_regular,
    own_path,
    read_all,
    read_error,
    storage_error,
    sync_directory,
    write_all,
)

HEADER_BYTES = 4096
BLOCK_ROWS = 16_384
KEPT_ROWS = 20_000
_MAGIC = b"CLSVEC\r\n"
_VERSION = 1
_LARGEST_DIM = 1 << 16
_UUID = re.compile(r"[0-9a-f]{32}")
_HEADER = struct.Struct("<8sIII16s16s")  # magic, version, bytes of one number, dim, index uuid, file uuid


Block: TypeAlias = tuple[int, int, int]
"""First slot, rows and CRC-32 of their bytes, as the table `blocks` has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorLayout:
    """Shape of a vector file: `dim` numbers of `dtype` in each row, belonging to the index `index_uuid` (32 hex)."""

    dim: int
    dtype: VectorDtype
    index_uuid: str

    @classmethod
    def of(cls, meta: Mapping[str, Any], path: Path) -> VectorLayout:
        """Return the layout that the settings in the database at `path` name.

        Raises:
            IndexCorruptError: there is no such layout.
        """
        try:
            dtype = VectorDtype(meta["vector_dtype"])
        except ValueError as error:
            msg = f"{path} is damaged: vector_dtype is {meta['vector_dtype']!r}; {mend(path.parent)}"
            raise IndexCorruptError(msg) from error
        dim, index_uuid = meta["dim"], meta["index_uuid"]
        if not isinstance(dim, int) or not 1 <= dim <= _LARGEST_DIM or not _UUID.fullmatch(str(index_uuid)):
            msg = f"{path} is damaged: dim {dim!r}, index_uuid {str(index_uuid)[:40]!r}; {mend(path.parent)}"
            raise IndexCorruptError(msg)
        return cls(dim=dim, dtype=dtype, index_uuid=index_uuid)

    @property
    def stride(self) -> int:
        """Bytes of one row."""
        return self.dim * self.dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype[np.float16] | np.dtype[np.float32]:
        """The dtype of the rows as numpy maps them, little-endian."""
        return np.dtype("<f2") if self.dtype is VectorDtype.F16 else np.dtype("<f4")

    def header(self, file_uuid: str) -> bytes:
        """Return the 4,096 bytes at the start of the file `vectors-<file_uuid>`."""
        fields = _HEADER.pack(
            _MAGIC, _VERSION, self.dtype.itemsize, self.dim, bytes.fromhex(self.index_uuid), bytes.fromhex(file_uuid)
        )
        return (fields + struct.pack("<I", zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")

    def file_bytes(self, n_rows: int) -> int:
        """Return the size of a file with `n_rows` rows."""
        return HEADER_BYTES + n_rows * self.stride


def _file_uuid(name: str) -> str:
    return name.split("-", 1)[1].split(".", 1)[0]


def create_vector_file(directory: Path, layout: VectorLayout) -> str:
    """Create an empty vector file, durable with its name, and return the name.

    Raises:
        StorageError: the file system refused; there is no such file then.
    """
    name = new_name("vectors", layout.dtype.value)
    path = directory / name
    try:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            write_all(descriptor, layout.header(_file_uuid(name)), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(directory)
    except OSError as error:
        discard(path)
        raise storage_error(path, error) from error
    return name


def encode_rows(vectors: NDArray[np.float32], layout: VectorLayout) -> NDArray[np.generic]:
    """Return rows as they are stored; this is the last door, so shape, finiteness and unit length are checked.

    Args:
        vectors: (n, d) float32, each row of unit length.
        layout: the file the rows are for.

    Returns:
        (n, d) little-endian float16 or float32, contiguous.

    Raises:
        StorageError: a row is not a finite unit vector of the right dimension.
    """
    if vectors.ndim != 2 or vectors.shape[1] != layout.dim:
        msg = f"vectors of shape {vectors.shape} do not fit an index of {layout.dim} dimensions"
        raise StorageError(msg)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    if vectors.size and not np.all(np.abs(norms - 1.0) < 1e-2):
        row = int(np.argmax(~(np.abs(norms - 1.0) < 1e-2)))
        msg = f"vector {row} of the batch has length {norms[row]}, not 1; nothing of the batch was written"
        raise StorageError(msg)
    return np.ascontiguousarray(vectors, dtype=layout.numpy_dtype)


def decode_rows(rows: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return stored rows as float32, exactly; they hold no Inf and no NaN.

    Six times as fast as numpy's own conversion of float16, which does not use the processor's: the bits are moved to
    where float32 has them, and the other bias of the exponent is multiplied away.
    """
    if rows.dtype != np.float16:
        return np.asarray(rows, dtype=np.float32)
    bits = np.asarray(rows).view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= ~0x70000000  # the sign was extended into the exponent
    decoded = bits.view(np.float32)
    decoded *= np.float32(2.0**112)
    return decoded


def _check_header(descriptor: int, path: Path, layout: VectorLayout) -> None:
    try:
        found = read_all(descriptor, HEADER_BYTES, 0)
    except OSError as error:
        raise read_error(path, error) from error
    if found != layout.header(_file_uuid(path.name)):
        msg = f"{path}: the header is damaged or belongs to another index; {mend(path.parent)}"
        raise IndexCorruptError(msg)


def _check_links(descriptor: int, path: Path) -> None:
    if os.fstat(descriptor).st_nlink > 1:
        msg = f"{path} has other names (hard links), and what they name would be written to; put a copy in its place"
        raise IndexCorruptError(msg)


class VectorWriter:
    """Appends rows behind the committed ones; the caller holds the writer's lock."""

    def __init__(self, directory: Path, name: str, layout: VectorLayout) -> None:
        self.path = own_path(directory, name)
        self.layout = layout
        try:
            self._descriptor = open_regular(self.path, os.O_RDWR)
        except FileNotFoundError as error:
            msg = f"{self.path}: the vector file is missing; {mend(directory)}"
            raise IndexCorruptError(msg) from error
        try:
            _check_header(self._descriptor, self.path, layout)
            _check_links(self._descriptor, self.path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def recover(self, n_rows: int) -> None:
        """Cut off rows that no commit names.

        Raises:
            IndexCorruptError: committed rows are missing.
        """
        size, need = os.fstat(self._descriptor).st_size, self.layout.file_bytes(n_rows)
        if size < need:
            msg = f"{self.path} has {size} bytes, {n_rows} committed rows need {need}; {mend(self.path.parent)}"
            raise IndexCorruptError(msg)
        if size > need:
            os.ftruncate(self._descriptor, need)

    def append(self, first_slot: int, rows: NDArray[np.generic]) -> int:
        """Write rows at `first_slot`, make them durable, and return their CRC-32.

        Raises:
            StorageError: the file system refused; the rows behind `first_slot` then count as unwritten.
        """
        crc = self.write(first_slot, rows)
        self.sync()
        return crc

    def write(self, first_slot: int, rows: NDArray[np.generic]) -> int:
        """Write rows at `first_slot`, durable after `sync`, and return their CRC-32; errors are those of `append`."""
        data = rows.data.cast("B")
        try:
            write_all(self._descriptor, data, self.layout.file_bytes(first_slot))
        except OSError as error:
            raise storage_error(self.path, error) from error
        return zlib.crc32(data)

    def sync(self) -> None:
        """Make what was written durable. After an error the writer is of no use: the kernel forgets what it lost."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise storage_error(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class VectorReader:
    """Reads the committed rows of a vector file through a read-only map; rows beyond `n_rows` are never touched."""

    def __init__(self, directory: Path, name: str, layout: VectorLayout, n_rows: int) -> None:
        """Open and check header and size.

        Raises:
            FileNotFoundError: the file is gone; take a new snapshot.
            IndexCorruptError: header or size do not fit what the database says.
        """
        self.path = own_path(directory, name)
        self.layout = layout
        self.n_rows = n_rows
        self._decoded: NDArray[np.float32] | None = None
        descriptor = open_regular(self.path, os.O_RDONLY)
        self._close = finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        try:
            self._rows = self._map()
        except OSError as error:
            self._close()
            raise read_error(self.path, error) from error
        except BaseException:
            self._close()
            raise

    def _map(self) -> NDArray[np.generic]:
        _check_header(self._descriptor, self.path, self.layout)
        size, need = os.fstat(self._descriptor).st_size, self.layout.file_bytes(self.n_rows)
        if size < need:
            msg = f"{self.path} has {size} bytes, {self.n_rows} committed rows need {need}; {mend(self.path.parent)}"
            raise IndexCorruptError(msg)
        shape = (self.n_rows, self.layout.dim)
        if not self.n_rows:
            return np.empty(shape, self.layout.numpy_dtype)
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            return np.memmap(file, dtype=self.layout.numpy_dtype, mode="r", offset=HEADER_BYTES, shape=shape).view(
                np.ndarray
            )

    def __enter__(self) -> VectorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the map and the file."""
        self._close()
        self._rows = np.empty((0, self.layout.dim), self.layout.numpy_dtype)
        self._decoded = None

    def rows(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows of some slots, (n, d) float32, in the order asked for."""
        return decode_rows(self._rows.take(slots, axis=0))  # half the time of an index in brackets

    def blocks(self, start: int, stop: int, size: int = BLOCK_ROWS) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first slot, (n, d) float32) over the slots [start, stop), at most `size` rows at a time.

        A file of few rows is decoded once and kept: that is most of the time of a small exact search.
        """
        if self._decoded is None and self.n_rows <= KEPT_ROWS:
            self._decoded = decode_rows(self._rows)
        rows = self._rows if self._decoded is None else self._decoded
        for first in range(start, stop, size):
            yield first, decode_rows(rows[first : min(first + size, stop)])

    def header(self) -> bytes:
        """Return the 4,096 bytes before the rows."""
        return self.layout.header(_file_uuid(self.path.name))

    def stored(self, first_slot: int, n_rows: int) -> NDArray[np.generic]:
        """Return rows as they are stored, (n, d) little-endian float16 or float32, read anew from the file.

        A map would end the process where the disk cannot be read; this raises.

        Raises:
            StorageError: the disk cannot be read.
            IndexCorruptError: the file has become shorter.
        """
        need = n_rows * self.layout.stride
        try:
            data = read_all(self._descriptor, need, self.layout.file_bytes(first_slot))
        except OSError as error:
            raise read_error(self.path, error) from error
        if len(data) != need:
            msg = f"{self.path} ends within slots {first_slot} to {first_slot + n_rows - 1}; {mend(self.path.parent)}"
            raise IndexCorruptError(msg)
        return np.frombuffer(data, self.layout.numpy_dtype).reshape(n_rows, self.layout.dim)

    def streamed(self, size: int = BLOCK_ROWS, *, start: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first slot, (n, d) float32) over the rows from `start` on, read as by `stored`: none stays in memory.

        Raises:
            StorageError: the disk cannot be read.
            IndexCorruptError: the file has become shorter.
        """
        for first in range(start, self.n_rows, size):
            yield first, decode_rows(self.stored(first, min(size, self.n_rows - first)))

    def checked(self, first_slot: int, n_rows: int, crc: int) -> NDArray[np.generic]:
        """Return rows as `stored` does, after comparing their checksum.

        Raises:
            IndexCorruptError: they are not the bytes that were committed.
        """
        rows = self.stored(first_slot, n_rows)
        if zlib.crc32(rows.data.cast("B")) != crc:
            last = first_slot + n_rows - 1
            msg = f"{self.path}: the vectors of slots {first_slot} to {last} are damaged; {mend(self.path.parent)}"
            raise IndexCorruptError(msg)
        return rows

    def is_sound(self, block: Block) -> bool:
        """Tell whether the rows of a block are the bytes that were committed.

        Raises:
            StorageError: the disk cannot be read.
        """
        try:
            self.checked(*block)
        except IndexCorruptError:
            return False
        return True

    def checksum(self, first_slot: int, n_rows: int) -> int:
        """Return the CRC-32 of the stored bytes of rows [first_slot, first_slot + n_rows)."""
        return zlib.crc32(self.stored(first_slot, n_rows).data.cast("B"))
