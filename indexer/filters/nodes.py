"""The tree that a filter is parsed into: frozen and hashable, so that it can be the key of a cache.

Every node is true or false for a document, never unknown: a missing field makes a leaf false, and `Not` is the exact
complement. `$ne`, `$nin` and `{"$exists": false}` are `Not` around the leaf they negate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Operator(StrEnum):
    """Every word that begins with a dollar sign, in the order in which messages list them."""

    EQ = "$eq"
    NE = "$ne"
    GT = "$gt"
    GTE = "$gte"
    LT = "$lt"
    LTE = "$lte"
    IN = "$in"
    NIN = "$nin"
    EXISTS = "$exists"
    CONTAINS = "$contains"
    NOT = "$not"
    AND = "$and"
    OR = "$or"


class Comparison(StrEnum):
    """How `Compare` compares; the value is the SQL operator."""

    EQ = "="
    GT = ">"
    GTE = ">="
    LT = "<"
    LTE = "<="


class ScalarKind(StrEnum):
    """Kinds of scalars; values of different kinds are never equal and never ordered."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    NULL = "null"


@dataclass(frozen=True, slots=True)
class Scalar:
    """An operand with its kind, because Python holds `True == 1`; 1 and 1.0 are the same number on purpose."""

    kind: ScalarKind
    value: str | float | bool | None


@dataclass(frozen=True, slots=True)
class Compare:
    """The field holds a scalar of the operand's kind that compares so; strings compare by code point."""

    field: str
    comparison: Comparison
    operand: Scalar


@dataclass(frozen=True, slots=True)
class OneOf:
    """The field equals one of the operands; false when there are none."""

    field: str
    operands: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Contains:
    """The field is a list with a member equal to the operand, or a string that holds the operand as a substring."""

    field: str
    operand: Scalar


@dataclass(frozen=True, slots=True)
class Exists:
    """The document has the field, be it null."""

    field: str


@dataclass(frozen=True, slots=True)
class Not:
    """The exact complement."""

    part: Filter


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold; true when there are none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one part holds."""

    parts: tuple[Filter, ...]


Filter: TypeAlias = Compare | OneOf | Contains | Exists | Not | And | Or


def fields_of(tree: Filter) -> set[str]:
    """Return the names of the fields that a filter asks about."""
    match tree:
        case Not(part=part):
            return fields_of(part)
        case And(parts=parts) | Or(parts=parts):
            return {name for part in parts for name in fields_of(part)}
        case _:
            return {tree.field}
