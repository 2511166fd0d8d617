"""Parquet and Arrow files in batches, memory-mapped. Home of pyarrow, which loads when a file is opened."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.corpus.jsontypes import json_types
from indexer.corpus.parts import RawRecord, Reject
from indexer.corpus.records import short
from indexer.errors import CorpusError

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1_000

_ARROW_FILE_MAGIC = b"ARROW1"


def read_parquet(path: Path, name: str, reject: Reject) -> Generator[RawRecord]:
    """Read the rows of a Parquet file; page checksums are checked where the file has them.

    Args:
        path: the file.
        name: the file as the user named it.
        reject: told of rows that have no form in Python.

    Yields:
        1-based record, the row, and position in bytes (the share of the rows).

    Raises:
        CorpusError: the file cannot be read to its end.
    """
    import pyarrow.parquet

    size = path.stat().st_size
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(
            path, memory_map=True, pre_buffer=False, page_checksum_verification=True
        ) as file:
            _check_columns(file.schema_arrow.names, name)
            n_rows = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for record in _rows(batch, number, reject):
                    yield record[0], record[1], size * record[0] / n_rows
                number += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable("Parquet", name, number, error) from error


def read_arrow(path: Path, name: str, reject: Reject) -> Generator[RawRecord]:
    """Read the rows of an Arrow IPC file or stream, also one that `datasets` wrote.

    Args:
        path: the file.
        name: the file as the user named it.
        reject: told of rows that have no form in Python.

    Yields:
        1-based record, the row, and position in bytes.

    Raises:
        CorpusError: the file cannot be read to its end.
    """
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(str(path)) as source:
            for batch, position in _batches(source, name):
                for start in range(0, len(batch), BATCH_ROWS):
                    for row_number, row in _rows(batch.slice(start, BATCH_ROWS), number + start, reject):
                        yield row_number, row, position
                number += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable("Arrow", name, number, error) from error


def _batches(source: pyarrow.MemoryMappedFile, name: str) -> Iterator[tuple[pyarrow.RecordBatch, float]]:
    """Yield the batches of an IPC file or stream, with the position in bytes."""
    import pyarrow.ipc

    is_file = source.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
    size = source.size()
    source.seek(0)
    with pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source) as reader:
        _check_columns(reader.schema.names, name)
        if is_file:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index), size * (index + 1) / reader.num_record_batches
        else:
            for batch in reader:
                yield batch, source.tell()


def _rows(batch: pyarrow.RecordBatch, n_before: int, reject: Reject) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the rows of a batch with their numbers; a batch that does not convert is converted row by row."""
    try:
        rows = batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError):
        for index in range(len(batch)):
            try:
                row = batch.slice(index, 1).to_pylist(maps_as_pydicts="strict")[0]
            except (ValueError, OverflowError, KeyError) as error:
                reject(n_before + index + 1, f"{_culprit(batch, index)} has no form in Python ({type(error).__name__})")
                continue
            yield n_before + index + 1, json_types(row)
        return
    for number, row in enumerate(rows, n_before + 1):
        yield number, json_types(row)


def _culprit(batch: pyarrow.RecordBatch, index: int) -> str:
    """Return the first field of a row that does not convert."""
    for name in batch.schema.names:
        try:
            batch[name].slice(index, 1).to_pylist(maps_as_pydicts="strict")
        except (ValueError, OverflowError, KeyError):
            return f"field {short(name)}"
    return "the row"


def _check_columns(names: list[str], source: str) -> None:
    """Refuse columns that would overwrite each other."""
    for index, column in enumerate(names):
        if column in names[:index]:
            raise CorpusError(source, None, f"two columns are named {short(column)}")


def _unreadable(kind: str, name: str, n_rows: int, error: Exception) -> CorpusError:
    # Messages of pyarrow can quote values, so only the type is given.
    if n_rows:
        return CorpusError(name, n_rows + 1, f"cannot be read after record {n_rows} ({type(error).__name__})")
    return CorpusError(name, None, f"cannot be read as {kind} ({type(error).__name__}); fetch or write the file again")
