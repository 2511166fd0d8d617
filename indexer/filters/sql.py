"""From the tree to SQL over `documents d` joined with `metadata m`.

A derived column is compared as it is, so that an index on it can serve the comparison. Columns hold true as 1, and
SQLite orders every text above every number, so `json_type` guards a comparison, but only where the types that the
documents have for the field could be confused. A leaf may be NULL for a missing field; AND and OR carry NULL the way
they carry false, up to the next NOT, which takes it for false and thereby ends it. It is not written IS NOT TRUE: where
a field is called true, that asks for its column.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from indexer.errors import FilterError
from indexer.filters.nodes import And, Compare, Comparison, Contains, Exists, Filter, Not, OneOf, Or, Scalar, ScalarKind
from indexer.filters.operands import show

N_FIELDS_SHOWN = 20
_INT64 = range(-(2**63), 2**63)


class FieldType(StrEnum):
    """JSON types as the `fields` table records them; NUMBER is one that was written with a fraction or exponent."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    NULL = "null"
    ARRAY = "array"
    OBJECT = "object"


_TYPES: Mapping[ScalarKind, frozenset[str]] = {
    ScalarKind.STRING: frozenset({FieldType.STRING}),
    ScalarKind.NUMBER: frozenset({FieldType.INTEGER, FieldType.NUMBER}),
    ScalarKind.BOOLEAN: frozenset({FieldType.BOOLEAN}),
    ScalarKind.NULL: frozenset({FieldType.NULL}),
}
_NESTED = frozenset({FieldType.ARRAY, FieldType.OBJECT})
# What SQL could take for an equal value of the kind: 1 for true, the text of a list for a string.
_LOOK_ALIKES: Mapping[ScalarKind, frozenset[str]] = {
    ScalarKind.STRING: _NESTED,
    ScalarKind.NUMBER: _TYPES[ScalarKind.BOOLEAN],
    ScalarKind.BOOLEAN: _TYPES[ScalarKind.NUMBER],
    ScalarKind.NULL: frozenset(),
}
_JSON_TYPES: Mapping[ScalarKind, str] = {ScalarKind.STRING: "('text')", ScalarKind.NUMBER: "('integer', 'real')"}


@dataclass(frozen=True, slots=True)
class Field:
    """What the index knows of a field, from the same snapshot as the documents that are filtered.

    `types` are the JSON types that documents have for it; `column` is its column in `metadata`, None where it has none.
    """

    name: str
    types: frozenset[str]
    column: str | None = None


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """An SQL expression over `d` and `m` for WHERE: true for documents that match, 0 or NULL for all others."""

    sql: str
    parameters: tuple[str | int | float, ...] = ()


_FALSE = CompiledFilter("0")


def compile_filter(filter: Filter, fields: Mapping[str, Field]) -> CompiledFilter:
    """Compile a filter to SQL; values and field names are bound as parameters, never written into it.

    A string with NUL in a field without a column is compared up to the NUL, because SQLite's JSON functions end there.

    Args:
        filter: the tree of `parse_filter`.
        fields: every field that a document has, by name.

    Returns:
        The expression and its parameters.

    Raises:
        FilterError: no document has a field that the filter names.
    """
    match filter:
        case And(parts):
            return _join(" AND ", [compile_filter(part, fields) for part in parts]) if parts else CompiledFilter("1")
        case Or(parts):
            return _join(" OR ", [compile_filter(part, fields) for part in parts])
        case Not(part):
            inner = compile_filter(part, fields)
            return CompiledFilter(f"NOT coalesce(({inner.sql}), 0)", inner.parameters)
        case Compare(name, comparison, operand):
            return _compare(_field(name, fields), comparison, operand)
        case OneOf(name, operands):
            return _one_of(_field(name, fields), operands)
        case Contains(name, operand):
            return _contains(_field(name, fields), operand)
        case Exists(name):
            return _exists(_field(name, fields))
        case _:
            assert_never(filter)


def _field(name: str, fields: Mapping[str, Field]) -> Field:
    if name in fields:
        return fields[name]
    shown = ", ".join(show(known) for known in sorted(fields)[:N_FIELDS_SHOWN])
    more = f" and {len(fields) - N_FIELDS_SHOWN} more" if len(fields) > N_FIELDS_SHOWN else ""
    there = f"the fields are {shown}{more}" if fields else "the documents have no metadata"
    msg = f"no document has the field {show(name)}; {there}"
    raise FilterError(msg)


def _compare(field: Field, comparison: Comparison, operand: Scalar) -> CompiledFilter:
    if not field.types & _TYPES[operand.kind]:
        return _FALSE
    if operand.kind in {ScalarKind.NULL, ScalarKind.BOOLEAN}:
        return _is_constant(field, operand)
    bound = _bind(field.column, [operand])
    confused = _LOOK_ALIKES[operand.kind] if comparison is Comparison.EQ else frozenset(FieldType)
    return _guarded(field, operand.kind, confused, f"{comparison} {bound.sql}", bound.parameters)


def _one_of(field: Field, operands: tuple[Scalar, ...]) -> CompiledFilter:
    tests = []
    for kind in (ScalarKind.STRING, ScalarKind.NUMBER):
        same = [operand for operand in operands if operand.kind is kind]
        if same and field.types & _TYPES[kind]:
            bound = _bind(field.column, same)
            tests.append(_guarded(field, kind, _LOOK_ALIKES[kind], f"IN ({bound.sql})", bound.parameters))
    constants = [operand for operand in operands if operand.kind in {ScalarKind.NULL, ScalarKind.BOOLEAN}]
    tests += [_compare(field, Comparison.EQ, operand) for operand in constants]
    return _join(" OR ", tests) if tests else _FALSE


def _is_constant(field: Field, operand: Scalar) -> CompiledFilter:
    """Return the test for true, false or null."""
    if field.column and operand.kind is ScalarKind.BOOLEAN and not field.types & _LOOK_ALIKES[ScalarKind.BOOLEAN]:
        return CompiledFilter(f"{_column(field.column)} = {int(operand.value is True)}")
    kind = _json_type(field)
    return CompiledFilter(f"{kind.sql} = ?", (*kind.parameters, json.dumps(operand.value)))


def _contains(field: Field, operand: Scalar) -> CompiledFilter:
    tests = []
    if operand.kind is ScalarKind.STRING and FieldType.STRING in field.types:
        value = _value(field)
        found = CompiledFilter(f"instr({value.sql}, ?) > 0", (*value.parameters, str(operand.value)))
        tests.append(_guard(field, ScalarKind.STRING, frozenset(FieldType), found))
    if FieldType.ARRAY in field.types:
        kind, value, member = _json_type(field), _json_value(field), _member(operand)
        # CASE keeps json_each from a value that is no JSON text, whatever order the planner picks.
        members = f"json_each(CASE {kind.sql} WHEN 'array' THEN {value.sql} END)"
        sql = f"EXISTS (SELECT 1 FROM {members} AS member WHERE {member.sql})"
        tests.append(CompiledFilter(sql, kind.parameters + value.parameters + member.parameters))
    return _join(" OR ", tests) if tests else _FALSE


def _member(operand: Scalar) -> CompiledFilter:
    if operand.kind in {ScalarKind.NULL, ScalarKind.BOOLEAN}:
        return CompiledFilter("member.type = ?", (json.dumps(operand.value),))
    bound = _bind(None, [operand])
    return CompiledFilter(
        f"member.type IN {_JSON_TYPES[operand.kind]} AND member.value = {bound.sql}", bound.parameters
    )


def _exists(field: Field) -> CompiledFilter:
    if field.column and not field.types & (_NESTED | _TYPES[ScalarKind.NULL]):
        return CompiledFilter(f"{_column(field.column)} IS NOT NULL")
    kind = _json_type(field)
    return CompiledFilter(f"{kind.sql} IS NOT NULL", kind.parameters)


def _guarded(
    field: Field, kind: ScalarKind, confused: frozenset[str], test: str, parameters: tuple[str | int | float, ...]
) -> CompiledFilter:
    value = _value(field)
    return _guard(field, kind, confused, CompiledFilter(f"{value.sql} {test}", value.parameters + parameters))


def _guard(field: Field, kind: ScalarKind, confused: frozenset[str], test: CompiledFilter) -> CompiledFilter:
    """Return the test, and-ed with one of the JSON type if the field has other types that it could be confused by."""
    unseen = _NESTED if field.column else frozenset()  # columns hold NULL for these, as every value does for null
    if not (field.types & confused) - _TYPES[kind] - _TYPES[ScalarKind.NULL] - unseen:
        return test
    found = _json_type(field)
    sql = f"{test.sql} AND {found.sql} IN {_JSON_TYPES[kind]}"
    return CompiledFilter(sql, test.parameters + found.parameters)


def _bind(column: str | None, operands: list[Scalar]) -> CompiledFilter:
    """Return placeholders, comma-separated, with the values of strings or numbers."""
    bound = [_bind_one(column, operand.value) for operand in operands]
    return CompiledFilter(", ".join(sql for sql, _ in bound), tuple(value for _, value in bound))


def _bind_one(column: str | None, value: str | float | None) -> tuple[str, str | int | float]:
    if isinstance(value, int) and value in _INT64:
        return "?", value
    if isinstance(value, int | float):
        # SQLite's decimal conversion may differ from Python's in the last bit: compare what SQLite reads from JSON with
        # an operand that it reads from JSON, and a column, which holds the double, with a double.
        return ("?", float(value)) if column else ("json_extract(?, '$')", json.dumps(value))
    return "?", str(value)


def _value(field: Field) -> CompiledFilter:
    return CompiledFilter(_column(field.column)) if field.column else _json_value(field)


def _column(name: str) -> str:
    quoted = name.replace('"', '""')
    return f'm."{quoted}"'


def _json_value(field: Field) -> CompiledFilter:
    return _look_up(field, "json_extract", "value")


def _json_type(field: Field) -> CompiledFilter:
    return _look_up(field, "json_type", "type")


def _look_up(field: Field, function: str, column: str) -> CompiledFilter:
    # A path ends at the first quotation mark, escaped or not. Other escapes are compared as they stand in the JSON
    # text, so the path must be written by the function that writes the metadata.
    if '"' in field.name:
        return CompiledFilter(f"(SELECT {column} FROM json_each(d.metadata) WHERE key = ?)", (field.name,))
    return CompiledFilter(f"{function}(d.metadata, ?)", (f"$.{json.dumps(field.name, ensure_ascii=False)}",))


def _join(word: str, parts: Iterable[CompiledFilter]) -> CompiledFilter:
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    sql = word.join(f"({part.sql})" for part in parts)
    return CompiledFilter(sql, tuple(value for part in parts for value in part.parameters))
