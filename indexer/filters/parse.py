"""From what a user writes to the tree; every refusal is one line that names the place and what is allowed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias, cast

from indexer.errors import FilterError
from indexer.filters.nodes import (
    And,
    Compare,
    Comparison,
    Contains,
    Exists,
    Filter,
    Not,
    OneOf,
    Operator,
    Or,
    Scalar,
)
from indexer.filters.operands import bound, check_unicode, scalar, show
from indexer.scalars import json_scalar

MAX_DEPTH = 16
MAX_CONDITIONS = 256
MAX_VALUES = 10_000  # of all lists together; with the paths it stays below the 32,766 parameters of a stock SQLite

_FIELD_OPERATORS = ", ".join(word for word in Operator if word not in {Operator.AND, Operator.OR})
Where: TypeAlias = str | Mapping[str, object] | Sequence[str | Mapping[str, object]]
"""A filter as a caller writes it; a sequence is a list or tuple."""
_Pairs: TypeAlias = list[tuple[str, object]]


def parse_filter(where: Where) -> Filter:
    """Parse a filter.

    Args:
        where: a mapping as read from JSON, or text: a JSON object, or `field=value`, split at the first `=`, where
            value is a JSON scalar and anything that is not JSON is a string (`label=joy`, `year=2020`, `x="2020"`);
            or a list of these, of which all must be met.

    Returns:
        The tree. Field names are not checked here, because they depend on the documents.

    Raises:
        FilterError: the filter cannot be understood or exceeds a limit (nesting, conditions, values).
    """
    parser = _Parser()
    if not isinstance(where, list | tuple):
        return parser.parse_any(where, depth=1)
    if not where:
        msg = "a list of filters holds at least one"
        raise FilterError(msg)
    return _all_of([parser.parse_any(part, depth=2) for part in where])


class _Parser:
    """Walks one filter and counts what its limits bound."""

    def __init__(self) -> None:
        self._n_conditions = 0
        self._n_values = 0

    def parse_any(self, where: object, depth: int) -> Filter:
        """Parse a mapping, its JSON, or `field=value`."""
        if not isinstance(where, str):
            return self.parse(where, "a filter", depth)
        if where.lstrip().startswith("{"):
            return self.parse(_load_object(where), "a filter", depth)
        name, equals, text = where.partition("=")
        if not equals:
            msg = f'the filter {show(where)} is neither a JSON object such as {{"label": "joy"}} nor field=value'
            raise FilterError(msg)
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            value = text
        check_unicode(name, "a field name")
        self._count_condition()
        return Compare(name, Comparison.EQ, scalar(value, f"field {show(name)}"))

    def parse(self, where: object, place: str, depth: int) -> Filter:
        """Parse a mapping of fields and logical operators."""
        if not isinstance(where, Mapping):
            msg = f'{place} is an object such as {{"label": "joy"}}, not {show(where)}'
            raise FilterError(msg)
        _check_depth(depth)
        return self._and([self._entry(key, value, depth) for key, value in where.items()])

    def _and(self, parts: list[Filter]) -> Filter:
        if not parts:
            self._count_condition()
        return _all_of(parts)

    def _entry(self, key: object, value: object, depth: int) -> Filter:
        key = _check_name(key, "a filter")
        if key in {Operator.AND, Operator.OR}:
            if not isinstance(value, list | tuple) or not value:
                msg = f"{key} takes a list of at least one filter, not {show(value)}"
                raise FilterError(msg)
            parts = tuple(self.parse(part, f"each part of {key}", depth + 1) for part in value)
            return And(parts) if key == Operator.AND else Or(parts)
        if key == Operator.NOT:
            return Not(self.parse(value, "what $not takes", depth + 1))
        if key.startswith("$"):
            example = '{"year": {"$gte": 2020}}'
            msg = f"{show(key)} cannot stand here; write field names, $and, $or or $not, as in {example}"
            raise FilterError(msg)
        if isinstance(value, Mapping):
            return self._operators(key, value, depth)
        self._count_condition()
        return Compare(key, Comparison.EQ, scalar(value, f"field {show(key)}"))

    def _operators(self, name: str, operators: object, depth: int) -> Filter:
        _check_depth(depth)
        place = f"field {show(name)}"
        if not isinstance(operators, Mapping) or not operators:
            msg = f"{place} needs an object of operators, not {show(operators)}; use {_FIELD_OPERATORS}"
            raise FilterError(msg)
        parts = []
        for key, operand in operators.items():
            word = _check_name(key, place)
            try:
                operator = Operator(word)
            except ValueError as error:
                msg = f"{place}: {show(word)} is not an operator; use one of {_FIELD_OPERATORS}"
                raise FilterError(msg) from error
            parts.append(self._condition(name, operator, operand, depth))
        return self._and(parts)

    def _condition(self, name: str, operator: Operator, operand: object, depth: int) -> Filter:
        place = f"field {show(name)}: {operator}"
        if operator is not Operator.NOT:
            self._count_condition()
        match operator:
            case Operator.EQ:
                return Compare(name, Comparison.EQ, scalar(operand, place))
            case Operator.NE:
                return Not(Compare(name, Comparison.EQ, scalar(operand, place)))
            case Operator.GT | Operator.GTE | Operator.LT | Operator.LTE:
                return Compare(name, Comparison[operator.name], bound(operand, place))
            case Operator.IN:
                return OneOf(name, self._scalars(operand, place))
            case Operator.NIN:
                return Not(OneOf(name, self._scalars(operand, place)))
            case Operator.EXISTS:
                return _existence(name, operand, place)
            case Operator.CONTAINS:
                return Contains(name, scalar(operand, place))
            case Operator.NOT:
                return Not(self._operators(name, operand, depth + 1))
            case Operator.AND | Operator.OR:
                msg = f"{place} joins whole filters and stands outside of fields; use one of {_FIELD_OPERATORS}"
                raise FilterError(msg)

    def _scalars(self, operand: object, place: str) -> tuple[Scalar, ...]:
        if not isinstance(operand, list | tuple):
            msg = f"{place} takes a list of values, not {show(operand)}"
            raise FilterError(msg)
        self._n_values += len(operand)
        if self._n_values > MAX_VALUES:
            msg = f"{place}: the lists of a filter hold {self._n_values} values; at most {MAX_VALUES} are allowed"
            raise FilterError(msg)
        return tuple(dict.fromkeys(scalar(value, place) for value in operand))

    def _count_condition(self) -> None:
        self._n_conditions += 1
        if self._n_conditions > MAX_CONDITIONS:
            msg = f"the filter has more than {MAX_CONDITIONS} conditions; $in takes many values in one"
            raise FilterError(msg)


def _all_of(parts: Sequence[Filter]) -> Filter:
    """Return the filter that is met where all of some are."""
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _existence(name: str, operand: object, place: str) -> Filter:
    operand = json_scalar(operand)
    if not isinstance(operand, bool):
        msg = f"{place} takes true or false, not {show(operand)}"
        raise FilterError(msg)
    return Exists(name) if operand else Not(Exists(name))


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        msg = f"the filter is nested deeper than {MAX_DEPTH} levels"
        raise FilterError(msg)


def _check_name(key: object, place: str) -> str:
    if not isinstance(key, str):
        msg = f"{place} has the key {show(key)}; keys are strings"
        raise FilterError(msg)
    check_unicode(key, place)
    return key


def _load_object(text: str) -> Mapping[str, object]:
    try:
        return cast("Mapping[str, object]", json.loads(text, object_pairs_hook=_unique))
    except json.JSONDecodeError as error:
        msg = f"the filter is not JSON: {error.msg} at character {error.pos}"
        raise FilterError(msg) from error
    except RecursionError as error:
        msg = f"the filter is nested deeper than {MAX_DEPTH} levels"
        raise FilterError(msg) from error
    except ValueError as error:
        msg = "the filter has a number with too many digits"
        raise FilterError(msg) from error


def _unique(pairs: _Pairs) -> dict[str, object]:
    # json keeps the last of equal keys: {"year": {"$gte": 1}, "year": {"$lt": 5}} would silently lose its first half.
    result = dict(pairs)
    if len(result) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        msg = f"the filter has the key {show(name)} twice in one object; join the conditions with $and"
        raise FilterError(msg)
    return result


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is a word to Python's json module only"
    raise ValueError(msg)
