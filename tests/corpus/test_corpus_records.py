"""Records become documents: text, id and metadata come through with exactly the types they had."""

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import IntEnum, StrEnum
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.config import ReadOptions
from indexer.corpus import lines, read_corpus
from indexer.documents import Document, Place
from indexer.errors import CorpusError

NUL_FREE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NUL_FREE
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NUL_FREE, inner, max_size=4), max_leaves=12
)
RECORDS = st.dictionaries(NUL_FREE.filter(lambda name: name not in {"text", "id", "_id", "doc_id"}), VALUES, max_size=6)
LISTS = st.lists(RECORDS, max_size=8)


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


def read(*records: object, **options: object) -> list[Document]:
    return list(read_corpus([records], ReadOptions(**options)))


def test_text_and_id_leave_the_record_and_the_rest_is_metadata() -> None:
    (document,) = read({"id": 7, "text": " a ", "_id": "x", "n": 1, "none": None})
    assert document == Document("7", " a ", {"_id": "x", "n": 1, "none": None}, Place("python", 1))
    assert list(document.metadata) == ["_id", "n", "none"]


def test_several_text_fields_are_joined_and_stay_in_the_metadata() -> None:
    records = [
        {"id": 1, "title": "A", "text": "b", "n": 1},
        {"id": 2, "title": "", "text": "b"},
        {"id": 3, "title": None, "text": "b "},
        {"id": 4, "title": " \n", "text": "b"},
        {"id": 5, "text": "b", "title": "A"},
    ]
    documents = read(*records, text_fields=("title", "text"))
    assert [document.text for document in documents] == ["A b", "b", "b ", "b", "A b"]
    assert [document.metadata for document in documents] == [
        {name: value for name, value in record.items() if name != "id"} for record in records
    ]


@pytest.mark.parametrize("text", [None, "", " ", "\n\t ", "\u2028\u00a0\u3000"])
def test_an_empty_text_is_skipped_and_told(text: str | None) -> None:
    skipped = []
    records = [{"text": "a"}, {"text": text, "bad": float("nan")}, {"text": "b"}]
    found = list(read_corpus([records], ReadOptions(), on_skip=lambda *what: skipped.append(what)))
    assert [document.text for document in found] == ["a", "b"]
    assert skipped == [(Place("python", 2, 2 / 3), "empty_text", None)]


def test_texts_of_which_all_parts_are_empty_are_skipped() -> None:
    assert read({"a": " ", "b": None}, text_fields=("a", "b")) == []


def test_a_missing_text_field_is_an_error_also_beside_others() -> None:
    with pytest.raises(CorpusError, match="no field 'title' to take the text from; the record has 'text'"):
        read({"text": "a"}, text_fields=("text", "title"))


@pytest.mark.parametrize(
    ("record", "id_"),
    [
        ({"id": "a", "_id": "b", "doc_id": "c"}, "a"),
        ({"doc_id": "c", "_id": "b"}, "b"),
        ({"doc_id": "c", "_id": None, "id": None}, "c"),
        ({"id": 0}, "0"),
        ({"id": -(10**30)}, "-1" + "0" * 30),
        ({"id": " é "}, " é "),
        ({"id": "x" * 1000}, "x" * 1000),
        ({"id": np.str_("a")}, "a"),
        ({"id": Size.BIG}, "3"),
        ({"id": Colour.RED}, "red"),
    ],
)
def test_the_id_is_the_first_of_the_known_fields_as_a_string(record: dict[str, object], id_: str) -> None:
    (document,) = read({"text": "a", **record})
    assert document.id == id_
    assert type(document.id) is str
    assert len(document.metadata) == len(record) - 1


def test_a_named_id_field_is_taken_and_no_other() -> None:
    (document,) = read({"text": "a", "id": 1, "key": 2}, id_field="key")
    assert (document.id, document.metadata) == ("2", {"id": 1})


def test_a_record_without_id_gets_the_hash_of_all_of_it() -> None:
    one, same, other_text, other_field, with_parts = (
        *read({"text": "é", "a": [1, {"b": 2, "c": 3}], "d": 1.0}, {"d": 1.0, "a": [1, {"c": 3, "b": 2}], "text": "é"}),
        *read({"text": "e", "a": [1, {"b": 2, "c": 3}], "d": 1.0}, {"text": "é", "a": [1, {"b": 2, "c": 3}], "d": 1}),
        *read({"text": "é", "a": [1, {"b": 2, "c": 3}], "d": 1.0, "t": ""}, text_fields=("t", "text")),
    )
    canonical = '{"a":[1,{"b":2,"c":3}],"d":1.0,"text":"é"}'
    assert one.id == same.id == blake2b(canonical.encode(), digest_size=16).hexdigest()
    assert len({one.id, other_text.id, other_field.id, with_parts.id}) == 4


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, 1, -1, 2**63, 10**4000, 0.0, -0.0, 1.0, 5e-324, "", "2021", "true", "1.0", [], {}, [[None]],
     {"a": {"b": [1, 1.0, True, None, "é\u2028\U0001f600"]}, "": 1}],
)  # fmt: skip
def test_a_metadata_value_keeps_its_type(value: object, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a", "v": value}))
    for source in (path, [{"text": "a", "v": value}]):
        (document,) = read_corpus([source], ReadOptions())
        assert repr(document.metadata["v"]) == repr(value)
        assert document.metadata_json() == json.dumps({"v": value}, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"a", "a value of type bytes, which has no JSON form"),
        ({1}, "a value of type set"),
        ([object()], "a value of type object"),
        (np.timedelta64(1, "D"), "a value of type timedelta64"),
        (np.longdouble(1), "a value of type longdouble"),
        (np.zeros(2), "a value of type ndarray"),
        ({1: 2}, "an object whose key is an integer, not a string"),
        ([float("nan")], "holds nan; a number must be finite"),
        pytest.param(10**5000, "an integer of more than 4,200 digits", id="huge"),
        ("\ud83d\ude00", "a lone surrogate (U+D83D), at character 1"),
        ("a\0", "a NUL character, at character 2"),
    ],
)
def test_a_value_without_a_json_form_names_field_and_type(value: object, reason: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read({"text": "sesame", "v": value})
    assert str(caught.value).startswith("python:1: field 'v' holds ")
    assert reason in caught.value.reason


def test_values_that_python_and_numpy_have_beside_json_become_its_like() -> None:
    (document,) = read(
        {
            "text": "a",
            "when": datetime(2024, 2, 3, 4, 5, tzinfo=UTC),
            "day": date(2024, 2, 3),
            "price": Decimal("1.20"),
            "key": UUID(int=7),
            "pair": (1, [date(2024, 2, 3)], {"at": time(4, 5)}),
            "n": np.int64(3),
            "x": np.float32(0.5),
            "yes": np.bool_(True),
            "since": np.datetime64("2024-02-03T04:05"),
            "never": np.datetime64("NaT"),
        }
    )
    assert document.metadata == {
        "when": "2024-02-03T04:05:00+00:00",
        "day": "2024-02-03",
        "price": "1.20",
        "key": "00000000-0000-0000-0000-000000000007",
        "pair": [1, ["2024-02-03"], {"at": "04:05:00"}],
        "n": 3,
        "x": 0.5,
        "yes": True,
        "since": "2024-02-03T04:05",
        "never": None,
    }
    assert [type(document.metadata[name]) for name in ("n", "x", "yes")] == [int, float, bool]


def test_what_is_nested_too_deep_is_refused_with_its_record() -> None:
    nested: list[object] = []
    for _ in range(5_000):
        nested = [nested]
    rejected: list[CorpusError] = []
    records = [{"text": "a", "v": nested}, {"text": "b"}]
    assert [d.text for d in read_corpus([records], ReadOptions(), on_reject=rejected.append)] == ["b"]
    assert "nested deeper" in rejected[0].reason


def test_a_record_without_text_is_told_with_the_id_that_it_has() -> None:
    skipped = []
    records = [{"id": 7, "text": ""}, {"text": None}, {"_id": "x", "text": " "}, {"id": 1.5, "text": ""}]
    assert list(read_corpus([records], ReadOptions(), on_skip=lambda _, __, id_: skipped.append(id_))) == []
    assert skipped == ["7", None, "x", None]


def test_subclasses_of_json_types_become_the_types_themselves() -> None:
    (document,) = read(MappingProxyType({"text": np.str_("a"), "f": np.float64(0.5), "i": Size.BIG, "s": Colour.RED}))
    assert document.text == "a"
    assert type(document.text) is str
    assert {name: (type(value), value) for name, value in document.metadata.items()} == {
        "f": (float, 0.5),
        "i": (int, 3),
        "s": (str, "red"),
    }


def test_a_field_name_that_is_no_string_is_refused_although_its_like_was_seen() -> None:
    with pytest.raises(CorpusError, match="python:2: a field name is an integer, not a string"):
        read({"text": "a", "1": 1}, {"text": "a", 1: 1})


def test_a_document_shares_nothing_with_the_callers_record() -> None:
    record = {"text": "a", "tags": ["x"], "more": {"y": [1]}}
    before = json.dumps(record)
    (document,) = read(record)
    assert json.dumps(record) == before
    record["tags"].append("z")
    record["more"]["y"].append(2)
    assert document.metadata == {"tags": ["x"], "more": {"y": [1]}}


@pytest.mark.parametrize("record", ["a", 7, None, ["text"], ("text", "a")])
def test_an_iterable_of_something_else_is_refused_record_by_record(record: object) -> None:
    rejects: list[CorpusError] = []
    documents = list(read_corpus([[record, {"text": "a"}]], ReadOptions(), on_reject=rejects.append))
    assert [document.text for document in documents] == ["a"]
    assert [(error.line, "not an object with fields" in error.reason) for error in rejects] == [(1, True)]


def typed(value: object) -> object:
    """Return a form in which 1, 1.0 and True differ, and 0.0 and -0.0 too."""
    return repr(value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=LISTS, ascii_only=st.booleans(), block_bytes=st.integers(1, 40))
def test_any_json_comes_through_json_lines_unchanged(
    records: list[dict[str, object]],
    ascii_only: bool,
    block_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({**record, "text": "a"}, ensure_ascii=ascii_only) for record in records]
    path.write_bytes("\r\n".join(rows).encode())
    found = list(read_corpus([path], ReadOptions()))
    assert [typed(dict(document.metadata)) for document in found] == [typed(record) for record in records]
    assert [document.place.line for document in found] == list(range(1, len(records) + 1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=LISTS, indent=st.sampled_from([None, 0, 3]), block_bytes=st.integers(1, 40), ascii_only=st.booleans())
def test_any_json_comes_through_a_json_list_unchanged(
    records: list[dict[str, object]],
    indent: int | None,
    block_bytes: int,
    ascii_only: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.json"
    content = json.dumps([{**record, "text": "a"} for record in records], indent=indent, ensure_ascii=ascii_only)
    path.write_text(content, encoding="utf-8")
    found = list(read_corpus([path], ReadOptions()))
    assert [typed(dict(document.metadata)) for document in found] == [typed(record) for record in records]
    fractions = [document.place.fraction or 0 for document in found]
    assert fractions == sorted(fractions)
    rows = content.split("\n")
    assert all(rows[document.place.line - 1].lstrip(" [")[:1] == "{" for document in found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | NUL_FREE.map(str.encode) | RECORDS.map(lambda r: json.dumps([r]).encode()[:-2]))
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt", ".md", ".jsonl.gz"])
def test_rubbish_gives_documents_or_a_corpus_error_and_nothing_else(
    content: bytes, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    try:
        found = list(read_corpus([path], ReadOptions(), on_reject=lambda error: None))
    except CorpusError:
        return
    assert all(document.text for document in found)


@pytest.mark.parametrize("name", ["text", "note"])
def test_a_record_that_is_too_long_is_refused_wherever_it_comes_from(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.corpus.records.MAX_RECORD_BYTES", 1_000)
    fits, too_long = {"text": "a", name: "é" * 490}, {"text": "b", name: "é" * 501}
    errors: list[CorpusError] = []
    found = list(read_corpus([[fits, too_long, {"text": "c"}]], ReadOptions(), on_reject=errors.append))
    assert [document.metadata.get("note", document.text)[:1] for document in found] == ["é", "c"]
    assert [(error.line, "longer than" in error.reason) for error in errors] == [(2, True)]
