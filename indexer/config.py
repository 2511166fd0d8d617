"""What a caller may choose: frozen, keyword-only, checked when made. Defaults of the command line come from here."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, SupportsIndex, TypeVar

from indexer.errors import UsageError

DEFAULT_MODEL = "BAAI/bge-small-en-v1.5"


_E = TypeVar("_E", bound=StrEnum)


def choice(kind: type[_E], value: str, option: str) -> _E:
    """Return the member of an enumeration that a caller named.

    Raises:
        UsageError: there is no such member; the message lists them.
    """
    try:
        return kind(value)
    except ValueError as error:
        msg = f"--{option} is {value!r}; choose {', '.join(kind)}"
        raise UsageError(msg) from error


def whole_number(value: object, option: str, least: int) -> int:
    """Return an integer that a caller gave, numpy's as Python's.

    Raises:
        UsageError: it is no whole number, or below the least that can work.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        msg = f"--{option} is {value!r:.60}; it must be a whole number"
        raise UsageError(msg)
    number = operator.index(value)
    if number < least:
        msg = f"--{option} is {number}; it must be at least {least}"
        raise UsageError(msg)
    return number


class Pooling(StrEnum):
    """How the hidden states of a text become one vector.

    CLS takes position 0 of the last layer (not the pooler, which is a further learned layer), MEAN the mean over all
    tokens that are not padding, LAST the last such token; AUTO is what the model's own files declare.
    """

    CLS = "cls"
    MEAN = "mean"
    LAST = "last"
    AUTO = "auto"


class Dtype(StrEnum):
    """Number format that the model computes in; AUTO picks what is fastest without loss on the device."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class VectorDtype(StrEnum):
    """Number format of the raw vector file."""

    F16 = "f16"
    F32 = "f32"

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return 2 if self is VectorDtype.F16 else 4


class IfExists(StrEnum):
    """What becomes of a record whose id is in the index with other content."""

    UPSERT = "upsert"
    SKIP = "skip"
    ERROR = "error"


class OnError(StrEnum):
    """What becomes of the run when a record cannot be used."""

    STOP = "stop"
    SKIP = "skip"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderOptions:
    """Which model encodes, and how; None leaves a value to the index, then to the model, then to the default.

    `max_length` and `chunk_tokens` count tokens with the special ones; `batch_tokens` is the budget of one forward pass
    in tokens with padding.
    """

    model: str | None = None
    revision: str | None = None
    pooling: Pooling | None = None
    max_length: int | None = None
    query_prompt: str | None = None
    doc_prompt: str | None = None
    chunk_tokens: int | None = None
    chunk_overlap: int | None = None
    dtype: Dtype = Dtype.AUTO
    device: str | None = None
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that cannot work."""
        for name, least in (("max_length", 3), ("chunk_tokens", 8), ("chunk_overlap", 0), ("batch_tokens", 1)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(value, name.replace("_", "-"), least))
        if self.chunk_overlap and not self.chunk_tokens:
            msg = "--chunk-overlap needs --chunk-tokens"
            raise UsageError(msg)
        if self.chunk_tokens and self.chunk_overlap and self.chunk_overlap > self.chunk_tokens // 2:
            msg = f"--chunk-overlap {self.chunk_overlap} is more than half of --chunk-tokens {self.chunk_tokens}"
            raise UsageError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How records become documents.

    `text_fields` are joined by a space; `id_field` None means the first of id, _id, doc_id that a record has, else a
    hash of the whole record; `columns` names the columns of delimited text without a header.
    """

    text_fields: tuple[str, ...] = ("text",)
    id_field: str | None = None
    columns: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ReadOptions:
        """Return the options that an index records."""
        return cls(
            text_fields=tuple(stored["text_fields"]),
            id_field=stored["id_field"],
            columns=tuple(stored["columns"]) if stored["columns"] else None,
        )

    def __post_init__(self) -> None:
        """Refuse empty and repeated names."""
        for option, names in (("text-field", self.text_fields), ("columns", self.columns or ())):
            if any(not name for name in names):
                msg = f"--{option} has an empty name"
                raise UsageError(msg)
            if len(set(names)) != len(names):
                msg = f"--{option} names a field twice: {', '.join(names)}"
                raise UsageError(msg)
        if not self.text_fields:
            msg = "--text-field needs at least one name"
            raise UsageError(msg)
