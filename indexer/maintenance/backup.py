"""A copy of an index as it was at one commit, made while others read and write it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import IndexCorruptError, StorageError, UsageError
from indexer.maintenance.verify import verify_index
from indexer.progress import OnProgress, OnShare, Phase, Progress, part_of, tell_nobody
from indexer.storage.database import connect_reader, transaction, translated
from indexer.storage.files import (
    DATABASE,
    LOCK,
    directory_bytes,
    discard,
    is_own_name,
    make_directory,
    mend,
    new_name,
    open_regular,
    own_path,
    read_all,
    storage_errors,
    sync_directory,
    write_all,
)
from indexer.storage.generations import GenerationRow
from indexer.storage.lock import writer_lock
from indexer.storage.snapshot import Snapshot, SnapshotReader, read_blocks, read_snapshot
from indexer.storage.vectors import Block, VectorReader

logger = logging.getLogger(__name__)

_STEP_PAGES = 4_096
# How far the copy is after the database, and after the vectors; the FAISS file comes last.
_DATABASE_DONE, _VECTORS_DONE = 0.4, 0.8
_CHUNK_BYTES = 1 << 20
_TRIES = 5
_UNFINISHED = re.compile(r"backup-[0-9a-f]{32}\.tmp(-journal)?")
# What SQLite copies in some seconds; a commit waits a minute.
_HELD_UP_BYTES = 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class BackupReport:
    """What the copy holds: documents, passages, whether a FAISS file came along, bytes."""

    documents: int
    passages: int
    generation: bool
    bytes: int


def backup_index(directory: Path, target: Path, on_progress: OnProgress = tell_nobody) -> BackupReport:
    """Copy an index to a directory that is new or empty; `Index.backup` says more.

    The database is copied first and names what else belongs to it. The copy gets its `index.db` last: until then there
    is no index at `target`. What a backup that was cut off left there is removed.

    Args:
        directory: of the index.
        target: where the copy goes.
        on_progress: told after each step.

    Raises:
        UsageError: `target` holds something else, or lies in the index.
        IndexLockedError: another backup goes there.
        IndexCorruptError: the index is damaged; the copy is not complete.
        StorageError: the file system refused, or the copy does not read back as it should.
    """
    with closing(connect_reader(directory)):
        _check_free(target)
    if target.resolve().is_relative_to(directory.resolve()):
        msg = f"{target} lies in {directory}, which is an index and nothing else; give a directory beside it"
        raise UsageError(msg)
    with storage_errors(target):
        make_directory(target)
    with writer_lock(target):
        _check_free(target)  # another backup may have come first
        _clear(target)
        temporary = target / new_name("backup", "tmp")
        try:
            snapshot = _copy_files(directory, target, temporary, on_progress)
            _check(directory, target, temporary, on_progress)
            with storage_errors(target):
                sync_directory(target)
                temporary.rename(target / DATABASE)
                sync_directory(target)
        except BaseException:
            with suppress(StorageError):  # the next backup tries again
                _withdraw(target, temporary)
                _clear(target)
            raise
    with closing(SnapshotReader(target)) as copy:
        n_documents = copy.totals().documents
    return BackupReport(
        documents=n_documents,
        passages=snapshot.n_passages,
        generation=snapshot.generation is not None,
        bytes=directory_bytes(target),
    )


def _check_free(target: Path) -> None:
    """Refuse a target that holds anything but what a backup that was cut off left."""
    with storage_errors(target):
        if target.is_dir():
            names = {path.name for path in target.iterdir()} - {LOCK}
            if any(map(_is_unfinished, names)):
                names = {name for name in names if not (_is_unfinished(name) or is_own_name(name))}
            if names:
                msg = f"{target} is not empty (it holds {min(names)}); give a directory that is new or empty"
                raise UsageError(msg)
        elif target.exists():
            msg = f"{target} is a file; give a directory that is new or empty"
            raise UsageError(msg)


def _is_unfinished(name: str) -> bool:
    """Tell whether this is the database, or its journal, of a copy that has not become an index."""
    return _UNFINISHED.fullmatch(name) is not None


def _check(directory: Path, target: Path, temporary: Path, on_progress: OnProgress) -> None:
    problems = verify_index(target, deep=True, generations=False, database=temporary.name, on_progress=on_progress)
    if problems:
        problem = problems[0].replace(str(temporary), str(directory / DATABASE))
        msg = f"the copy was not sound, and is gone: {problem}; run: index verify {directory} --deep"
        raise StorageError(msg)


def _withdraw(target: Path, temporary: Path) -> None:
    """Give the database of a copy whose name may not be durable the name of one that is unfinished."""
    with storage_errors(target):
        if (target / DATABASE).exists():
            (target / DATABASE).rename(temporary)
            sync_directory(target)


def _clear(target: Path) -> None:
    """Remove an unfinished copy; its database, by which the next backup knows it, goes last."""
    with storage_errors(target):
        paths = list(target.iterdir())
        for path in paths:
            if is_own_name(path.name):
                discard(path)
        sync_directory(target)
        for path in paths:
            if _is_unfinished(path.name):
                discard(path)


def _copy_files(directory: Path, target: Path, temporary: Path, on_progress: OnProgress) -> Snapshot:
    """Copy the database, then the files it names; again if compaction took the vector file away in between."""
    for _ in range(_TRIES):
        _copy_database(directory, temporary, part_of(on_progress, Phase.COPY, 0.0, _DATABASE_DONE))
        with storage_errors(target):
            sync_directory(target)  # nothing else is there without the mark of an unfinished copy
        with _copied(temporary) as sql, transaction(sql, temporary, "IMMEDIATE"):
            snapshot = read_snapshot(sql, temporary)
            try:
                vectors = VectorReader(directory, snapshot.vector_file, snapshot.layout, snapshot.n_rows)
            except FileNotFoundError:
                continue
            blocks = read_blocks(sql)
            with vectors:
                on_share = part_of(on_progress, Phase.COPY, _DATABASE_DONE, _VECTORS_DONE)
                _copy_vectors(vectors, blocks, target / snapshot.vector_file, on_share)
            for row in snapshot.generations:
                if not _copy_generation(directory, target, row):
                    sql.execute("DELETE FROM generations WHERE name = ?", (row.name,))
            snapshot = read_snapshot(sql, temporary)
        with storage_errors(temporary), _opened(temporary, os.O_RDWR) as file:
            os.fsync(file)
        on_progress(Progress(phase=Phase.COPY, fraction=1.0))
        return snapshot
    msg = f"{directory}: the vector file that the database names is missing; {mend(directory)}"
    raise IndexCorruptError(msg)


def _copy_database(directory: Path, temporary: Path, on_share: OnShare) -> None:
    """Copy the database as it is at one commit.

    A few pages at a time, so that no commit has to wait; SQLite begins anew when one came in between. When commits come
    faster than the copy gets on, the last attempt holds them up.
    """
    n_restarts = before = 0

    def after_step(_status: int, remaining: int, total: int) -> None:
        nonlocal n_restarts, before
        n_restarts, before = n_restarts + (remaining > before > 0), remaining
        if n_restarts >= _TRIES:
            raise _TooManyCommitsError
        if total:  # SQLite tells 0 of 0 when a commit keeps it from beginning
            on_share(1 - remaining / total)

    with closing(connect_reader(directory)) as source, translated(temporary):
        try:
            with _copied(temporary) as copy:
                source.backup(copy, pages=_STEP_PAGES, progress=after_step, sleep=0.01)
        except _TooManyCommitsError as error:
            if (directory / DATABASE).stat().st_size > _HELD_UP_BYTES:
                msg = f"{directory} is written faster than its database can be copied; run again when the writer ends"
                raise StorageError(msg) from error
            with _copied(temporary) as copy:
                source.backup(copy)


class _TooManyCommitsError(Exception):
    """The copy had to begin anew too often."""


@contextmanager
def _copied(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of a database for a block; nobody else knows it, so SQLite's own journal will do."""
    with translated(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def _copy_vectors(vectors: VectorReader, blocks: Sequence[Block], target: Path, on_share: OnShare) -> None:
    """Copy the header and the rows that the database names, each block checked, and make them durable."""
    layout = vectors.layout
    with storage_errors(target), _opened(target, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
        write_all(file, vectors.header(), 0)
        for n_copied, (first_slot, n_rows, crc) in enumerate(blocks, 1):
            rows = vectors.checked(first_slot, n_rows, crc)
            write_all(file, rows.data.cast("B"), layout.file_bytes(first_slot))
            on_share(n_copied / len(blocks))
        os.fsync(file)


def _copy_generation(directory: Path, target: Path, row: GenerationRow) -> bool:
    """Copy a FAISS file if it is the one that the database names, and tell whether it is."""
    try:
        with _opened(own_path(directory, row.name), os.O_RDONLY) as source:
            return _copy_hashed(source, target / row.name, row)
    except (FileNotFoundError, IndexCorruptError) as error:
        logger.warning("the copy goes without its FAISS file: %s", error)
        return False


def _copy_hashed(source: int, target: Path, row: GenerationRow) -> bool:
    """Copy a file, and tell whether the copy reads back as the file that the database names; else remove it."""
    with storage_errors(target), _opened(target, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
        done = 0
        while data := read_all(source, _CHUNK_BYTES, done):
            write_all(file, data, done)
            done += len(data)
        os.fsync(file)
        digest = hashlib.sha256()
        for at in range(0, done, _CHUNK_BYTES):
            digest.update(read_all(file, _CHUNK_BYTES, at))
        is_it = (done, digest.hexdigest()) == (row.n_bytes, row.sha256)
    if not is_it:
        target.unlink()
    return is_it


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = open_regular(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
