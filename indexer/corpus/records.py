"""Documents: a record becomes id, text and metadata, or a reason why it cannot. Stdlib only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from types import NoneType
from typing import cast

from indexer.config import ReadOptions
from indexer.corpus.parts import MAX_RECORD_BYTES, SIZE_LIMIT_TEXT, BadRecordError
from indexer.documents import CANONICAL_JSON, Document, JsonValue, Place

ID_FIELDS = ("id", "_id", "doc_id")
MAX_ID_CHARACTERS = 1_000
MAX_DEPTH = 100
MAX_INT_BITS = 14_000  # just under the 4,300 digits that Python converts to and from text
MAX_KNOWN_NAMES = 10_000
MAX_NAMES_SHOWN = 20
MAX_NAME_CHARACTERS_SHOWN = 40

_ABSENT = object()
_TYPE_NAMES: dict[type, str] = {
    NoneType: "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class DocumentMaker:
    """Turns records into documents under one set of options.

    Args:
        options: which fields are text and id.
    """

    def __init__(self, options: ReadOptions) -> None:
        self._text_fields = options.text_fields
        self._id_field = options.id_field
        self._id_fields = ID_FIELDS if options.id_field is None else (options.id_field,)
        self._single = options.text_fields[0] if len(options.text_fields) == 1 else None
        self._known_names: set[str] = set()

    def document(self, found: object, place: Place) -> Document | None:
        """Return the document of one record, None when its text is empty.

        Args:
            found: the record as its source gave it; not changed, and not kept.
            place: where it was found.

        Returns:
            The document; its metadata shares nothing mutable with the record.

        Raises:
            BadRecordError: the record cannot be used; the message says why and shows no text.
        """
        record: dict[str, object] = found if type(found) is dict else _as_dict(found)
        text = self._text(record)
        if not text or text.isspace():
            return None
        if not record.keys() <= self._known_names:
            self._check_names(record)
        id_field, id_ = self._id(record)
        metadata: dict[str, JsonValue] = {}
        single = self._single
        n_characters = len(text)
        for name, value in record.items():
            if type(value) is str:
                n_characters += len(value)
                if not value.isascii() or "\0" in value:
                    check_text(value, name)
                if name != single and name != id_field:
                    metadata[name] = value
            elif name == single:
                check_text(text, name)
            elif name != id_field:
                metadata[name] = _json_value(value, name, 1)
        document = Document(id_ or _hash(metadata, single, text), text, metadata, place)
        if n_characters > MAX_RECORD_BYTES // 8:  # a character takes up to 4 bytes, or 6 where JSON escapes it
            _check_size(document)
        return document

    def id_of(self, found: object) -> str | None:
        """Return the id that a record without text has nevertheless, None when it has none of its own."""
        try:
            return self._id(_as_dict(found))[1]
        except BadRecordError:
            return None

    def _text(self, record: Mapping[str, object]) -> str:
        """Return the text fields joined by a space, empty parts left out."""
        parts = []
        for name in self._text_fields:
            part = record.get(name, _ABSENT)
            if type(part) is str:
                parts.append(part)
            elif isinstance(part, str):
                parts.append(str.__str__(part))
            elif part is _ABSENT:
                msg = f"no field {name!r} to take the text from; {_listing(record)}; choose with --text-field"
                raise BadRecordError(msg)
            elif part is not None:
                msg = f"text field {name!r} is {_type_name(part)}, not a string"
                raise BadRecordError(msg)
        return parts[0] if len(parts) == 1 else " ".join(part for part in parts if part and not part.isspace())

    def _id(self, record: Mapping[str, object]) -> tuple[str | None, str | None]:
        """Return the field that the id was taken from and the id, (None, None) when the record has none."""
        for name in self._id_fields:
            value = record.get(name)
            if value is not None:
                return name, _checked_id(value, name)
        if self._id_field is None:
            return None, None
        if self._id_field in record:
            msg = f"id field {self._id_field!r} is null"
            raise BadRecordError(msg)
        msg = f"no field {self._id_field!r} to take the id from; {_listing(record)}; choose with --id-field"
        raise BadRecordError(msg)

    def _check_names(self, record: Iterable[object]) -> None:
        """Check the field names of a record and remember them, so that the next such record is passed at once."""
        for name in record:
            if type(name) is not str:
                msg = f"a field name is {_type_name(name)}, not a string"
                raise BadRecordError(msg)
            _check_name(name)
            if len(self._known_names) < MAX_KNOWN_NAMES:
                self._known_names.add(name)


def check_text(text: str, field: str) -> None:
    """Refuse what UTF-8 and SQLite cannot carry.

    Args:
        text: any string.
        field: the field that it was found in, for the message.

    Raises:
        BadRecordError: the string holds a NUL character or a lone surrogate.
    """
    if "\0" in text:
        msg = f"field {short(field)} holds a NUL character, at character {text.index(chr(0)) + 1}"
        raise BadRecordError(msg)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            msg = f"field {short(field)} holds a lone surrogate (U+{code:04X}), at character {error.start + 1}"
            raise BadRecordError(msg) from error


def short(name: str) -> str:
    """Return a field name quoted, escaped and cut to a length that suits a message."""
    cut = name if len(name) <= MAX_NAME_CHARACTERS_SHOWN else name[: MAX_NAME_CHARACTERS_SHOWN - 1] + "…"
    return ascii(cut) if not cut.isprintable() else repr(cut)


def name_list(names: Iterable[object]) -> str:
    """Return field names for a message: quoted, cut, and no more than fit a line or two."""
    all_names = [short(str(name)) for name in names]
    more = len(all_names) - MAX_NAMES_SHOWN
    return ", ".join(all_names[:MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _as_dict(found: object) -> dict[str, object]:
    """Return a mapping as a dict; anything else is no record."""
    if isinstance(found, Mapping):
        return dict(found)
    msg = f"the record is {_type_name(found)}, not an object with fields"
    raise BadRecordError(msg)


def _checked_id(value: object, field: str) -> str:
    """Return an id as a string; only strings and integers have one form that is sure to stay the same."""
    if isinstance(value, str):
        check_text(value, field)
        if not value:
            msg = f"id field {short(field)} is an empty string"
            raise BadRecordError(msg)
        if len(value) > MAX_ID_CHARACTERS:
            msg = f"id field {short(field)} has {len(value):,} characters; at most {MAX_ID_CHARACTERS:,} are allowed"
            raise BadRecordError(msg)
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        id_ = str(_json_value(value, field, 1))
        return _checked_id(id_, field)
    msg = f"id field {short(field)} is {_type_name(value)}; an id is a string or an integer"
    raise BadRecordError(msg)


def _json_value(value: object, field: str, depth: int) -> JsonValue:
    """Return a value rebuilt from JSON types alone, or say which field holds something else."""
    match value:
        case None | bool():
            return value
        case str():
            check_text(value, field)
            return str.__str__(value)
        case int():
            if value.bit_length() > MAX_INT_BITS:
                msg = f"field {short(field)} holds an integer of more than 4,200 digits"
                raise BadRecordError(msg)
            return int(value)
        case float():
            if not math.isfinite(value):
                msg = f"field {short(field)} holds {float(value)!r}; a number must be finite (null where there is none)"
                raise BadRecordError(msg)
            return float(value)
        case list() | dict() if depth > MAX_DEPTH:
            msg = f"field {short(field)} is nested deeper than {MAX_DEPTH} levels"
            raise BadRecordError(msg)
        case list():
            return [_json_value(item, field, depth + 1) for item in value]
        case dict():
            return {_key(key, field): _json_value(item, field, depth + 1) for key, item in value.items()}
    msg = f"field {short(field)} holds {_type_name(value)}, which has no JSON form"
    raise BadRecordError(msg)


def _key(key: object, field: str) -> str:
    """Return the key of a nested object, checked."""
    if not isinstance(key, str):
        msg = f"field {short(field)} holds an object whose key is {_type_name(key)}, not a string"
        raise BadRecordError(msg)
    check_text(key, field)
    return str.__str__(key)


def _check_name(name: str) -> None:
    """Check the name of a field as its text is checked."""
    try:
        check_text(name, name)
    except BadRecordError as error:
        msg = f"the name of a field cannot be used: {error}"
        raise BadRecordError(msg) from error


def _check_size(document: Document) -> None:
    """Refuse what the readers of text files refuse, and SQLite could not hold."""
    for part in (document.text, document.metadata_json()):
        if len(part.encode()) > MAX_RECORD_BYTES:
            msg = f"the record is longer than {SIZE_LIMIT_TEXT}"
            raise BadRecordError(msg)


def _hash(metadata: dict[str, JsonValue], text_field: str | None, text: str) -> str:
    """Return 32 hex characters that stand for the whole record, whatever the order of its fields."""
    record = metadata if text_field is None else {**metadata, text_field: text}
    return blake2b(CANONICAL_JSON.encode(record).encode(), digest_size=16).hexdigest()


def _listing(record: Mapping[str, object]) -> str:
    """Return the fields of a record for a message."""
    return f"the record has {name_list(record)}" if record else "the record has no fields"


def _type_name(value: object) -> str:
    """Return the JSON type of a value, or its Python type, with an article."""
    kind = cast("type", type(value))
    return _TYPE_NAMES.get(kind, f"a value of type {kind.__name__}")
