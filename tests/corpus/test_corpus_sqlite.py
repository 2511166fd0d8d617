"""Queries on SQLite files are streamed and can change nothing."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from corpora import read

from indexer.config import ReadOptions
from indexer.corpus import check_sources, read_corpus
from indexer.errors import CorpusError

PLAIN = ReadOptions()


@pytest.fixture
def database(inside: Path) -> Path:
    with closing(sqlite3.connect("docs.db")) as connection:
        connection.execute("CREATE TABLE docs (id INTEGER PRIMARY KEY, body, year, score)")
        rows = [(1, "a?sql=%41", 2020, 0.5), (2, None, None, None), (3, "é", "2021", 1)]
        connection.executemany("INSERT INTO docs VALUES (?, ?, ?, ?)", rows)
        connection.commit()
    return inside / "docs.db"


def test_sqlite_rows_come_with_their_types(database: Path) -> None:
    source = (
        "sqlite:docs.db?sql=SELECT id, body AS text, year, score FROM docs WHERE body IS NOT '%41?sql=' ORDER BY id"
    )
    check_sources([source])
    documents = read(source)
    assert [(d.id, d.text, dict(d.metadata)) for d in documents] == [
        ("1", "a?sql=%41", {"year": 2020, "score": 0.5}),
        ("3", "é", {"year": "2021", "score": 1}),
    ]
    assert [repr(d.metadata["score"]) for d in documents] == ["0.5", "1"]
    assert [(d.place.source, d.place.line, d.place.fraction) for d in documents] == [
        ("sqlite:docs.db", 1, None),
        ("sqlite:docs.db", 3, None),
    ]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("sqlite:missing.db?sql=SELECT 1", "no such file"),
        ("sqlite:docs.db", "give a file and a statement"),
        ("sqlite:docs.db?sql=", "give a file and a statement"),
        ("sqlite:?sql=SELECT 1", "give a file and a statement"),
        ("sqlite:docs.db?sql=SELEKT 1", "the statement cannot be run: .*syntax error"),
        ("sqlite:docs.db?sql=SELECT nope FROM docs", "no such column: nope"),
        ("sqlite:docs.db?sql=SELECT 1; SELECT 2", "one statement at a time"),
        ("sqlite:text.db?sql=SELECT 1 FROM docs", "the statement cannot be run"),
    ],
)
def test_a_query_that_cannot_run_is_refused_at_once(source: str, reason: str, database: Path) -> None:
    database.with_name("text.db").write_text("no database" * 100)
    with pytest.raises(CorpusError, match=reason):
        check_sources([source])
    with pytest.raises(CorpusError, match=reason):
        read_corpus([source], PLAIN)


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM docs", "DROP TABLE docs", "ATTACH 'new.db' AS new", "CREATE TABLE x (y)", "VACUUM INTO 'new.db'"],
)
def test_a_statement_that_writes_changes_nothing(statement: str, database: Path) -> None:
    before = database.read_bytes()
    with pytest.raises(CorpusError):
        read(f"sqlite:docs.db?sql={statement}")
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == ["docs.db"]


def test_bad_values_of_a_query_are_rejected_one_by_one(database: Path) -> None:
    statement = """SELECT 1 AS id, 'a' AS text, x'00' AS v UNION ALL SELECT 2, 'b', CAST(x'ff' AS TEXT)
        UNION ALL SELECT 3, 'c', 9e999 UNION ALL SELECT 4, 'd', 1"""
    rejects: list[CorpusError] = []
    documents = list(read_corpus([f"sqlite:docs.db?sql={statement}"], PLAIN, on_reject=rejects.append))
    assert [document.id for document in documents] == ["4"]
    assert [str(error) for error in rejects] == [
        "sqlite:docs.db:1: field 'v' holds a value of type bytes, which has no JSON form",
        "sqlite:docs.db:2: field 'v' is not valid UTF-8, at byte 1",
        "sqlite:docs.db:3: field 'v' holds inf; a number must be finite (null where there is none)",
    ]


def test_two_columns_of_one_name_in_a_query_are_refused(database: Path) -> None:
    with pytest.raises(CorpusError, match="two columns named 'id'; rename one with AS"):
        read("sqlite:docs.db?sql=SELECT a.id, b.id FROM docs a JOIN docs b")


def test_a_query_that_fails_on_the_way_says_where(database: Path) -> None:
    statement = "SELECT id, json_extract(iif(id < 3, '[7]', '{'), '$') AS text FROM docs"
    # Python 3.11 steps to the next row before it gives one.
    with pytest.raises(CorpusError, match=r"docs.db:[23]: the statement fails at this record or the next: malformed"):
        read(f"sqlite:docs.db?sql={statement}")
