"""Metadata: the JSON types of the source come back, and the derived columns never change an answer."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import Oracle, build, records, searching, sql

from indexer.delete import delete_documents
from indexer.documents import Document, Place
from indexer.errors import FilterError
from indexer.filters import compile_filter, parse_filter
from indexer.maintenance.verify import verify_index
from indexer.storage.metadata import selective_columns
from indexer.storage.snapshot import SnapshotReader

VALUES: dict[str, Any] = {
    "one": 1,
    "one_float": 1.0,
    "true": True,
    "one_string": "1",
    "zero": 0,
    "minus_zero": -0.0,
    "false": False,
    "null": None,
    "empty": "",
    "big": 2**63,
    "bigger": 10**400,
    "small": -(2**63) - 1,
    "tenth": 0.1,
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "date": "2021",
    "list": [1, 1.0, "1", True, None, [], {}],
    "nested": {"b": {"c": [1.5, {"d": None}]}, "a": 1},
    "unicode": "naïve 日本 🚀 \u202e\u2028 e\u0301",
    "quoted": 'a"b\\c\n\t',
}
ODD_NAMES = [
    "", " ", "a b", "a.b", "$", "$.x", "[0]", 'quo"te', "back\\slash", "tab\tname", "line\nname", "naïve", "日本", "🚀",
    "select", "document", "rowid", "Rowid", "_rowid_", "text2", "id2", "x;--", "'", "year\n",
]  # fmt: skip


def exactly(value: object) -> str:
    """Return a form in which 1, 1.0, True and "1" differ, and so do two orders of keys."""
    return json.dumps(value, ensure_ascii=True)


def columns(out: Path) -> list[str]:
    return [row[1] for row in sql(out, "PRAGMA table_info(metadata)")][1:]


def sql_indexes(out: Path) -> list[tuple]:
    return sql(out, "SELECT name FROM sqlite_master WHERE name LIKE 'metadata\\_%' ESCAPE '\\'")


def catalogue(out: Path) -> dict[tuple[str, str], int]:
    return {(name, kind): n for name, kind, n in sql(out, "SELECT name, type, n FROM fields")}


def test_every_json_value_comes_back_with_its_type_and_the_order_of_its_keys(tmp_path: Path) -> None:
    source = [{"id": "all", "text": "t", **VALUES}]
    source += [{"id": name, "text": f"text of {name}", "field": value} for name, value in VALUES.items()]
    build(tmp_path, source)
    with searching(tmp_path) as searcher:
        hits = {hit.id: hit for hit in searcher.search("t", 100)}
    assert exactly(hits["all"].metadata) == exactly(VALUES)
    for name, value in VALUES.items():
        assert exactly(hits[name].metadata) == exactly({"field": value}), name


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3), inner),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(metadata=st.dictionaries(st.sampled_from(["a", "A", "b", *ODD_NAMES]), json_values, max_size=5))
def test_content_hash_sees_every_change_but_that_of_the_key_order(metadata: dict[str, Any]) -> None:
    document = Document("x", "text", metadata, Place("s", 1))
    stored = json.loads(document.metadata_json())
    assert exactly(stored) == exactly(metadata)
    backwards = dict(reversed(metadata.items()))
    assert Document("y", "text", backwards, Place("t", 2)).content_hash() == document.content_hash()
    assert Document("x", "text ", metadata, Place("s", 1)).content_hash() != document.content_hash()
    assert Document("x", "text", {**metadata, "new": 1}, Place("s", 1)).content_hash() != document.content_hash()


def test_a_value_that_changes_its_type_alone_is_a_change(tmp_path: Path) -> None:
    values: list[Any] = [1, 1.0, True, "1", None, [1], {"a": 1}]
    build(tmp_path, [{"id": "x", "text": "t", "v": 0}])
    for value in values:
        assert build(tmp_path, [{"id": "x", "text": "t", "v": value}]).updated == 1
        with searching(tmp_path) as searcher:
            assert exactly(searcher.search("t")[0].metadata) == exactly({"v": value})
    assert verify_index(tmp_path, deep=True) == []


def test_derived_columns_have_no_type_of_their_own(tmp_path: Path) -> None:
    source = [{"id": str(i), "text": f"text {i}", "v": value} for i, value in enumerate(["2021", 2021, 2021.0, True])]
    build(tmp_path, source)
    assert sql(tmp_path, "SELECT typeof(v), v FROM metadata ORDER BY document") == [
        ("text", "2021"),
        ("integer", 2021),
        ("real", 2021.0),
        ("integer", 1),
    ]
    assert [row[2] for row in sql(tmp_path, "PRAGMA table_info(metadata)")] == ["INTEGER", ""]


def test_there_are_at_most_64_derived_columns_and_fields_beyond_are_filtered_all_the_same(tmp_path: Path) -> None:
    source = [{"id": str(i), "text": f"text {i}", **{f"f{j}": i * j for j in range(100)}} for i in range(10)]
    build(tmp_path, source)
    assert columns(tmp_path) == [f"f{j}" for j in range(64)]
    oracle = Oracle().put(source)
    with searching(tmp_path) as searcher:
        for j in (1, 63, 64, 99):
            where, keep = {f"f{j}": {"$gte": 5 * j}}, lambda record, j=j: record[f"f{j}"] >= 5 * j
            oracle.check_searcher(searcher, ["text 3"], 10, where=where, keep=keep)
    assert verify_index(tmp_path, deep=True) == []


def test_names_that_differ_in_case_alone_stay_apart(tmp_path: Path) -> None:
    source = [
        {"id": "a", "text": "one", "Year": 1, "year": 2, "YEAR": 3},
        {"id": "b", "text": "two", "year": 1},
        {"id": "c", "text": "three", "YEAR": 1},
    ]
    build(tmp_path, source)
    assert columns(tmp_path) == ["Year"]
    with searching(tmp_path) as searcher:
        for name, expected in (("Year", {"a"}), ("year", {"b"}), ("YEAR", {"c"})):
            assert {hit.id for hit in searcher.search("one", where={name: 1})} == expected


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_field_with_an_odd_name_is_kept_counted_and_filtered(name: str, tmp_path: Path) -> None:
    source = [{"id": str(i), "text": f"text {i}", name: i, "n": i} for i in range(4)]
    build(tmp_path, source)
    assert catalogue(tmp_path)[name, "integer"] == 4
    assert verify_index(tmp_path, deep=True) == []
    with searching(tmp_path) as searcher:
        oracle = Oracle().put(source)
        if not name.startswith("$"):  # words with a dollar sign are operators
            where = {name: {"$gte": 2}}
            oracle.check_searcher(searcher, ["text 1"], 10, where=where, keep=lambda r: r[name] >= 2)
    delete_documents(tmp_path, ["0", "1", "2"])
    assert catalogue(tmp_path) == {(name, "integer"): 1, ("n", "integer"): 1}
    assert verify_index(tmp_path, deep=True) == []


def test_the_catalogue_follows_updates_and_deletes(tmp_path: Path) -> None:
    build(tmp_path, records(4))
    expected = {("n", "integer"): 4, ("even", "boolean"): 4, ("tags", "array"): 4}
    assert catalogue(tmp_path) == expected
    one, two = records(2)
    build(tmp_path, [{**one, "n": "now a string"}, {"id": two["id"], "text": "new text", "n": None, "extra": {}}])
    assert catalogue(tmp_path) == {
        ("n", "integer"): 2,
        ("n", "string"): 1,
        ("n", "null"): 1,
        ("even", "boolean"): 3,
        ("tags", "array"): 3,
        ("extra", "object"): 1,
    }
    delete_documents(tmp_path, ["d1"])
    assert "extra" not in {name for name, _ in catalogue(tmp_path)}
    with searching(tmp_path) as searcher, pytest.raises(FilterError, match="extra"):
        searcher.search("x", where={"extra": {"$exists": True}})
    assert verify_index(tmp_path, deep=True) == []


def test_a_field_that_gets_its_column_late_is_filtered_right_in_older_documents(tmp_path: Path) -> None:
    first = [
        {"id": "a", "text": "one", "v": None},
        {"id": "b", "text": "two", "v": [3]},
        {"id": "c", "text": "three", "w": 1},
    ]
    build(tmp_path, first)
    assert columns(tmp_path) == ["w"]
    second = [{"id": "d", "text": "four", "v": 3}, {"id": "e", "text": "five", "v": True}]
    build(tmp_path, second)
    assert columns(tmp_path) == ["w", "v"]
    cases = [
        ({"v": 3}, {"d"}),
        ({"v": None}, {"a"}),
        ({"v": {"$contains": 3}}, {"b"}),
        ({"v": {"$exists": False}}, {"c"}),
        ({"v": {"$ne": 3}}, {"a", "b", "c", "e"}),
        ({"v": True}, {"e"}),
        ({"v": {"$gt": 0}}, {"d"}),
    ]
    with searching(tmp_path) as searcher:
        for where, expected in cases:
            assert {hit.id for hit in searcher.search("one", where=where)} == expected, where


def test_field_types_are_listed_in_alphabetical_order(tmp_path: Path) -> None:
    build(tmp_path, [{"id": str(i), "text": f"t {i}", "b": value, "a": 1} for i, value in enumerate([1, "x", None])])
    reader = SnapshotReader(tmp_path)
    assert list(reader.field_types().items()) == [("a", ["integer"]), ("b", ["integer", "null", "string"])]
    reader.close()


def test_an_indexed_field_is_searched_by_its_index_and_answers_the_same(tmp_path: Path) -> None:
    report = build(tmp_path, records(50), index_fields=("n", "tags", "nowhere"))
    assert [warning.split(":")[0] for warning in report.warnings] == ["--index-field tags", "--index-field nowhere"]
    assert sql_indexes(tmp_path) == [("metadata_n",)]
    plan = sql(tmp_path, "EXPLAIN QUERY PLAN SELECT document FROM metadata AS m WHERE m.n = 7")
    assert "metadata_n" in plan[0][3]
    assert build(tmp_path, records(60), index_fields=("n",)).warnings == []
    with searching(tmp_path) as searcher:
        assert [hit.id for hit in searcher.search("x", where={"n": 55})] == ["d55"]
        assert [hit.id for hit in searcher.search("x", where={"n": 7, "tags": {"$contains": "t1"}})] == ["d7"]
    assert verify_index(tmp_path, deep=True) == []


@pytest.mark.parametrize(
    ("where", "expected", "scans"),
    [
        ({"n": 7}, {7}, False),
        ({"n": {"$in": [7, 8]}}, {7, 8}, False),
        ({"n": {"$gte": 57}}, {57, 58, 59}, False),
        ({"n": {"$gte": 30}}, set(range(30, 60)), True),
        ({"n": {"$ne": 7}}, set(range(60)) - {7}, True),
        ({"$or": [{"n": 7}, {"n": {"$gt": 10}}]}, {7, *range(11, 60)}, True),
        ({"n": {"$lt": 0}}, set(), False),
    ],
)
def test_an_index_serves_filters_that_few_meet_and_a_scan_the_others(
    where: dict[str, Any], expected: set[int], scans: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.storage.snapshot._FEW", 8)
    build(tmp_path, [{"id": str(i), "text": f"t {i}", "n": i} for i in range(60)], index_fields=("n",))
    reader = SnapshotReader(tmp_path)
    statements: list[str] = []
    reader._sql.set_trace_callback(statements.append)
    with reader.transaction():
        found = reader.matching_slots(compile_filter(parse_filter(where), reader.snapshot().fields))
    reader.close()
    assert found.tolist() == sorted(expected)
    assert any("NOT INDEXED" in statement for statement in statements) is scans


def test_fields_with_values_of_few_documents_are_indexed_by_themselves_in_a_large_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def indexed() -> set[str]:
        return {name for (name,) in sql_indexes(tmp_path)}

    def seq() -> int:
        return int(sql(tmp_path, "SELECT value FROM meta WHERE key = 'seq'")[0][0])

    def record(i: int) -> dict[str, Any]:
        few_share = {"user": f"u{i % 50}", "place": f"p{i}", "at": i, "late": i}
        many_share = {"day": i % 5, "kind": "ab"[i % 2], "yes": True}
        others = {"price": i / 7, "page": f"{i} " + "long " * 20, "tags": [i]} | ({"rare": i} if i < 9 else {})
        return {"id": str(i), "text": f"t {i}"} | few_share | many_share | others

    build(tmp_path, [record(i) for i in range(100)])
    assert indexed() == set()
    monkeypatch.setattr("indexer.storage.metadata.INDEXED_DOCUMENTS", range(101, 1_000))
    build(tmp_path, [record(i) for i in range(200)])
    assert indexed() == {"metadata_at", "metadata_late", "metadata_place", "metadata_user"}
    before = seq()
    build(tmp_path, [record(i) for i in range(200)])
    assert seq() == before + 2  # it was marked incomplete, then complete: nothing was left to index
    sql(tmp_path, "DROP INDEX metadata_user")
    build(tmp_path, [record(i) | {"more": i} for i in range(200)])
    made = {"metadata_at", "metadata_late", "metadata_more", "metadata_place"}
    assert indexed() == made, "as many as before: those that are there stay, one more fits"
    assert verify_index(tmp_path, deep=True) == []


def test_whether_a_field_pays_for_an_index_is_asked_without_a_pass_over_the_metadata() -> None:
    n_thousands = 0

    def count() -> int:
        nonlocal n_thousands
        n_thousands += 1
        return 0

    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE metadata (document INTEGER PRIMARY KEY, n)")
        connection.executemany("INSERT INTO metadata VALUES (?, 1)", [(row,) for row in range(9_000)])
        connection.set_progress_handler(count, 1_000)
        assert selective_columns(connection) == []  # there are few documents
    assert n_thousands < 5  # steps of SQLite's machine, of which a pass takes several a row
