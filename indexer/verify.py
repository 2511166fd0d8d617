"""Checks what an index holds against its invariants; changes nothing."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np

from indexer.ann.generation import Generation
from indexer.database import Meta, connect_reader, transaction
from indexer.documents import Document, JsonValue, Place, text_key
from indexer.errors import IndexCorruptError, IndexerError, MissingExtraError, StorageError
from indexer.files import DATABASE, mend
from indexer.metadata import column_value, json_type, table_columns
from indexer.snapshot import Snapshot, SnapshotReader
from indexer.totals import count_totals, read_totals
from indexer.vectors import VectorReader

_LENGTH_TOLERANCE = 5e-2
# Each query gives one number that must be 0, and what it means when it is not.
_RULES = (
    ("SELECT n_rows - (SELECT count(*) FROM passages) FROM m", "slots without a passage row, or passages beyond them"),
    ("SELECT count(*) FROM passages, m WHERE slot < 0 OR slot >= n_rows", "passages outside the committed slots"),
    (
        "SELECT count(*) FROM passages WHERE document IS NOT NULL AND document NOT IN (SELECT row_id FROM documents)",
        "passages of documents that do not exist",
    ),
    ("SELECT count(*) FROM documents WHERE row_id NOT IN (SELECT document FROM passages WHERE document IS NOT NULL)",
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


def verify_index(directory: Path, *, deep: bool = False, generations: bool = True) -> list[str]:
    """Check an index and return its problems, one line each, none when it is sound.

    Args:
        directory: of the index.
        deep: also check every byte of vectors and generations, every text and the content of the catalogue.
        generations: whether to open the FAISS files.

    Raises:
        IndexNotFoundError: there is no index at the path.
        IndexFormatError: this version cannot read it.
    """
    problems: list[str] = []
    try:
        problems.extend(_problems(directory, deep, generations))
    except (IndexCorruptError, StorageError) as error:
        problems.append(str(error))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # A damaged value of another type than was ever written; whatever reads it says so in its own way.
        problems.append(f"{directory / DATABASE} holds a value that no writer gives ({error}); {mend(directory)}")
    return list(dict.fromkeys(problems))


def _problems(directory: Path, deep: bool, generations: bool) -> Iterator[str]:
    path = directory / DATABASE
    with closing(connect_reader(directory)) as sql, transaction(sql, path):
        _ = Meta(sql, path)["n_rows"]  # raises when it is missing
        check = "integrity_check" if deep else "quick_check"
        yield from (f"{path}: {row[0]}" for row in sql.execute(f"PRAGMA {check}(20)") if row[0] != "ok")
        yield from _broken_rules(sql, path)
        if problem := totals_problem(sql, path):
            yield problem
        blocks = sql.execute("SELECT first_slot, n_rows, crc32 FROM blocks ORDER BY first_slot").fetchall()
        if deep:
            yield from _changed_documents(sql, path)
            yield from derived_problems(sql, path)
            yield from _changed_passages(sql, path)
    with closing(SnapshotReader(directory)) as reader:
        snapshot = reader.snapshot()
        reader.setting("contract"), reader.setting("read")  # raise when they are missing
    yield from _vector_problems(directory, snapshot, blocks if deep else [])
    if generations:
        yield from _generation_problems(directory, snapshot, deep)


def _broken_rules(sql: sqlite3.Connection, path: Path) -> Iterator[str]:
    for query, meaning in _RULES:
        with_rows = f"WITH m AS (SELECT value AS n_rows FROM meta WHERE key = 'n_rows') {query}"
        if n := sql.execute(with_rows).fetchone()[0]:
            yield f"{path}: {abs(n)} {meaning}"


def _changed_documents(sql: sqlite3.Connection, path: Path) -> Iterator[str]:
    """Compare every document with its hash."""
    for id_, text, stored, content_hash in sql.execute("SELECT id, text, metadata, content_hash FROM documents"):
        metadata = _metadata(stored)
        if metadata is not None and Document(id_, text, metadata, Place("", 0)).content_hash() != content_hash:
            yield f"{path}: text or metadata of document {id_!r} are not those that were indexed"


def totals_problem(sql: sqlite3.Connection, path: Path) -> str | None:
    """Return how the totals differ from what counting gives, None when they do not."""
    try:
        kept, counted = read_totals(sql, path), count_totals(sql)
    except IndexCorruptError as error:
        return str(error)
    return None if kept == counted else f"{path}: the totals are {asdict(kept)}, counting gives {asdict(counted)}"


def derived_problems(sql: sqlite3.Connection, path: Path) -> Iterator[str]:
    """Compare the derived metadata of every document, and the catalogue of fields, with what they are derived from."""
    columns = table_columns(sql)
    counts: Counter[tuple[str, str]] = Counter()
    rows = sql.execute(
        "SELECT d.id, d.metadata, m.* FROM documents AS d LEFT JOIN metadata AS m ON m.document = d.row_id"
    )
    for id_, stored, row_id, *values in rows:
        metadata = _metadata(stored)
        if metadata is None:
            continue  # a rule says so
        if row_id is not None and values != [column_value(metadata.get(name)) for name in columns]:
            yield f"{path}: the derived metadata of document {id_!r} are not those of its JSON"
        counts.update((name, json_type(value)) for name, value in metadata.items())
    catalogue = {(name, kind): n for name, kind, n in sql.execute("SELECT name, type, n FROM fields")}
    for name in sorted({key[0] for key, _ in counts.items() ^ catalogue.items()}):
        yield f"{path}: the catalogue is wrong about the field {name!r}"


def _metadata(stored: str) -> dict[str, JsonValue] | None:
    try:
        value = json.loads(stored)
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _changed_passages(sql: sqlite3.Connection, path: Path) -> Iterator[str]:
    rows = sql.execute(
        """SELECT d.id, d.text, p.char_start, p.char_end, p.text_key
        FROM passages AS p JOIN documents AS d ON d.row_id = p.document"""
    )
    for id_, text, start, end, key in rows:
        if text_key(text[start:end]) != key:
            yield f"{path}: the text of document {id_!r} is not the one that was encoded"


def _vector_problems(directory: Path, snapshot: Snapshot, blocks: list[tuple[int, int, int]]) -> Iterator[str]:
    try:
        vectors = VectorReader(directory, snapshot.vector_file, snapshot.layout, snapshot.n_rows)
    except FileNotFoundError:
        yield f"{directory / snapshot.vector_file} is missing; {mend(directory)}"
        return
    with vectors:
        for block in blocks:
            if problem := block_problem(vectors, block):
                yield problem


def block_problem(vectors: VectorReader, block: tuple[int, int, int]) -> str | None:
    """Return what is wrong with a block of rows, given as first slot, number and CRC-32, None when it is sound."""
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
