"""Checks what an index holds against its invariants; changes nothing."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from indexer.ann.generation import Generation
from indexer.documents import Document, JsonValue, Place, text_key
from indexer.errors import IndexCorruptError, IndexerError, MissingExtraError, StorageError
from indexer.progress import OnProgress, OnShare, Phase, Progress, part_of, tell_nobody
from indexer.storage.database import Meta, connect_reader, transaction
from indexer.storage.files import DATABASE, mend
from indexer.storage.metadata import column_value, json_type, table_columns
from indexer.storage.snapshot import Snapshot, SnapshotReader
from indexer.storage.totals import count_totals, read_totals
from indexer.storage.vectors import Block, VectorReader

_LENGTH_TOLERANCE = 5e-2
# Each query gives one number that must be 0, and what it means when it is not.
_RULES = (
    ("SELECT n_rows - (SELECT count(*) FROM passages) FROM m", "slots without a passage row, or passages beyond them"),
    ("SELECT count(*) FROM passages, m WHERE slot < 0 OR slot >= n_rows", "passages outside the committed slots"),
    (
        "SELECT count(*) FROM passages WHERE document IS NOT NULL AND document NOT IN (SELECT row_id FROM documents)",
        "passages of documents that do not exist",
    ),
    # By the SQL index; NOT IN would make a list of all passages first.
    ("""SELECT count(*) FROM documents AS d
        WHERE NOT EXISTS (SELECT 1 FROM passages AS p WHERE p.document = d.row_id)""",
     "documents without a passage"),
    ("SELECT count(*) FROM documents WHERE row_id NOT IN (SELECT document FROM metadata)",
     "documents without a row in the derived metadata"),
    ("SELECT count(*) FROM metadata WHERE document NOT IN (SELECT row_id FROM documents)",
     "rows of derived metadata without a document"),
    ("""SELECT count(*) FROM documents
        WHERE CASE WHEN json_valid(metadata) THEN json_type(metadata) <> 'object' ELSE 1 END""",
     "documents whose metadata is no JSON object"),
    ("SELECT count(*) FROM documents WHERE source NOT IN (SELECT source FROM sources)",
     "documents whose source has no name"),
    ("SELECT NOT count(*) FROM canaries", "sets of canary texts missing"),
    ("SELECT n_rows - (SELECT coalesce(sum(n_rows), 0) FROM blocks) FROM m", "slots without a checksum"),
    ("""SELECT count(*) FROM (SELECT first_slot, lag(first_slot + n_rows, 1, 0) OVER (ORDER BY first_slot) AS wanted
        FROM blocks) WHERE first_slot <> wanted""", "checksum blocks that overlap or leave gaps"),
)  # fmt: skip
_DERIVED = """SELECT d.row_id, d.id, d.metadata, m.* FROM documents AS d LEFT JOIN metadata AS m
    ON m.document = d.row_id WHERE d.row_id > ? ORDER BY d.row_id"""
_STEP_ROWS = 500
# How far `--deep` is after each pass.
_DOCUMENTS_DONE, _DERIVED_DONE, _PASSAGES_DONE, _VECTORS_DONE = 0.35, 0.7, 0.9, 0.95
_TRIES = 3


def verify_index(
    directory: Path,
    *,
    deep: bool = False,
    generations: bool = True,
    database: str = DATABASE,
    on_progress: OnProgress = tell_nobody,
) -> list[str]:
    """Check an index and return its problems, one line each, none when it is sound.

    Args:
        directory: of the index.
        deep: also check every byte of vectors and generations, every text and the content of the catalogue.
        generations: whether to open the FAISS files.
        database: its name, in a copy that is not ready.
        on_progress: told after each step.

    Raises:
        IndexNotFoundError: there is no index at the path.
        IndexFormatError: this version cannot read it.
    """
    problems: list[str] = []
    tell = _Teller(on_progress)
    try:
        problems.extend(_problems(directory, database, deep, generations, tell))
    except (IndexCorruptError, StorageError) as error:
        if tell.is_telling:
            raise
        problems.append(str(error))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if tell.is_telling:
            raise
        # A damaged value of another type than was ever written; whatever reads it says so in its own way.
        problems.append(f"{directory / database} holds a value that no writer gives ({error}); {mend(directory)}")
    return list(dict.fromkeys(problems))


class _Teller:
    """Calls a callback, and knows whether what is raised comes from there."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self.is_telling = False

    def __call__(self, progress: Progress) -> None:
        self.is_telling = True
        self._on_progress(progress)
        self.is_telling = False


def _problems(directory: Path, database: str, deep: bool, generations: bool, on_progress: OnProgress) -> Iterator[str]:
    on_progress(Progress(phase=Phase.CHECK))
    with closing(connect_reader(directory, database)) as sql:
        yield from _database_problems(sql, directory / database, deep, on_progress)
    with closing(SnapshotReader(directory, database)) as reader:
        reader.setting("contract"), reader.setting("read")  # raise when they are missing
        for tries_left in reversed(range(_TRIES)):
            snapshot, problems = _file_problems(reader, deep, generations, on_progress)
            if not problems or not tries_left or reader.seq() == snapshot.seq:
                break
            # A commit may have replaced the files meanwhile.
        yield from problems
    on_progress(Progress(phase=Phase.CHECK, fraction=1.0))


def _database_problems(sql: sqlite3.Connection, path: Path, deep: bool, on_progress: OnProgress) -> Iterator[str]:
    """Check the database, each step in a transaction of its own: a commit waits for a reader for a minute only."""
    with transaction(sql, path):
        _ = Meta(sql, path)["n_rows"]  # raises when it is missing
        check = "integrity_check" if deep else "quick_check"
        yield from (f"{path}: {row[0]}" for row in sql.execute(f"PRAGMA {check}(20)") if row[0] != "ok")
    yield from _broken_rules(sql, path)
    if problem := totals_problem(sql, path):
        yield problem
    if deep:
        yield from _changed_documents(sql, path, part_of(on_progress, Phase.CHECK, 0.0, _DOCUMENTS_DONE))
        derived_share = part_of(on_progress, Phase.CHECK, _DOCUMENTS_DONE, _DERIVED_DONE)
        yield from derived_problems(sql, path, derived_share)
        yield from _changed_passages(sql, path, part_of(on_progress, Phase.CHECK, _DERIVED_DONE, _PASSAGES_DONE))


def _file_problems(
    reader: SnapshotReader, deep: bool, generations: bool, on_progress: OnProgress
) -> tuple[Snapshot, list[str]]:
    """Check the files that one snapshot names, and return both."""
    with reader.transaction():  # the files that it names are there as long as it lasts
        snapshot = reader.snapshot()
        blocks = reader.blocks() if deep else []
        try:
            vectors = VectorReader(reader.directory, snapshot.vector_file, snapshot.layout, snapshot.n_rows)
        except FileNotFoundError:
            vectors = None
    if vectors is None:
        problems = [f"{reader.directory / snapshot.vector_file} is missing; {mend(reader.directory)}"]
    else:
        with vectors:
            on_share = part_of(on_progress, Phase.CHECK, _PASSAGES_DONE, _VECTORS_DONE)
            problems = list(damaged_blocks(vectors, blocks, on_share).values())
    if generations:
        problems += _generation_problems(reader.directory, snapshot, deep)
    return snapshot, problems


def _broken_rules(sql: sqlite3.Connection, path: Path) -> Iterator[str]:
    for query, meaning in _RULES:
        with_rows = f"WITH m AS (SELECT value AS n_rows FROM meta WHERE key = 'n_rows') {query}"
        with transaction(sql, path):
            n = sql.execute(with_rows).fetchone()[0]
        if n:
            yield f"{path}: {abs(n)} {meaning}"


def _walk(sql: sqlite3.Connection, path: Path, query: str, on_row: Callable[[int], None]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query, whose first column ascends and is `?` there, a few in each transaction."""
    last = -1
    while True:
        with transaction(sql, path):
            rows = sql.execute(f"{query} LIMIT {_STEP_ROWS}", (last,)).fetchall()
        if not rows:
            return
        yield from rows
        last = rows[-1][0]
        on_row(last)


def _up_to_highest(
    sql: sqlite3.Connection, path: Path, column: str, table: str, on_share: OnShare
) -> Callable[[int], None]:
    """Return what tells, of a number in a column, how far the pass over the table is that has come to it."""
    with transaction(sql, path):
        highest: int = sql.execute(f"SELECT coalesce(max({column}), 0) FROM {table}").fetchone()[0]
    return lambda last: on_share(min(last / max(highest, 1), 1.0))


def _changed_documents(sql: sqlite3.Connection, path: Path, on_share: OnShare) -> Iterator[str]:
    """Compare every document with its hash."""
    query = "SELECT row_id, id, text, metadata, content_hash FROM documents WHERE row_id > ? ORDER BY row_id"
    on_row = _up_to_highest(sql, path, "row_id", "documents", on_share)
    for _, id_, text, stored, content_hash in _walk(sql, path, query, on_row):
        metadata = _metadata(stored)
        if metadata is not None and Document(id_, text, metadata, Place("", 0)).content_hash() != content_hash:
            yield f"{path}: text or metadata of document {id_!r} are not those that were indexed"


def totals_problem(sql: sqlite3.Connection, path: Path) -> str | None:
    """Return how the totals differ from what counting gives, None when they do not."""
    with transaction(sql, path):
        try:
            kept, counted = read_totals(sql, path), count_totals(sql)
        except IndexCorruptError as error:
            return str(error)
    return None if kept == counted else f"{path}: the totals are {asdict(kept)}, counting gives {asdict(counted)}"


def derived_problems(sql: sqlite3.Connection, path: Path, on_share: OnShare) -> Iterator[str]:
    """Compare the derived metadata of every document, and the catalogue of fields, with what they are derived from.

    The catalogue is not compared when a commit comes meanwhile.
    """
    counts: Counter[tuple[str, str]] = Counter()
    on_row = _up_to_highest(sql, path, "row_id", "documents", on_share)
    last, seqs = -1, set()
    while True:
        with transaction(sql, path):
            seqs.add(Meta(sql, path)["seq"])
            columns = table_columns(sql)
            rows = sql.execute(f"{_DERIVED} LIMIT {_STEP_ROWS}", (last,)).fetchall()
            catalogue = {} if rows else {(name, kind): n for name, kind, n in sql.execute("SELECT * FROM fields")}
        if not rows:
            break
        for _, id_, stored, row_id, *values in rows:
            metadata = _metadata(stored)
            if metadata is None:
                continue  # a rule says so
            if row_id is not None and values != [column_value(metadata.get(name)) for name in columns]:
                yield f"{path}: the derived metadata of document {id_!r} are not those of its JSON"
            counts.update((name, json_type(value)) for name, value in metadata.items())
        last = rows[-1][0]
        on_row(last)
    if len(seqs) == 1:
        for name in sorted({key[0] for key, _ in counts.items() ^ catalogue.items()}):
            yield f"{path}: the catalogue is wrong about the field {name!r}"


def _metadata(stored: str) -> dict[str, JsonValue] | None:
    try:
        value = json.loads(stored)
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _changed_passages(sql: sqlite3.Connection, path: Path, on_share: OnShare) -> Iterator[str]:
    query = """SELECT p.slot, d.id, d.text, p.char_start, p.char_end, p.text_key
        FROM passages AS p JOIN documents AS d ON d.row_id = p.document WHERE p.slot > ? ORDER BY p.slot"""
    on_row = _up_to_highest(sql, path, "slot", "passages", on_share)
    for _, id_, text, start, end, key in _walk(sql, path, query, on_row):
        if text_key(text[start:end]) != key:
            yield f"{path}: the text of document {id_!r} is not the one that was encoded"


def damaged_blocks(vectors: VectorReader, blocks: Sequence[Block], on_share: OnShare) -> dict[Block, str]:
    """Return those blocks of rows that are not sound, each with what is wrong.

    Args:
        vectors: where they are.
        blocks: to check.
        on_share: told after each of them.
    """
    damaged = {}
    for n_checked, block in enumerate(blocks, 1):
        if problem := _block_problem(vectors, block):
            damaged[block] = problem
        on_share(n_checked / len(blocks))
    return damaged


def _block_problem(vectors: VectorReader, block: Block) -> str | None:
    try:
        rows = vectors.checked(*block)
    except (IndexCorruptError, StorageError) as error:
        return str(error)
    wide = rows.astype(np.float32)
    norms = np.einsum("ij,ij->i", wide, wide)
    if not np.all(np.abs(norms - 1.0) < _LENGTH_TOLERANCE):  # a NaN is not
        return f"{vectors.path}: slots {block[0]} to {block[0] + block[1] - 1} hold vectors not of unit length"
    return None


def _generation_problems(directory: Path, snapshot: Snapshot, deep: bool) -> Iterator[str]:
    for row in snapshot.generations:
        try:
            if row.vector_file != snapshot.vector_file or row.n_slots > snapshot.n_rows:
                yield f"{directory / row.name} belongs to another vector file; the next build makes it anew"
            else:
                Generation(directory, row, snapshot.layout.dim, check_every_byte=deep)
        except FileNotFoundError:
            yield f"{directory / row.name} is missing; the next build or add makes it anew"
        except MissingExtraError:
            raise
        except IndexerError as error:
            yield str(error)
