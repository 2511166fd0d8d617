"""Document: what is indexed. Stdlib only."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeAlias

from indexer.errors import UsageError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
Metadata: TypeAlias = Mapping[str, JsonValue]

# The same for any order of the keys, to be hashed.
CANONICAL_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
_STORED_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document came from.

    `source` is the file or source as the user named it; `line` is the 1-based line of a text file (the first line of a
    record that spans several) or the 1-based record of any other source; `fraction` is the share of all sources, in
    [0, 1], that was read when the record ended, None when the total is not known.
    """

    source: str
    line: int
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One record of a corpus: `text` is what is encoded, `metadata` is everything else, with its JSON types."""

    id: str
    text: str
    metadata: Metadata
    place: Place = field(compare=False)

    def metadata_json(self) -> str:
        """Return the metadata as it is stored: compact JSON in the order of the source, no NaN."""
        return _STORED_JSON.encode(self.metadata)

    def content_hash(self) -> bytes:
        """Return 16 bytes that change when the text or the metadata (in any key order) changes."""
        return blake2b(f"{self.text}\0{CANONICAL_JSON.encode(self.metadata)}".encode(), digest_size=16).digest()


def as_id(value: object) -> str:
    """Return an id that a caller gave as a corpus gives it: integers are their digits.

    Raises:
        UsageError: it is neither a text nor an integer.
    """
    if isinstance(value, str):
        return value
    try:
        if not isinstance(value, bool):
            return str(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        pass
    msg = (
        f"the id {value!r:.60} is of type {type(value).__name__}; ids are texts, or integers as a corpus may have them"
    )
    raise UsageError(msg)


def is_storable(id_: str) -> bool:
    """Tell whether an index could have an id: a lone surrogate or NUL cannot be stored, and no source has one."""
    return "\0" not in id_ and not any("\ud800" <= character <= "\udfff" for character in id_)


def text_key(text: str) -> int:
    """Return a signed 64-bit hash of a text; equal texts share it, and a match is confirmed by comparing the texts."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
