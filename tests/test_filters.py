"""Filters against a pure-Python oracle that reads the mapping as a user writes it, and the words of every refusal."""

from __future__ import annotations

import json
import operator
import re
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import FilterError
from indexer.filters import CompiledFilter, Field, compile_filter, parse_filter

ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
MISSING = object()


# The semantics, once more and as plainly as they can be written.


def matches(where: Mapping, metadata: Mapping) -> bool:
    def entry(key, value):
        match key:
            case "$and":
                return all(matches(part, metadata) for part in value)
            case "$or":
                return any(matches(part, metadata) for part in value)
            case "$not":
                return not matches(value, metadata)
        operators = value if isinstance(value, Mapping) else {"$eq": value}
        return operators_match(operators, metadata.get(key, MISSING))

    return all(entry(key, value) for key, value in where.items())


def operators_match(operators: Mapping, held: object) -> bool:
    return all(operator_matches(word, operand, held) for word, operand in operators.items())


def operator_matches(word: str, operand: object, held: object) -> bool:
    match word:
        case "$eq":
            return typed(held) == typed(operand)
        case "$in":
            return any(typed(held) == typed(value) for value in operand)
        case "$ne" | "$nin":
            return not operator_matches({"$ne": "$eq", "$nin": "$in"}[word], operand, held)
        case "$not":
            return not operators_match(operand, held)
        case "$exists":
            return operand == (held is not MISSING)
        case "$contains" if isinstance(held, str):
            return isinstance(operand, str) and operand in held
        case "$contains":
            return isinstance(held, list) and any(typed(member) == typed(operand) for member in held)
        case _:
            (kind, value), (kind_of_bound, bound) = typed(held), typed(operand)
            return kind == kind_of_bound and ORDER[word](value, bound)


def typed(value: object) -> tuple[str, object]:
    match value:
        case None:
            return "null", None
        case bool():
            return "boolean", value
        case int() if not -(2**63) <= value < 2**63:
            return "number", float(value)
        case int() | float():
            return "number", value
        case str():
            return "string", value
        case _:
            return "no scalar", object()  # equals nothing, not even itself


# The tables of an index, made by hand.


def json_type(value: object) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def as_column(value: object) -> object:
    match value:
        case bool() | str() | float():
            return value
        case int():
            return value if -(2**63) <= value < 2**63 else float(value)
        case _:
            return None


def catalogue(documents: list[Mapping], columns: Iterable[str]) -> dict[str, Field]:
    names = {name for metadata in documents for name in metadata}
    return {
        name: Field(
            name,
            frozenset(json_type(metadata[name]) for metadata in documents if name in metadata),
            name if name in columns else None,
        )
        for name in names
    }


def database(documents: list[Mapping], columns: Iterable[str]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    quoted = ["document INTEGER PRIMARY KEY", *(f'"{name}"' for name in columns)]
    connection.execute("CREATE TABLE documents (row_id INTEGER PRIMARY KEY AUTOINCREMENT, metadata TEXT)")
    connection.execute(f"CREATE TABLE metadata ({', '.join(quoted)})")
    for row_id, metadata in enumerate(documents):
        text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
        connection.execute("INSERT INTO documents VALUES (?, ?)", (row_id, text))
        values = [row_id, *(as_column(metadata.get(name)) for name in columns)]
        connection.execute(f"INSERT INTO metadata VALUES ({', '.join('?' * len(values))})", values)
    return connection


def select(connection: sqlite3.Connection, compiled: CompiledFilter) -> set[int]:
    sql = f"SELECT d.row_id FROM documents d JOIN metadata m ON m.document = d.row_id WHERE {compiled.sql}"
    return {row_id for (row_id,) in connection.execute(sql, compiled.parameters)}


def found(where: Mapping | str, documents: list[Mapping], columns: Iterable[str] = ()) -> set[int]:
    compiled = compile_filter(parse_filter(where), catalogue(documents, columns))
    connection = database(documents, columns)
    try:
        return select(connection, compiled)
    finally:
        connection.close()


# SQL equals the oracle.

PLAIN = ["label", "year", "flag", "true", "null"]  # the last two are words of SQL
NAMES = [*PLAIN, "a.b", 'na"me', '"', "back\\slash", '\\"', "a b", "日本 é", "", "a\nb", "[0]", "x'; DROP TABLE d; --"]
NUMBERS = st.sampled_from([
    0, 1, 1.0, -1, 2, -0.0, 1.5, 0.1, 2**53, 2.0**53, 2**53 + 1, 2**63 - 1, 2**63, 2.0**63, -(2**63) - 1, 2**64 + 1,
]) | st.floats(allow_nan=False, allow_infinity=False)  # fmt: skip
STRINGS = st.sampled_from(["", "1", "1.0", "true", "null", "joy", "Joy", "j", "é", "\uffff", "😀", '["joy"]', "%"]) | (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
)
SCALARS = st.none() | st.booleans() | NUMBERS | STRINGS
VALUES = SCALARS | st.lists(SCALARS | st.just(["joy"]), max_size=3) | st.dictionaries(STRINGS, SCALARS, max_size=2)
DOCUMENTS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5), min_size=1, max_size=6)


@st.composite
def conditions(draw, documents):
    """One field with its operators; operands come often from the documents, so that filters match something."""
    name = draw(st.sampled_from(sorted({name for metadata in documents for name in metadata})))
    held = [metadata[name] for metadata in documents if name in metadata]
    members = [member for value in held for member in (value if isinstance(value, list) else [value])]
    near = [value for value in members if not isinstance(value, list | dict)]
    scalars = st.sampled_from(near) | SCALARS if near else SCALARS
    bounds = scalars.filter(lambda value: value is not None and not isinstance(value, bool))
    operators = st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(["$eq", "$ne", "$contains"], scalars),
            **dict.fromkeys(ORDER, bounds),
            **dict.fromkeys(["$in", "$nin"], st.lists(scalars, max_size=4)),
            "$exists": st.booleans(),
        },
    ).filter(bool)
    return {name: draw(scalars | operators | operators.map(lambda inner: {"$not": inner}))}


def filters(documents):
    leaves = conditions(documents)
    return st.recursive(
        leaves | st.just({}),
        lambda parts: (
            st.dictionaries(st.sampled_from(["$and", "$or"]), st.lists(parts, min_size=1, max_size=3), max_size=2)
            | st.builds(lambda part: {"$not": part}, parts)
            | st.builds(lambda one, other: {**one, **other}, parts, parts)
        ),
        max_leaves=5,
    )


@st.composite
def cases(draw):
    documents = draw(DOCUMENTS.filter(any))
    return documents, draw(st.sets(st.sampled_from(PLAIN)).map(sorted)), draw(filters(documents))


@settings(max_examples=300, deadline=None, database=None)
@given(cases())
def test_sql_finds_what_the_oracle_finds_and_not_finds_the_rest(case):
    documents, columns, where = case
    expected = {row_id for row_id, metadata in enumerate(documents) if matches(where, metadata)}
    assert found(where, documents, columns) == expected
    assert found({"$not": where}, documents, columns) == set(range(len(documents))) - expected


@settings(max_examples=100, deadline=None, database=None)
@given(DOCUMENTS.filter(any), st.sets(st.sampled_from(PLAIN)).map(sorted), st.data())
def test_ne_nin_and_not_are_exact_complements(documents, columns, data):
    name = data.draw(st.sampled_from(sorted({name for metadata in documents for name in metadata})))
    value = data.draw(SCALARS)
    everything = set(range(len(documents)))
    for operators, complement in (
        ({"$eq": value}, {"$ne": value}),
        ({"$in": [value, 1]}, {"$nin": [value, 1]}),
        ({"$contains": value}, {"$not": {"$contains": value}}),
        ({"$exists": True}, {"$exists": False}),
    ):
        hits = found({name: operators}, documents, columns)
        assert found({name: complement}, documents, columns) == everything - hits


def test_of_a_list_of_filters_all_must_be_met() -> None:
    several = parse_filter(["year=2020", '{"label": {"$ne": "joy"}}', {"x": 1}])
    assert several == parse_filter({"$and": [{"year": 2020}, {"label": {"$ne": "joy"}}, {"x": 1}]})
    assert parse_filter(["x=1"]) == parse_filter(("x=1",)) == parse_filter("x=1")


MIXED = [{"x": value} for value in (1, 1.0, True, "1", None, [1], {"1": 1}, "[1]", 0, False, -0.0, "")] + [{}]


@pytest.mark.parametrize("columns", [(), ("x",)])
@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        ({"$eq": 1}, {0, 1}),
        ({"$eq": True}, {2}),
        ({"$eq": "1"}, {3}),
        ({"$eq": "[1]"}, {7}),
        ({"$eq": None}, {4}),
        ({"$eq": 0}, {8, 10}),
        ({"$gte": ""}, {3, 7, 11}),
        ({"$lt": "zzz"}, {3, 7, 11}),
        ({"$gt": -5}, {0, 1, 8, 10}),
        ({"$lte": 1e308}, {0, 1, 8, 10}),
        ({"$in": [True, "1", None]}, {2, 3, 4}),
        ({"$in": []}, set()),
        ({"$nin": []}, set(range(13))),
        ({"$contains": 1}, {5}),
        ({"$contains": "1"}, {3, 7}),
        ({"$contains": ""}, {3, 7, 11}),
        ({"$contains": True}, set()),
        ({"$exists": True}, set(range(12))),
        ({"$gte": 0, "$lt": 1}, {8, 10}),
    ],
)
def test_types_never_cross(operators, expected, columns):
    assert found({"x": operators}, MIXED, columns) == expected


@pytest.mark.parametrize("columns", [(), ("x",)])
@pytest.mark.parametrize("other", [None, [1], {"a": 1}, False, 2**70, ""])
def test_a_field_exists_whatever_it_holds(other, columns):
    assert found({"x": {"$exists": True}}, [{"x": 1}, {"x": other}, {"y": 1}], columns) == {0, 1}


@pytest.mark.parametrize(
    ("operand", "expected"),
    [(1, {0, 1}), (True, {2}), ("1", {3}), (None, {4}), ("[1]", set()), (0, set()), ("", set())],
)
def test_a_list_contains_members_of_the_operands_type_only(operand, expected):
    lists: list = [[0.5, 1], [1.0], [True], ["x", "1"], [None], [[1]], []]
    assert found({"x": {"$contains": operand}}, [{"x": value} for value in lists]) == expected


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_filtered(name):
    documents = [{name: "joy", "z": 1}, {name: ["joy"], "z": 1}, {"z": 1}]
    assert found({name: "joy"}, documents) == {0}
    assert found({name: {"$contains": "joy"}}, documents) == {0, 1}
    assert found({name: {"$exists": False}}, documents) == {2}


def test_integers_beyond_64_bits_compare_as_floats_and_others_exactly():
    documents = [{"n": value} for value in (2**53, 2**53 + 1, 2**63 - 1, 2**63, 10**30)]
    for columns in ((), ("n",)):
        assert found({"n": 2**53 + 1}, documents, columns) == {1}
        assert found({"n": {"$gt": 2**63 - 1}}, documents, columns) == {3, 4}
        assert found({"n": 2**63}, documents, columns) == {3}
        assert found({"n": {"$in": [10**30]}}, documents, columns) == {4}


def test_a_string_with_nul_is_compared_whole_in_a_column():
    assert found({"label": "a"}, [{"label": "a\0b"}, {"label": "a"}], ["label"]) == {1}
    assert found({"label": {"$contains": "\0b"}}, [{"label": "a\0b"}, {"label": "a"}], ["label"]) == {0}


# Text of the command line.


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("label=joy", {"label": "joy"}),
        ("year=2020", {"year": 2020}),
        ('x="2020"', {"x": "2020"}),
        ("flag=true", {"flag": True}),
        ("flag=null", {"flag": None}),
        ("label=", {"label": ""}),
        ("label=a=b", {"label": "a=b"}),
        ("label=NaN", {"label": "NaN"}),
        ("label=[open", {"label": "[open"}),
        ("a b=c d", {"a b": "c d"}),
        (' {"year": {"$gte": 2020}}', {"year": {"$gte": 2020}}),
        ("{}", {}),
    ],
)
def test_text_means_the_same_as_the_mapping(text, mapping):
    assert parse_filter(text) == parse_filter(mapping)


@pytest.mark.parametrize(
    ("value", "like"),
    [
        (np.int64(1), 1),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.datetime64("2024-02-03"), "2024-02-03"),
        (date(2024, 2, 3), "2024-02-03"),
        (Decimal("1.20"), "1.20"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    ],
)
def test_values_that_records_may_have_stand_in_filters_for_the_same(value: object, like: object) -> None:
    for where in ({"x": {"$in": [value]}}, {"x": value}, {"x": {"$contains": value}}):
        alike = json.loads(json.dumps(where, default=lambda _: like))
        assert repr(parse_filter(where)) == repr(parse_filter(alike))
    if like is True:
        assert parse_filter({"x": {"$exists": value}}) == parse_filter({"x": {"$exists": True}})
    else:
        assert repr(parse_filter({"x": {"$gte": value}})) == repr(parse_filter({"x": {"$gte": like}}))


def test_a_field_that_begins_with_a_dollar_sign_is_reached_by_field_equals_value():
    documents = [{"$or": 1, "$.a": 2}, {"$.a": 1, "$or": 2, "a": 2}]
    assert found("$or=1", documents) == {0}
    assert found("$.a=2", documents) == {0}


def test_trees_of_different_types_differ_as_keys_of_a_cache():
    assert parse_filter({"x": 1}) != parse_filter({"x": True})
    assert hash(parse_filter({"x": 1})) == hash(parse_filter({"x": 1.0}))
    assert len({parse_filter({"x": {"$in": [0]}}), parse_filter({"x": {"$in": [False]}})}) == 2


# Refusals.


def nested(depth: int, word: str = "$not") -> dict:
    where: dict = {"x": 1}
    for _ in range(depth - 1):
        where = {word: where if word == "$not" else [where]}
    return where


def nested_in_field(depth: int) -> dict:
    operators: dict = {"$eq": 1}
    for _ in range(depth - 1):
        operators = {"$not": operators}
    return {"x": operators}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("joy", 'the filter \'joy\' is neither a JSON object such as {"label": "joy"} nor field=value'),
        ("{label: joy}", "the filter is not JSON: Expecting property name enclosed in double quotes at character 1"),
        ('{"x": 1, "x": 2}', "the filter has the key 'x' twice in one object"),
        ('{"x": ' + "[" * 100_000, "nested deeper than 16 levels"),
        ('{"x": ' + "1" * 5000 + "}", "a number with too many digits"),
        ('{"x": NaN}', "field 'x': nan is not a finite 64-bit number"),
        ("x=1e999", "field 'x': inf is not a finite 64-bit number"),
        ("x=[1]", "field 'x': a list cannot be compared; use $in"),
        ('x={"$gt": 1}', "field 'x': an object cannot be compared"),
        ("x=\udc80", r"field 'x': '\udc80' is not valid Unicode (a lone surrogate at character 0)"),
        ("\udc80=1", r"a field name: '\udc80' is not valid Unicode"),
        ([1], 'a filter is an object such as {"label": "joy"}, not 1'),
        ([["x=1"]], 'a filter is an object such as {"label": "joy"}, not a list'),
        ([], "a list of filters holds at least one"),
        ({1: 2}, "a filter has the key 1; keys are strings"),
        ({"\ud800": 1}, "is not valid Unicode"),
        ({"$gt": 1}, "'$gt' cannot stand here; write field names, $and, $or or $not"),
        ({"$nor": [{}]}, "'$nor' cannot stand here"),
        ({"$and": []}, "$and takes a list of at least one filter, not an empty list"),
        ({"$or": {"x": 1}}, "$or takes a list of at least one filter, not an object"),
        ({"$or": [1]}, 'each part of $or is an object such as {"label": "joy"}, not 1'),
        ({"$not": [{"x": 1}]}, 'what $not takes is an object such as {"label": "joy"}, not a list'),
        ({"x": {}}, "field 'x' needs an object of operators, not an empty object"),
        ({"x": {1: 1}}, "field 'x' has the key 1; keys are strings"),
        ({"x": {"$not": 1}}, "field 'x' needs an object of operators, not 1"),
        (
            {"x": {"$regex": "a"}},
            "field 'x': '$regex' is not an operator; use one of $eq, $ne, $gt, $gte, $lt, $lte, $in",
        ),
        ({"x": {"y": 1}}, "field 'x': 'y' is not an operator"),
        ({"x": {"$or": []}}, "field 'x': $or joins whole filters and stands outside of fields"),
        ({"x": [1]}, "field 'x': a list cannot be compared; use $in for one of several values, $contains for a member"),
        ({"x": {"$eq": {"y": 1}}}, "field 'x': $eq: an object cannot be compared"),
        ({"x": {"$ne": {1, 2}}}, "field 'x': $ne: a value of type set cannot be compared"),
        ({"x": {"$contains": [1]}}, "field 'x': $contains: a list cannot be compared"),
        ({"x": {"$gt": None}}, "field 'x': $gt takes a number or a string, not null"),
        ({"x": {"$lte": True}}, "field 'x': $lte takes a number or a string, not true"),
        ({"x": {"$lt": float("-inf")}}, "field 'x': $lt: -inf is not a finite 64-bit number"),
        ({"x": {"$gt": 10**400}}, "field 'x': $gt: a number beyond 20 digits is not a finite 64-bit number"),
        ({"x": {"$in": "joy"}}, "field 'x': $in takes a list of values, not 'joy'"),
        ({"x": {"$nin": [[1]]}}, "field 'x': $nin: a list cannot be compared"),
        ({"x": {"$in": [0] * 10_001}}, "field 'x': $in: the lists of a filter hold 10001 values; at most 10000"),
        ({"x": {"$exists": 1}}, "field 'x': $exists takes true or false, not 1"),
        ({"x" * 1000: [1]}, f"field '{'x' * 60}'…: a list"),
        (nested(17), "the filter is nested deeper than 16 levels"),
        (nested(17, "$and"), "the filter is nested deeper than 16 levels"),
        (nested(17, "$or"), "the filter is nested deeper than 16 levels"),
        (nested_in_field(17), "the filter is nested deeper than 16 levels"),
        ({"$or": [{}] * 257}, "the filter has more than 256 conditions"),
        ({"x": {"$gt": 1, "$lt": 2}, "$and": [{"x": 1}] * 255}, "the filter has more than 256 conditions"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode() if not isinstance(value, str) else "",
)
def test_a_refusal_names_the_place_and_what_is_allowed_on_one_line(where, message):
    with pytest.raises(FilterError, match=re.escape(message)) as caught:
        parse_filter(where)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_filters_at_the_limits_run():
    documents = [{"x": 1, "y": "a"}, {"x": 2}]
    for where in (nested(16), nested_in_field(16)):
        assert found(where, documents) == {1}
    for word in ("$and", "$or"):
        assert found(nested(16, word), documents) == {0}
    assert found({"$or": [{"x": {"$in": [2, "b", None, True]}}] * 256}, documents) == {1}
    assert found({"x": {"$in": [*range(2, 6000), *map(str, range(4002))]}}, documents, ["x"]) == {1}
    deep: dict = {"$or": [{"y": {"$in": [1, "a", None, True]}}] * 16}
    for level in range(14):
        word, value = ("$or", 7.5) if level % 2 else ("$and", 1.0)
        deep = {word: [deep, *[{"x": value}] * 15]}
    assert found(deep, documents) == {0}


def test_an_unknown_field_is_refused_with_the_fields_there_are():
    fields = {name: Field(name, frozenset({"string"})) for name in ("b", "a", "new\nline")}
    with pytest.raises(
        FilterError, match=re.escape(r"no document has the field 'c'; the fields are 'a', 'b', 'new\nline'")
    ):
        compile_filter(parse_filter({"$or": [{"a": "1"}, {"c": {"$exists": False}}]}), fields)
    with pytest.raises(FilterError, match=r"'c'; the documents have no metadata$"):
        compile_filter(parse_filter("c=1"), {})
    many = {f"f{i:02}": Field(f"f{i:02}", frozenset({"string"})) for i in range(25)}
    with pytest.raises(FilterError, match=r"'f00', 'f01', .*'f19' and 5 more$"):
        compile_filter(parse_filter("c=1"), many)


# SQL that is safe and fast.


HOSTILE = pytest.mark.parametrize(
    "name", ['x") OR 1=1 --', "x') OR 1=1 --", "x'; DROP TABLE documents; --", 'm."x"', "?1"]
)


@HOSTILE
def test_names_and_values_are_bound_and_never_written_into_sql(name):
    documents = [{name: name, "x": 1}, {name: "no", "x": 1}, {"x": 1}]
    compiled = compile_filter(parse_filter({name: name}), catalogue(documents, ()))
    assert name not in compiled.sql
    assert found({name: name}, documents) == {0}
    assert found({name: {"$exists": False}}, documents) == {2}


@HOSTILE
def test_a_column_name_is_quoted(name):
    connection = sqlite3.connect(":memory:")
    quoted = name.replace('"', '""')
    connection.execute(f'CREATE TABLE m ("{quoted}")')
    connection.execute("INSERT INTO m VALUES ('yes'), ('no')")
    compiled = compile_filter(parse_filter("x=yes"), {"x": Field("x", frozenset({"string"}), name)})
    rows = connection.execute(f"SELECT * FROM m WHERE {compiled.sql}", compiled.parameters).fetchall()
    connection.close()
    assert rows == [("yes",)]


@pytest.mark.parametrize(
    "types", [{"integer"}, {"integer", "number", "null", "array"}, {"integer", "string", "boolean"}]
)
@pytest.mark.parametrize("where", [{"year": {"$gte": 2020, "$lt": 2022}}, {"year": 2020}, {"year": {"$in": [1, 2]}}])
def test_an_index_on_a_column_serves_ranges_and_equality(where, types):
    connection = database([{"year": 2020, "label": "joy"}], ["year", "label"])
    connection.execute("CREATE INDEX by_year ON metadata (year)")
    compiled = compile_filter(parse_filter(where), {"year": Field("year", frozenset(types), "year")})
    sql = f"SELECT d.row_id FROM documents d JOIN metadata m ON m.document = d.row_id WHERE {compiled.sql}"
    plan = " ".join(row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", compiled.parameters))
    connection.close()
    assert re.search(r"SEARCH m USING (COVERING )?INDEX by_year", plan), plan


def test_the_common_case_reads_no_json():
    fields = {
        "year": Field("year", frozenset({"integer"}), "year"),
        "label": Field("label", frozenset({"string"}), "label"),
    }
    where = {"year": {"$gte": 2020}, "label": {"$in": ["joy", "love"]}, "$not": {"label": {"$contains": "o"}}}
    compiled = compile_filter(parse_filter(where), fields)
    assert "json" not in compiled.sql
    assert compile_filter(parse_filter({"year": {"$gte": 2020}}), fields) == CompiledFilter('m."year" >= ?', (2020,))
