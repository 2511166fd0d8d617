"""Index directories made by somebody who means harm: refused in one line, or harmless; nothing outside is touched."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

import pytest
from indexes import Oracle, build, only, records, searching, sql

from indexer.delete import delete_documents
from indexer.errors import IndexCorruptError, IndexerError, IndexFormatError, IndexNotFoundError
from indexer.info import describe
from indexer.maintenance.backup import backup_index
from indexer.maintenance.importing import import_index
from indexer.maintenance.verify import verify_index

LIMIT_S = 2.0
MAGIC = bytes.fromhex("d9d505f920a163d7")
Harm = Callable[[Path, Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sound") / "index"
    build(out, records(12))
    return out


def run(out: Path, *statements: str) -> None:
    with closing(sqlite3.connect(out / "index.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def set_meta(key: str, value: object) -> Harm:
    return lambda out, _: sql(out, "UPDATE meta SET value = ? WHERE key = ?", value, key)


def statements(*each: str) -> Harm:
    return lambda out, _: run(out, *each)


def in_place(pattern: str, change: Callable[[Path, Path], object]) -> Harm:
    """Remove the file that a pattern names, and put something in its place."""

    def harm(out: Path, secret: Path) -> None:
        path = only(out, pattern) if "*" in pattern else out / pattern
        path.unlink(missing_ok=True)
        change(path, secret)

    return harm


def link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, _: Path) -> None:
    path.mkdir()


def journal(content: bytes) -> Harm:
    return lambda out, secret: (out / "index.db-journal").write_bytes(content.replace(b"SECRET", bytes(secret)))


def super_journal(out: Path, secret: Path) -> None:
    name = bytes(secret)
    tail = struct.pack(">I", 1) + name + struct.pack(">II", len(name), sum(name)) + MAGIC
    (out / "index.db-journal").write_bytes((MAGIC + struct.pack(">5I", 1, 0, 1, 512, 4096)).ljust(512, b"\0") + tail)


def redefined(table: str, new: str) -> Harm:
    def harm(out: Path, _: Path) -> None:
        run(out, "PRAGMA writable_schema = ON", f"UPDATE sqlite_master SET sql = '{new}' WHERE name = '{table}'")

    return harm


def crafted_generation(content: bytes) -> Harm:
    """Put a FAISS file of some bytes there, with the right size and hash."""

    def harm(out: Path, _: Path) -> None:
        only(out, "gen-*").write_bytes(content)
        sql(out, "UPDATE generations SET n_bytes = ?, sha256 = ?", len(content), sha256(content).hexdigest())

    return harm


def nan_vectors(out: Path, _: Path) -> None:
    path = only(out, "vectors-*")
    data = path.read_bytes()[:4096] + b"\x00\x7e" * (12 * 16)
    path.write_bytes(data)
    sql(out, "UPDATE blocks SET crc32 = ?", zlib.crc32(data[4096:]))


def sparse_giant(out: Path, _: Path) -> None:
    os.truncate(only(out, "vectors-*"), 4096 + (1 << 34) * 32)
    sql(out, "UPDATE meta SET value = ? WHERE key = 'n_rows'", 1 << 34)


def deep_json(levels: int) -> str:
    return "[" * levels + "]" * levels


REFUSED_AT_OPENING: dict[str, Harm] = {
    "index.db is a link": in_place("index.db", link),
    "index.db is a FIFO": in_place("index.db", fifo),
    "index.db is a folder": in_place("index.db", folder),
    "the journal is a link": in_place("index.db-journal", link),
    "the journal is a FIFO": in_place("index.db-journal", fifo),
    "the journal names a super-journal": super_journal,
    "a WAL file is a link": in_place("index.db-wal", link),
    "a shared-memory file is a link": in_place("index.db-shm", link),
    "the vector file is a link": in_place("vectors-*", link),
    "the vector file is a FIFO": in_place("vectors-*", fifo),
    "the vector file is a folder": in_place("vectors-*", folder),
    "the vector file is a sparse giant with as many rows": sparse_giant,
    "a view beside the tables": statements("CREATE VIEW evil AS SELECT * FROM documents"),
    "a view in the place of a table": statements(
        "ALTER TABLE fields RENAME TO gone", "CREATE VIEW fields AS SELECT 'a' AS name, 'b' AS type, 1 AS n"
    ),
    "a trigger on documents": statements(
        "CREATE TRIGGER evil AFTER DELETE ON documents BEGIN UPDATE meta SET value = 9 WHERE key = 'dim'; END"
    ),
    "a trigger on a metadata-named table": statements(
        "CREATE TRIGGER metadata_evil AFTER INSERT ON metadata BEGIN DELETE FROM documents; END"
    ),
    "a virtual table": statements("CREATE VIRTUAL TABLE evil USING fts5(x)"),
    "a table more": statements("CREATE TABLE more (x)"),
    "an SQL index with an expression": statements("CREATE INDEX metadata_evil ON metadata (abs(n))"),
    "a partial SQL index": statements("CREATE INDEX metadata_evil ON metadata (n) WHERE n > 1"),
    "a generated column in metadata": statements("ALTER TABLE metadata ADD COLUMN evil AS (abs(n))"),
    "a check in a table": redefined(
        "sources", "CREATE TABLE sources (source INTEGER PRIMARY KEY, name CHECK (load(1)))"
    ),
    "a default with an expression": redefined(
        "blocks", "CREATE TABLE blocks (first_slot, n_rows, crc32 DEFAULT (x()))"
    ),
    "a table without its key": statements("DROP TABLE canaries", "CREATE TABLE canaries (position, text, vector)"),
    "another application": statements("PRAGMA application_id = 1"),
    "a newer format": statements("PRAGMA user_version = 2"),
    "no database at all": in_place("index.db", lambda path, _: path.write_bytes(b"\x7fELF" * 5000)),
    "rows without end": set_meta("n_rows", 1 << 62),
    "rows below none": set_meta("n_rows", -1),
    "rows that are a text": set_meta("n_rows", "12; DROP TABLE meta"),
    "no dimensions": set_meta("dim", 0),
    "dimensions without end": set_meta("dim", 1 << 40),
    "a vector file outside": set_meta("vector_file", "../../../../etc/passwd"),
    "a vector file at the root": set_meta("vector_file", "/etc/passwd"),
    "a vector file that is a blob": set_meta("vector_file", b"\xff\xfe"),
    "another number format": set_meta("vector_dtype", "f64"),
    "a uuid that is none": set_meta("index_uuid", "zz" * 16),
    "a contract nested without end": set_meta("contract", deep_json(100_000)),
    "a contract of many megabytes": set_meta("contract", json.dumps("x" * 3_000_000)),
    "a contract that is no object": set_meta("contract", "[]"),
    "a contract of other keys": set_meta("contract", '{"evil": 1}'),
    "generation details nested without end": lambda out, _: sql(
        out, "UPDATE generations SET details = ?", deep_json(100_000)
    ),
}
REFUSED_AT_THE_TEXTS: dict[str, Harm] = {
    "metadata nested without end": lambda out, _: sql(out, "UPDATE documents SET metadata = ?", deep_json(100_000)),
    "metadata with a number of 5,000 digits": lambda out, _: sql(
        out, "UPDATE documents SET metadata = ?", '{"n": ' + "9" * 5000 + "}"
    ),
    "metadata that is a list": lambda out, _: sql(out, "UPDATE documents SET metadata = '[]'"),
}
ANSWERED: dict[str, Harm] = {
    "the generation is a link": in_place("gen-*", link),
    "the generation is a FIFO": in_place("gen-*", fifo),
    "the generation is a folder": in_place("gen-*", folder),
    "the generation has another name": statements("UPDATE generations SET name = '../../etc/passwd'"),
    "a crafted FAISS file that is no FAISS file": crafted_generation(b"pickle" * 100),
    "a crafted FAISS file without end": crafted_generation(b"IxFI" + struct.pack("<iq", 16, 1 << 62) * 40),
    "the rejects are a link": in_place("rejects.jsonl", link),
    "files and folders that nobody knows": lambda out, _: [
        (out / name).write_bytes(b"x") for name in ("sitecustomize.py", "docs.pkl", "gen-x.faiss", "config.json")
    ],
    "an old journal without content": journal(b""),
    "a journal of nonsense": journal(b"nonsense" * 100),
}
NOT_TAKEN_IN: dict[str, Harm] = {
    "vectors that are NaN, with the right checksum": nan_vectors,
    "texts that were not encoded": statements("UPDATE documents SET text = 'buy this'"),
    **REFUSED_AT_THE_TEXTS,
}
WRITE_REFUSED: dict[str, Harm] = {
    "the lock is a link": in_place("writer.lock", link),
    "the lock is a FIFO": in_place("writer.lock", fifo),
    "the lock has a second name": in_place("writer.lock", lambda path, secret: os.link(secret, path)),
}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside, that nobody may read, change or remove."""
    path = tmp_path / "secret"
    path.write_text("SECRET")
    return path


@pytest.fixture
def made(request: pytest.FixtureRequest, sound: Path, tmp_path: Path, secret: Path) -> Path:
    out = Path(shutil.copytree(sound, tmp_path / "outer" / "index"))
    request.param(out, secret)
    return out


@pytest.fixture(autouse=True)
def nothing_outside_is_touched(secret: Path, tmp_path: Path):
    began_s = time.monotonic()
    yield
    assert secret.read_text() == "SECRET"
    assert {path.name for path in tmp_path.iterdir()} <= {"secret", "outer", "copy"}
    assert time.monotonic() - began_s < 8 * LIMIT_S


def search(out: Path) -> None:
    with searching(out) as searcher:
        searcher.search("text number 3", 3)
        searcher.search("text number 3", 3, where={"even": True})


def within_limit(action: Callable[[Path], object], out: Path) -> None:
    began_s = time.monotonic()
    try:
        action(out)
    finally:
        assert time.monotonic() - began_s < LIMIT_S


def refused(action: Callable[[Path], object], out: Path) -> None:
    with pytest.raises(IndexerError) as caught:
        within_limit(action, out)
    assert isinstance(caught.value, (IndexCorruptError, IndexFormatError, IndexNotFoundError))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2_000


def cases(harms: dict[str, Harm]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("made", harms.values(), ids=harms.keys(), indirect=True)


@cases(REFUSED_AT_OPENING)
def test_it_is_refused_when_it_is_opened(made: Path) -> None:
    refused(search, made)
    refused(import_index, made)
    with suppress(IndexerError):
        within_limit(lambda out: delete_documents(out, ["d1"]), made)
    with suppress(IndexerError):
        within_limit(lambda out: verify_index(out, deep=True), made)


@cases(REFUSED_AT_THE_TEXTS)
def test_it_is_refused_when_the_texts_are_fetched(made: Path) -> None:
    refused(search, made)
    within_limit(describe, made)
    assert verify_index(made, deep=True) != []


@cases(ANSWERED)
def test_it_answers_all_the_same_and_the_bad_file_counts_for_nothing(made: Path) -> None:
    oracle = Oracle().put(records(12))
    with searching(made) as searcher:
        oracle.check_searcher(searcher, ["text number 3"], 5)
        view = searcher._view
        assert view.generation() is None or "generation" not in str(made)
    within_limit(lambda out: verify_index(out, deep=True), made)
    within_limit(lambda out: backup_index(out, made.parent.parent / "copy"), made)
    within_limit(lambda out: build(out, records(1, 12), adds=True), made)
    within_limit(import_index, made)
    oracle.put(records(1, 12))
    with searching(made) as searcher:
        oracle.check_searcher(searcher, ["text number 3", "text number 12"], 5)


@cases(NOT_TAKEN_IN)
def test_it_is_not_taken_in(made: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    refused(import_index, made)
    assert {path.name: path.read_bytes() for path in made.iterdir() if path.name != "writer.lock"} == {
        name: content for name, content in before.items() if name != "writer.lock"
    }


@cases(WRITE_REFUSED)
def test_nothing_is_written_to_it_and_readers_do_not_care(made: Path) -> None:
    refused(lambda out: delete_documents(out, ["d1"]), made)
    refused(import_index, made)
    with searching(made) as searcher:
        Oracle().put(records(12)).check_searcher(searcher, ["text number 3"], 5)


def test_there_are_forty_and_more() -> None:
    assert len(REFUSED_AT_OPENING | REFUSED_AT_THE_TEXTS | ANSWERED | NOT_TAKEN_IN | WRITE_REFUSED) >= 55
