"""Ways to break the protocol of a commit, one at a time: the rig must notice every one of them."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from disk import Disk, Image, Step, Sync

import indexer.storage.files
import indexer.storage.store
from indexer.storage.store import Store
from indexer.storage.vectors import VectorWriter, encode_rows, write_all


def _nothing(*_: object, **__: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Mutant:
    """A broken program: the workload that shows it, and what `install` replaces in this process.

    SQLite syncs the directory for its journal in every transaction, and so covers for a program that forgets to;
    `forgets_directories` takes every fsync of a directory, SQLite's too, out of the recording.
    """

    workload: str
    install: Callable[[], None] = _nothing
    forgets_directories: bool = False

    def recorded(self, base: Image, steps: Sequence[Step]) -> list[Step]:
        """Return what a recording of this program counts as."""
        if not self.forgets_directories:
            return list(steps)
        disk = Disk(base)
        for step in steps:
            disk.apply(step)
        return [step for step in steps if not (isinstance(step, Sync) and step.file in disk.directories)]


def _unsynced(part: str) -> Callable[[], None]:
    """Leave out the fsync of files whose path contains a part."""

    def install() -> None:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if part not in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                real(descriptor)

        os.fsync = fsync

    return install


def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace a function by what `make` makes of it."""
    return lambda: setattr(owner, name, make(getattr(owner, name)))


def _pragmas(*pragmas: str) -> Callable[[], None]:
    """Open the database for writing with other settings."""

    def make(real: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        def connect(path: Path, **options: bool) -> sqlite3.Connection:
            connection = real(path, **options)
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}")
            return connection

        return connect

    return _replaced(indexer.storage.store, "connect_writer", make)


def _vectors_after_commit() -> None:
    """Commit first, then write the vectors."""
    late: list[Callable[[], object]] = []
    append, commit = VectorWriter.append, Store.commit

    def remember(self: VectorWriter, first_slot: int, rows: Any) -> int:
        late.append(lambda: append(self, first_slot, rows))
        return zlib.crc32(rows.data.cast("B"))

    def both(self: Store, *arguments: Any) -> None:
        commit(self, *arguments)
        while late:
            late.pop()()

    VectorWriter.append, Store.commit = remember, both


def _acknowledged_early() -> None:
    """Tell of a commit before it is one."""
    commit, n = Store.commit, 0

    def told(self: Store, *arguments: Any) -> None:
        nonlocal n
        n += 1
        os.write(1, b"ack %d\n" % n)
        commit(self, *arguments)

    Store.commit = told


def _removed_before(name: str, pattern: str) -> Callable[[], None]:
    """Remove the files that a commit replaces before it, not after."""

    def make(real: Callable[..., Any]) -> Callable[..., Any]:
        def early(self: Store, new: Any, *arguments: Any) -> Any:
            keep = {getattr(new, "name", new)}
            for path in self.directory.glob(pattern):
                if path.name not in keep:
                    path.unlink()
            return real(self, new, *arguments)

        return early

    return _replaced(Store, name, make)


def _row_updated_in_place() -> None:
    """Write the vector of a changed text over the old one, before the commit that changes the text."""
    commit = Store.commit

    def in_place(self: Store, changes: Any, vectors: Any) -> None:
        rows = encode_rows(vectors, self.layout)
        file = self._vectors._descriptor
        first = 0
        for new in changes.appended:
            if new.replaces is not None:
                (slot,) = self._sql.execute("SELECT slot FROM passages WHERE document = ?", (new.replaces,)).fetchone()
                write_all(file, rows[first].data.cast("B"), self.layout.file_bytes(slot))
            first += len(new.passages)
        os.fsync(file)
        for first_slot, n_rows in self._sql.execute("SELECT first_slot, n_rows FROM blocks").fetchall():
            crc = zlib.crc32(os.pread(file, n_rows * self.layout.stride, self.layout.file_bytes(first_slot)))
            self._sql.execute("UPDATE blocks SET crc32 = ? WHERE first_slot = ?", (crc, first_slot))
        commit(self, changes, vectors)

    Store.commit = in_place


def _recovered_by_count() -> None:
    """Cut the vector file to as many rows as there are live passages."""
    recover = VectorWriter.recover

    def counted(self: VectorWriter, _n_rows: int) -> None:
        with closing(sqlite3.connect(self.path.parent / "index.db")) as sql:
            (n_live,) = sql.execute("SELECT count(*) FROM passages WHERE document IS NOT NULL").fetchone()
        recover(self, n_live)

    VectorWriter.recover = counted


def _cut_without_lock() -> None:
    """Let someone else open the index for recovery, without the lock, between the vectors and their commit."""
    append = VectorWriter.append

    def cut(self: VectorWriter, first_slot: int, rows: Any) -> int:
        crc = append(self, first_slot, rows)
        other = VectorWriter(self.path.parent, self.path.name, self.layout)
        other.recover(first_slot)
        other.close()
        return crc

    VectorWriter.append = cut


def _generation_renamed_after_commit() -> None:
    """Name a generation in the database before its file has that name."""
    rename, replace = Path.rename, Store.replace_generation
    late: list[Callable[[], object]] = []

    def remember(self: Path, target: Path) -> Path:
        late.append(lambda: rename(self, target))
        return target

    def both(self: Store, generation: Any) -> None:
        replace(self, generation)
        while late:
            late.pop()()

    Path.rename, Store.replace_generation = remember, both


def _vectors_written_short() -> None:
    """Take a write for done that was not whole."""

    def short(real: Callable[..., Any]) -> Callable[..., Any]:
        def append(self: VectorWriter, first_slot: int, rows: Any) -> int:
            real(self, first_slot, np.ascontiguousarray(rows[:-1]))
            os.ftruncate(self._descriptor, self.layout.file_bytes(first_slot + len(rows)))
            os.fsync(self._descriptor)
            return zlib.crc32(rows.data.cast("B"))

        return append

    _replaced(VectorWriter, "append", short)()


MUTANTS = {
    "vectors not synced": Mutant("append", _unsynced("/vectors-")),
    "generation not synced": Mutant("rebuild", _unsynced("/gen-")),
    "names of generations not synced": Mutant("rebuild", forgets_directories=True),
    "names in a new index not synced": Mutant("create", forgets_directories=True),
    "name of the index not synced": Mutant(
        "create", _replaced(indexer.storage.files, "sync_directory", lambda _: _nothing)
    ),
    "vectors after the commit": Mutant("append", _vectors_after_commit),
    "vectors written short": Mutant("append", _vectors_written_short),
    "commit told early": Mutant("append", _acknowledged_early),
    "old generation removed before the commit": Mutant("rebuild", _removed_before("replace_generation", "gen-*.faiss")),
    "generation renamed after the commit": Mutant("rebuild", _generation_renamed_after_commit),
    "compacted vectors not synced": Mutant("compact", _unsynced("/vectors-")),
    "old vectors removed before the commit": Mutant("compact", _removed_before("replace_vectors", "vectors-*")),
    "vectors of the backup not synced": Mutant("backup", _unsynced("/copy/vectors-")),
    "row updated in place": Mutant("update and delete", _row_updated_in_place),
    "recovery by COUNT(*)": Mutant("update and delete", _recovered_by_count),
    "truncation without the lock": Mutant("append", _cut_without_lock),
    "TRUNCATE with NORMAL": Mutant("append", _pragmas("synchronous = NORMAL")),
    "DELETE with FULL, Python's default": Mutant("append", _pragmas("journal_mode = DELETE")),
    "WAL with NORMAL": Mutant("append", _pragmas("journal_mode = WAL", "synchronous = NORMAL")),
    "synchronous OFF": Mutant("append", _pragmas("synchronous = OFF")),
    "journal in memory": Mutant("append", _pragmas("journal_mode = MEMORY")),
}
