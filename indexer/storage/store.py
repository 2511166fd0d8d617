"""SQLite, the writer's side: what an index holds, and the commit that makes rows of the vector file count."""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.config import VectorDtype
from indexer.documents import JsonValue
from indexer.errors import IndexCorruptError, IndexerError, StorageError
from indexer.storage.changes import Changes
from indexer.storage.database import CommitError, Meta, check_tables, connect_writer, transaction, translated
from indexer.storage.files import DATABASE, discard, is_own_name, open_regular, storage_errors, sync_directory
from indexer.storage.generations import GenerationRow, insert_generation, keep_asked
from indexer.storage.holdings import Holdings
from indexer.storage.metadata import create_indexes, selective_columns
from indexer.storage.rows import DocumentRows
from indexer.storage.schema import migrate
from indexer.storage.seal import seal
from indexer.storage.totals import Totals, count_totals, keep_totals, read_totals
from indexer.storage.vectors import Block, VectorLayout, VectorReader, VectorWriter, create_vector_file, encode_rows

# Of documents that lie apart SQLite holds some 20 kB each until COMMIT, and readers wait while they are written.
_MOST_GONE = 2_048


def now() -> str:
    """Return the time as it is stored: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Store(Holdings):
    """The one writer of an index; the caller holds the writer's lock as long as it is open."""

    def __init__(self, directory: Path, connection: sqlite3.Connection, *, without_vectors: bool = False) -> None:
        super().__init__(directory / DATABASE, connection)
        self.directory = directory
        with translated(self._path):
            meta = Meta(connection, self._path)
        self.layout = VectorLayout.of(meta, self._path)
        self.vector_file = meta.text("vector_file")
        self.n_rows = meta.count("n_rows")
        self.is_complete = bool(meta["complete"])
        self._refused = ""
        self._vectors: VectorWriter | None = None
        self._sound: dict[Block, bool] = {}
        if without_vectors:
            return
        self._vectors = VectorWriter(directory, self.vector_file, self.layout)
        try:
            self._vectors.recover(self.n_rows)
            self._remove_strays()
        except BaseException:
            self._vectors.close()
            raise

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        dim: int,
        vector_dtype: VectorDtype,
        settings: Mapping[str, object],
        canaries: Sequence[tuple[str, NDArray[np.float32]]],
    ) -> Store:
        """Create an empty index in a directory that exists; until its one commit there is no index.

        Args:
            directory: where; a cut-off creation leaves nothing that stands in the way of another.
            dim: dimensions of the vectors.
            vector_dtype: number format of the vector file.
            settings: JSON values kept under their keys: the encoder contract, how records are read, and the like.
            canaries: texts with their vectors, (d,) float32.
        """
        layout = VectorLayout(dim=dim, dtype=vector_dtype, index_uuid=uuid.uuid4().hex)
        name = create_vector_file(directory, layout)
        connection = connect_writer(directory / DATABASE, creates=True)
        meta: dict[str, Any] = {
            "index_uuid": layout.index_uuid,
            "vector_file": name,
            "vector_dtype": vector_dtype.value,
            "dim": dim,
            "n_rows": 0,
            "seq": 0,
            "complete": 0,
            "created_at": now(),
        }
        meta |= {key: json.dumps(value, ensure_ascii=False) for key, value in settings.items()}
        with translated(directory / DATABASE):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # compaction can give pages back a few at a time
        with transaction(connection, directory / DATABASE, "IMMEDIATE"):
            migrate(connection)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            connection.executemany(
                "INSERT INTO canaries VALUES (?, ?, ?)",
                [(i, text, vector.astype("<f4").tobytes()) for i, (text, vector) in enumerate(canaries)],
            )
            seal(connection)
        connection.close()
        sync_directory(directory)
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path, *, without_vectors: bool = False) -> Store:
        """Open an index for writing: cut off rows that no commit names, remove files that none names.

        Args:
            directory: of the index.
            without_vectors: do neither, and leave the vector file alone: for mending.

        Raises:
            IndexCorruptError: committed rows are missing.
            IndexFormatError: the format is newer than this version.
            StorageError: the file system refused.
        """
        path = directory / DATABASE
        connection = connect_writer(path)
        try:
            with translated(path):
                check_tables(connection, path)
            with storage_errors(directory):
                return cls(directory, connection, without_vectors=without_vectors)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close the database and the vector file."""
        if self._vectors is not None:
            self._vectors.close()
        self._sql.close()

    def set_setting(self, key: str, value: object) -> None:
        """Change a setting given at creation."""
        with transaction(self._sql, self._path, "IMMEDIATE"):
            text = json.dumps(value, ensure_ascii=False)
            self._sql.execute("UPDATE meta SET value = ? WHERE key = ?", (text, key))
            seal(self._sql)

    def source(self, name: str) -> int:
        """Return the number of a source, new if it has none yet."""
        query = "SELECT source FROM sources WHERE name = ?"
        with translated(self._path):
            known = self._sql.execute(query, (name,)).fetchone()
        if known is None:  # else a commit would wait for readers, for nothing
            with transaction(self._sql, self._path, "IMMEDIATE"):
                self._sql.execute("INSERT INTO sources (name) VALUES (?)", (name,))
                known = self._sql.execute(query, (name,)).fetchone()
        number: int = known[0]
        return number

    def vectors(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the committed vectors of some slots, (n, d) float32; NaN where the block of a slot is damaged.

        Each block is compared with its checksum once: a copy of a damaged vector would get a checksum of its own.
        """
        with VectorReader(self.directory, self.vector_file, self.layout, self.n_rows) as reader:
            vectors = reader.rows(slots)
            for vector, slot in zip(vectors, slots.tolist(), strict=True):
                block = self.block_of(slot)
                if block not in self._sound:
                    self._sound[block] = reader.is_sound(block)
                if not self._sound[block]:
                    vector[:] = np.nan
        return vectors

    def no_vectors(self) -> NDArray[np.float32]:
        """Return the vectors of a commit that appends nothing, (0, d) float32."""
        return np.empty((0, self.layout.dim), np.float32)

    def commit(self, changes: Changes, vectors: NDArray[np.float32]) -> None:
        """Make changes durable and visible, all or none; SQLite's COMMIT is the single commit point.

        Args:
            changes: what to do.
            vectors: (n, d) float32 of unit length, one for each passage of the appended documents, in order.

        Raises:
            StorageError: the file system or SQLite refused; nothing of these changes is in the index.
        """
        rows = encode_rows(vectors, self.layout)
        n_passages = sum(len(new.passages) for new in changes.appended)
        if n_passages != len(rows):
            msg = f"{n_passages} passages came with {len(rows)} vectors; nothing was written"
            raise StorageError(msg)
        crc = self._append_vectors(rows) if len(rows) else 0
        with self.changing() as sql:
            documents = DocumentRows(sql)
            gone = changes.gone + [new.replaces for new in changes.appended if new.replaces is not None]
            totals = read_totals(sql, self._path).after(count_totals(sql, gone), Totals.of(changes.appended))
            documents.remove(gone)
            documents.rewrite(changes.rewritten)
            documents.append(changes.appended, self.last_row_id() + 1, self.n_rows)
            documents.finish()
            keep_totals(sql, totals)
            if len(rows):
                sql.execute("INSERT INTO blocks VALUES (?, ?, ?)", (self.n_rows, len(rows), crc))
            sql.execute("UPDATE meta SET value = ? WHERE key = 'n_rows'", (self.n_rows + len(rows),))
        self.n_rows += len(rows)

    def delete(self, rows: NDArray[np.int64]) -> None:
        """Delete documents, given by their rows, int64 ascending; many take several commits, for SQLite's memory."""
        for first in range(0, len(rows), _MOST_GONE):
            self.commit(Changes(gone=rows[first : first + _MOST_GONE].tolist()), self.no_vectors())

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Hold the transaction of one commit; nothing else was committed since this store knows the index.

        Raises:
            StorageError: SQLite refused. When COMMIT itself failed the message says whether it happened, as the
                database shows when it is opened again, and this store takes no further commit.
        """
        if self._refused:
            raise StorageError(self._refused)
        seq = -1
        try:
            with transaction(self._sql, self._path, "IMMEDIATE"):
                seq = self._check_rows_stand()
                yield self._sql
                self._sql.execute("UPDATE meta SET value = value + 1 WHERE key = 'seq'")
        except CommitError as error:
            self._refused = f"{error}; {self._outcome(seq)}"
            raise StorageError(self._refused) from error

    def _append_vectors(self, rows: NDArray[np.generic]) -> int:
        if self._refused or self._vectors is None:
            raise StorageError(self._refused or f"{self.directory} is open for mending alone")
        try:
            return self._vectors.append(self.n_rows, rows)
        except StorageError as error:
            # After a failed fsync the kernel takes lost pages for written: only a new writer may go on.
            self._refused = str(error)
            raise

    def _outcome(self, seq: int) -> str:
        """Say whether the commit after `seq` is in the index, as a new connection sees it."""
        self._sql.close()
        try:
            with closing(connect_writer(self._path)) as sql, translated(self._path):
                is_in = Meta(sql, self._path)["seq"] != seq
        except IndexerError:
            return "whether this commit is in the index could not be read; run again when the disk can be used"
        return "this commit is in the index all the same; run again" if is_in else "this commit is not; run again"

    def set_complete(self, complete: bool) -> None:
        """Mark whether the source was read to its end."""
        if complete == self.is_complete:
            return
        with self.changing() as sql:
            sql.execute("UPDATE meta SET value = ? WHERE key = 'complete'", (int(complete),))
            seal(sql)
        self.is_complete = complete

    def index_fields(self, names: Sequence[str]) -> list[str]:
        """Give columns of the derived metadata an SQL index each, and those that pay for it by themselves.

        Returns:
            The names that are no such column.
        """
        with translated(self._path):
            wanted = [*names, *selective_columns(self._sql)]
        if not wanted:
            return []
        with self.changing() as sql:
            return create_indexes(sql, wanted)

    def replace_generation(self, generation: GenerationRow) -> None:
        """Name a durable generation file and drop all others; their files are removed after the commit."""
        old = [row.name for row in self.generations()]
        with self.changing() as sql:
            sql.execute("DELETE FROM generations")
            insert_generation(sql, generation)
        for name in old:
            discard(self.directory / name)

    def set_asked(self, asked: Mapping[str, JsonValue]) -> None:
        """Keep what is asked of the next generation."""
        with self.changing() as sql:
            keep_asked(sql, asked)

    def update_generation(self, generation: GenerationRow) -> None:
        """Record other details of a generation whose file stays."""
        with self.changing() as sql:
            keep_asked(sql, generation.details.get("asked"))
            details = (json.dumps(generation.details), generation.name)
            sql.execute("UPDATE generations SET details = ? WHERE name = ?", details)

    def drop_generations(self, names: Sequence[str]) -> int:
        """Drop generations by their names, with their files, and return how many there were."""
        if names:
            with self.changing() as sql:
                sql.executemany("DELETE FROM generations WHERE name = ?", [(name,) for name in names])
        for name in names:
            if is_own_name(name):
                discard(self.directory / name)
        return len(names)

    def replace_vectors(self, name: str, blocks: Sequence[tuple[int, int, int]]) -> None:
        """Let the index name a durable vector file that holds the live rows in their order and no others.

        Args:
            name: of the file.
            blocks: of the file; first slot, number of rows and CRC-32 of each, ascending.
        """
        old = [self.vector_file, *(row.name for row in self.generations())]
        n_rows = sum(n for _, n, _ in blocks)
        with self.changing() as sql:
            sql.execute(
                """CREATE TEMP TABLE live AS SELECT document, char_start, char_end, text_key, n_tokens, n_tokens_lost
                FROM passages WHERE document IS NOT NULL ORDER BY slot"""
            )
            if (n_live := sql.execute("SELECT count(*) FROM live").fetchone()[0]) != n_rows:
                msg = f"{self._path}: {n_live} passages are live, {n_rows} rows were copied; run: index verify --deep"
                raise IndexCorruptError(msg)
            sql.execute("DELETE FROM passages")
            sql.execute("INSERT INTO passages SELECT rowid - 1, * FROM live ORDER BY rowid")
            sql.execute("DROP TABLE live")
            for row in self.generations():
                keep_asked(sql, row.details.get("asked"))
            sql.execute("DELETE FROM blocks")
            sql.executemany("INSERT INTO blocks VALUES (?, ?, ?)", blocks)
            sql.execute("DELETE FROM generations")
            sql.execute("UPDATE meta SET value = ? WHERE key = 'vector_file'", (name,))
            sql.execute("UPDATE meta SET value = ? WHERE key = 'n_rows'", (n_rows,))
            self._sync_journal()
        if self._vectors is not None:
            self._vectors.close()
            self._vectors = VectorWriter(self.directory, name, self.layout)
        self.vector_file, self.n_rows, self._sound = name, n_rows, {}
        for each in old:
            discard(self.directory / each)

    def _sync_journal(self) -> None:
        """Sync the journal of a large transaction before COMMIT does, which keeps readers out meanwhile."""
        journal = self._path.with_name(f"{DATABASE}-journal")
        with storage_errors(journal):
            descriptor = open_regular(journal, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def give_back_pages(self, step: int) -> bool:
        """Cut the free pages off the database, `step` pages in a transaction, so that readers come in between.

        Returns:
            Whether all that can go are gone; a reader in a long transaction keeps them.
        """
        with translated(self._path):
            free = self._sql.execute("PRAGMA freelist_count").fetchone()[0]
            while free:
                try:
                    # `execute` would take one step of a statement without columns, and so free one page.
                    self._sql.executescript(f"PRAGMA incremental_vacuum({step:d})")
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                        raise
                    return False
                before, free = free, self._sql.execute("PRAGMA freelist_count").fetchone()[0]
                if free >= before:
                    break
        return True

    def _check_rows_stand(self) -> int:
        meta = Meta(self._sql, self._path)
        if (meta["n_rows"], meta["vector_file"]) != (self.n_rows, self.vector_file):
            msg = f"{self._path} was written by another process in spite of the lock; nothing was committed, run again"
            raise StorageError(msg)
        return meta.count("seq")

    def _remove_strays(self) -> None:
        named = {self.vector_file} | {row.name for row in self.generations()}
        for path in sorted(self.directory.iterdir()):
            if is_own_name(path.name) and path.name not in named:
                discard(path)
