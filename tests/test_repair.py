"""Repair makes again what is derived, encodes damaged vectors when told to, and names the rest."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fakes import DIM, FakeEncoder, fake_vector
from indexes import Oracle, build, flip_byte, only, records, searching, sql

from indexer import Index
from indexer.delete import delete_documents
from indexer.errors import EncoderError, IndexFormatError, IndexLockedError, IndexNotFoundError
from indexer.maintenance.compact import compact_index
from indexer.maintenance.repair import RepairReport, repair_index
from indexer.maintenance.verify import verify_index
from indexer.storage.lock import writer_lock
from indexer.storage.store import Store

QUERIES = ["text number 3", "text number 28", "something else"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "index"
    build(out, records(20))
    build(out, records(30), adds=True)
    delete_documents(out, ["d2", "d25"])
    return out


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "index"))


def oracle() -> Oracle:
    made = Oracle().put(records(30))
    made.delete(["d2", "d25"])
    return made


def repair(out: Path, *, encode_damaged: bool = False, encoder: FakeEncoder | None = None) -> RepairReport:
    return repair_index(out, encode_damaged=encode_damaged, load_encoder=(encoder or FakeEncoder()).load)


def check(out: Path) -> None:
    assert verify_index(out, deep=True) == []
    with searching(out) as searcher:
        oracle().check_searcher(searcher, QUERIES, 100)
        oracle().check_searcher(searcher, QUERIES, 5, where={"even": True}, keep=lambda record: record["even"])


def test_a_sound_index_stays_as_it_is(index: Path) -> None:
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    assert repair(index, encode_damaged=True) == RepairReport()
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before


DERIVED = [
    "DELETE FROM metadata",
    "DELETE FROM metadata WHERE document = 4",
    "INSERT INTO metadata (document) VALUES (999)",
    "UPDATE metadata SET n = -1",
    "DROP TABLE metadata",
    "DROP TABLE fields",
    "DELETE FROM fields WHERE name = 'n'",
    "UPDATE fields SET n = n + 1",
    "INSERT INTO fields VALUES ('ghost', 'string', 1)",
    "UPDATE meta SET value = json_set(value, '$.tokens', 7) WHERE key = 'totals'",
    "UPDATE meta SET value = '[]' WHERE key = 'totals'",
    "DELETE FROM generations",
    "UPDATE generations SET sha256 = 'x'",
    "UPDATE generations SET n_slots = 999",
    "UPDATE generations SET vector_file = 'vectors-' || lower(hex(randomblob(16))) || '.f16'",
    "UPDATE generations SET kind = 'magic'",
]


@pytest.mark.parametrize("statement", DERIVED)
def test_what_is_derived_is_made_again(statement: str, index: Path) -> None:
    sql(index, statement)
    report = repair(index)
    assert len(report.mended) == 1
    assert report.left == []
    check(index)


@pytest.mark.parametrize("way", ["flip", "truncate", "remove"])
def test_a_bad_faiss_file_is_built_again(way: str, index: Path) -> None:
    path = only(index, "gen-*")
    match way:
        case "flip":
            flip_byte(path, -1)
        case "truncate":
            os.truncate(path, 10)
        case _:
            path.unlink()
    assert len(repair(index).mended) == 1
    check(index)


def test_a_sql_index_that_is_missing_is_made_again(index: Path) -> None:
    sql(index, "DROP INDEX passages_text_key")
    assert any("passages_text_key" in line for line in verify_index(index))
    report = repair(index)
    assert (len(report.mended), report.left) == (1, [])
    assert "passages_text_key" in report.mended[0]
    check(index)


def test_a_repair_of_derived_metadata_keeps_the_sql_indexes_of_fields(index: Path) -> None:
    with closing(Store.open(index)) as store:
        store.index_fields(["even"])
    sql(index, "DELETE FROM metadata WHERE document = 3")
    assert repair(index).left == []
    assert sql(index, "SELECT count(*) FROM sqlite_master WHERE name = 'metadata_even'") == [(1,)]
    check(index)


def test_a_sql_index_that_disagrees_is_made_again(index: Path) -> None:
    def run(*statements: str) -> None:
        with closing(sqlite3.connect(index / "index.db")) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    (row,) = sql(
        index, "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE name = 'passages_text_key'"
    )
    run("UPDATE passages SET text_key = text_key + 1 WHERE slot = 5")
    run("PRAGMA writable_schema = ON", "DELETE FROM sqlite_master WHERE name = 'passages_text_key'")
    run("UPDATE passages SET text_key = text_key - 1 WHERE slot = 5")  # the hidden index does not follow
    with closing(sqlite3.connect(index / "index.db")) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)
    assert any("passages_text_key" in problem for problem in verify_index(index, deep=True))
    report = repair(index)
    assert report.left == []
    assert len(report.mended) == 1
    check(index)


@pytest.mark.parametrize("at", [4096, 4096 + 20 * DIM * 2 + 1])
def test_damaged_vectors_are_named_and_encoded_again_only_when_told_to(at: int, index: Path) -> None:
    flip_byte(only(index, "vectors-*"), at)
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    encoder = FakeEncoder()
    report = repair(index, encoder=encoder)
    assert report.mended == []
    assert len(report.left) == 1
    assert "passages have lost their vector; index repair" in report.left[0]
    assert "--encode-damaged" in report.left[0]
    assert encoder.texts == []
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before
    report = repair(index, encode_damaged=True, encoder=encoder)
    assert report.left == []
    assert len(encoder.texts) == (19 if at == 4096 else 9)
    assert len(report.mended) == 2  # the FAISS file belonged to the old vectors
    assert not any("index repair" in line for line in report.mended)
    check(index)


def test_what_was_asked_of_the_generation_outlasts_a_repair_of_vectors(index: Path) -> None:
    Index(index).rebuild(kind="hnsw")
    flip_byte(only(index, "vectors-*"), 4096)
    assert repair(index, encode_damaged=True).left == []
    assert sql(index, "SELECT kind FROM generations") == [("hnsw",)]


@pytest.mark.parametrize("way", ["remove", "header", "short", "empty", "replace by a link"])
def test_a_vector_file_that_is_lost_is_encoded_again(way: str, index: Path, tmp_path: Path) -> None:
    path = only(index, "vectors-*")
    match way:
        case "remove":
            path.unlink()
        case "header":
            flip_byte(path, 20)
        case "short":
            os.truncate(path, path.stat().st_size - 1)
        case "empty":
            os.truncate(path, 0)
        case _:
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    assert repair(index).left != []
    report = repair(index, encode_damaged=True, encoder=(encoder := FakeEncoder()))
    assert report.left == []
    assert len(encoder.texts) == (9 if way == "short" else 28)
    check(index)


def test_damage_that_only_dead_passages_share_needs_no_encoder(tmp_path: Path) -> None:
    build(tmp_path, records(20))
    build(tmp_path, records(30), adds=True)
    delete_documents(tmp_path, [f"d{i}" for i in range(20, 30)])
    flip_byte(only(tmp_path, "vectors-*"), -1)
    encoder = FakeEncoder()
    assert repair(tmp_path, encoder=encoder).left == []
    assert encoder.texts == []
    with searching(tmp_path) as searcher:
        Oracle().put(records(20)).check_searcher(searcher, QUERIES, 100)


def test_passages_are_encoded_again_from_their_own_words(tmp_path: Path) -> None:
    long = [{"id": f"l{i}", "text": " ".join(f"wörd{i}{j}" for j in range(9))} for i in range(6)]
    build(tmp_path, long, encoder=FakeEncoder(chunk_tokens=4))
    rows = only(tmp_path, "vectors-*").read_bytes()
    flip_byte(only(tmp_path, "vectors-*"), -1)
    report = repair(tmp_path, encode_damaged=True, encoder=FakeEncoder(chunk_tokens=4))
    assert report.left == []
    assert only(tmp_path, "vectors-*").read_bytes()[4096:] == rows[4096:]


def test_a_model_that_has_changed_mends_nothing(index: Path) -> None:
    class Changed(FakeEncoder):
        def encode(self, texts):
            return -super().encode(texts)

    flip_byte(only(index, "vectors-*"), -1)
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    with pytest.raises(EncoderError, match="canary"):
        repair(index, encode_damaged=True, encoder=Changed())
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before


LOST = {
    "UPDATE documents SET text = 'another' WHERE id = 'd3'": "document 'd3' are not those that were indexed",
    "DELETE FROM documents WHERE id = 'd3'": "passages of documents that do not exist",
    "DELETE FROM blocks": "slots without a checksum",
    "DELETE FROM canaries": "canary",
    "DELETE FROM meta WHERE key = 'dim'": "'dim' is missing",
    "DELETE FROM sources": "source has no name",
    "UPDATE documents SET metadata = '{' WHERE id = 'd3'": "JSON",
    "CREATE TABLE more (x)": "table 'more'",
    "DROP TABLE blocks": "no table 'blocks'",
}


@pytest.mark.parametrize("statement", LOST)
def test_what_cannot_be_mended_is_named(statement: str, index: Path) -> None:
    sql(index, statement)
    report = repair(index, encode_damaged=True)
    assert any(LOST[statement] in line for line in report.left), report
    assert all("index repair" not in line and "\n" not in line for line in report.left)


def test_a_database_in_pieces_is_named(index: Path) -> None:
    path = index / "index.db"
    path.write_bytes(path.read_bytes()[:8192].ljust(path.stat().st_size, b"\xff"))
    report = repair(index)
    assert report.mended == []
    assert report.left


def test_there_must_be_an_index_and_no_other_writer(index: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError):
        repair(tmp_path / "nowhere")
    with writer_lock(index), pytest.raises(IndexLockedError):
        repair(index)
    assert Index(index).repair().left == []
    assert fake_vector("x").shape == (DIM,)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("PRAGMA user_version = 2", "has format 2"),
        ("PRAGMA application_id = 7", "another application"),
    ],
)
def test_a_newer_format_and_a_database_of_others_are_left_alone(statement: str, reason: str, index: Path) -> None:
    sql(index, statement)
    sql(index, "DELETE FROM metadata WHERE document = 3")
    (index / "writer.lock").unlink()
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    for mend in (repair, compact_index):
        with pytest.raises(IndexFormatError, match=reason):
            mend(index)
        assert {path.name: path.read_bytes() for path in index.iterdir()} == before


def test_the_encoder_of_a_repair_is_closed(index: Path) -> None:
    encoder = FakeEncoder()
    flip_byte(only(index, "vectors-*"), -1)
    assert repair(index, encode_damaged=True, encoder=encoder).left == []
    assert encoder.is_closed
