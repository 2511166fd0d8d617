"""Every way in which a record or a file can be bad has its place, its reason, and never shows a text."""

import gzip
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from indexer.config import ReadOptions
from indexer.corpus import lines, read_corpus
from indexer.errors import CorpusError

SECRET = "sesame"
GOOD = b'{"id": "good-%d", "text": "fine"}\n'


@dataclass(frozen=True)
class Case:
    """A file, the line and reason of its error, and the ids that are read when errors are skipped (None: raises)."""

    name: str
    suffix: str
    content: bytes
    line: int | None
    phrase: str
    survivors: tuple[str, ...] | None = ("good-1", "good-2")
    options: ReadOptions = field(default_factory=ReadOptions)


def jsonl(name: str, bad: bytes, phrase: str) -> Case:
    return Case(name, ".jsonl", GOOD % 1 + bad + b"\n" + GOOD % 2, 2, phrase)


def fatal(name: str, suffix: str, content: bytes, line: int | None, phrase: str) -> Case:
    return Case(name, suffix, content, line, phrase, None)


def json_list(name: str, bad: bytes, phrase: str) -> Case:
    return Case(
        name, ".json", b'[{"id": "good-1", "text": "a"},\n' + bad + b',\n{"id": "good-2", "text": "b"}]', 2, phrase
    )


def csv(name: str, suffix: str, rows: bytes, line: int, phrase: str, survivors: tuple[str, ...] | None) -> Case:
    return Case(name, suffix, rows, line, phrase, survivors)


WITH_KEY = ReadOptions(id_field="key")
ZIPPED = gzip.compress(b"".join(GOOD % n for n in range(4000)), compresslevel=0)
DAMAGED = bytearray(gzip.compress(b"".join(GOOD % n for n in range(9))))
DAMAGED[-6] ^= 0xFF

CASES = [
    jsonl("malformed", b'{"text": "sesame" "a": 1}', "not valid JSON at column 19 (Expecting ',' delimiter)"),
    jsonl("no value", b'{"text": "sesame", "a": }', "not valid JSON at column 25 (Expecting value)"),
    jsonl("leading blanks count", b'   {"text": sesame}', "not valid JSON at column 13 (Expecting value)"),
    jsonl("cut", b'{"text": "sesame', "not valid JSON at column 10 (Unterminated string starting at)"),
    jsonl("two on a line", b'{"text": "sesame"} {"text": "b"}', "not valid JSON at column 20 (Extra data)"),
    jsonl("control character", b'{"text": "sesame\x01"}', "not valid JSON at column 17 (Invalid control character at)"),
    jsonl("single quotes", b"{'text': 'sesame'}", "not valid JSON at column 2"),
    jsonl("list", b'["sesame"]', "the record is a list, not an object"),
    jsonl("string", b'"sesame"', "the record is a string, not an object"),
    jsonl("null", b"null", "the record is null, not an object"),
    jsonl("NaN", b'{"text": "sesame", "a": NaN}', "NaN is not JSON"),
    jsonl("Infinity", b'{"text": "sesame", "a": [Infinity]}', "Infinity is not JSON"),
    jsonl("-Infinity", b'{"text": "sesame", "a": -Infinity}', "-Infinity is not JSON"),
    jsonl("overflow", b'{"text": "sesame", "a": {"b": 1e999}}', "field 'a' holds inf; a number must be finite"),
    jsonl("huge integer", b'{"text": "sesame", "a": ' + b"7" * 5000 + b"}", "an integer has more digits"),
    jsonl("deep for Python", b'{"text": "sesame", "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    jsonl("deep", b'{"text": "sesame", "a": ' + b"[" * 101 + b"]" * 101 + b"}", "field 'a' is nested deeper than 100"),
    jsonl("repeated key", b'{"text": "sesame", "a": 1, "a": 2}', "the key 'a' stands twice in one object"),
    jsonl("repeated key inside", b'{"text": "sesame", "a": [{"b": 1, "b": 1}]}', "the key 'b' stands twice"),
    jsonl("surrogate in text", rb'{"text": "sesame \ud800"}', "field 'text' holds a lone surrogate (U+D800), at char"),
    jsonl("surrogate in metadata", rb'{"text": "sesame", "a": ["\udfff"]}', "field 'a' holds a lone surrogate"),
    jsonl("surrogate in id", rb'{"text": "sesame", "id": "\udfff"}', "field 'id' holds a lone surrogate"),
    jsonl("surrogate in a name", rb'{"text": "sesame", "\udfff": 1}', r"the name of a field cannot be used"),
    jsonl("surrogate in a key", rb'{"text": "sesame", "a": {"\udfff": 1}}', "field 'a' holds a lone surrogate"),
    jsonl("NUL in text", rb'{"text": "sesame\u0000"}', "field 'text' holds a NUL character, at character 7"),
    jsonl("NUL in metadata", rb'{"text": "sesame", "a": "b\u0000"}', "field 'a' holds a NUL character"),
    jsonl("NUL in id", rb'{"text": "sesame", "id": "b\u0000"}', "field 'id' holds a NUL character"),
    jsonl("raw NUL", b'{"text": "sesame\0"}', "Invalid control character"),
    jsonl("bad UTF-8", b'{"text": "sesame\xff"}', "not valid UTF-8 at byte 17 of the line (0xff)"),
    jsonl("Latin-1", '{"text": "sésame"}'.encode("latin-1"), "not valid UTF-8 at byte 12 of the line (0xe9)"),
    jsonl("no text", b'{"id": 1, "body": "sesame"}', "no field 'text' to take the text from; the record has 'id', 'b"),
    jsonl("no fields", b"{}", "the record has no fields"),
    jsonl("text names the option", b'{"body": "sesame"}', "choose with --text-field"),
    jsonl("text is a number", b'{"text": 7}', "text field 'text' is an integer, not a string"),
    jsonl("text is a list", b'{"text": ["sesame"]}', "text field 'text' is a list, not a string"),
    jsonl("text is an object", b'{"text": {"a": "sesame"}}', "text field 'text' is an object, not a string"),
    jsonl("id is a boolean", b'{"text": "sesame", "id": true}', "id field 'id' is a boolean"),
    jsonl("id is a float", b'{"text": "sesame", "_id": 1.0}', "id field '_id' is a number; an id is a string"),
    jsonl("id is a list", b'{"text": "sesame", "doc_id": [1]}', "id field 'doc_id' is a list"),
    jsonl("id is empty", b'{"text": "sesame", "id": ""}', "id field 'id' is an empty string"),
    jsonl("id is long", b'{"text": "sesame", "id": "' + b"x" * 1001 + b'"}', "has 1,001 characters; at most 1,000"),
    jsonl("id is a long integer", b'{"text": "sesame", "id": ' + b"7" * 1001 + b"}", "has 1,001 characters"),
    Case(
        "no named id",
        ".jsonl",
        b'{"key": 1, "text": "a"}\n{"id": 2, "text": "sesame"}\n{"key": 3, "text": "b"}',
        2,
        "no field 'key' to take the id from; the record has 'id', 'text'; choose with --id-field",
        ("1", "3"),
        WITH_KEY,
    ),
    Case("null id", ".jsonl", b'{"key": null, "text": "sesame"}', 1, "id field 'key' is null", (), WITH_KEY),
    fatal("UTF-16LE", ".jsonl", '\ufeff{"text": "sesame"}'.encode("utf-16-le"), 1, "iconv -f UTF-16 -t UTF-8"),
    fatal("UTF-16BE", ".csv", "\ufefftext\nsesame".encode("utf-16-be"), 1, "UTF-16BE, not UTF-8"),
    fatal("UTF-32", ".txt", "\ufeffsesame".encode("utf-32-le"), 1, "iconv -f UTF-32 -t UTF-8"),
    fatal("gzip without .gz", ".jsonl", ZIPPED, 1, "the data is gzip-compressed"),
    fatal("not gzip", ".jsonl.gz", GOOD % 1, None, "not a gzip file"),
    fatal("empty gzip", ".jsonl.gz", b"", None, "not a gzip file"),
    fatal("gzip cut in its head", ".jsonl.gz", ZIPPED[:7], 1, "truncated after line 0"),
    fatal("gzip cut", ".jsonl.gz", ZIPPED[:-8], 4001, "truncated after line 4000"),
    fatal("gzip with a bad checksum", ".txt.gz", bytes(DAMAGED), 10, "the gzip data is corrupt after line 9"),
    fatal("gzip followed by rubbish", ".jsonl.gz", ZIPPED + b"rubbish", 4001, "corrupt after line 4000"),
    json_list("list: number", b"7", "the record is an integer, not an object"),
    json_list("list: NaN", b'{"text": "sesame", "a": NaN}', "NaN is not JSON"),
    json_list("list: repeated key", b'{"text": "sesame", "a": 1, "a": [1, 2]}', "the key 'a' stands twice"),
    json_list("list: huge integer", b'{"text": "sesame", "a": ' + b"7" * 5000 + b"}", "an integer has more digits"),
    json_list("list: no text", b'{"a": "sesame"}', "no field 'text'"),
    fatal("list: malformed", ".json", b'[{"text": "a"},\n {"text" "sesame"}]', 2, "not valid JSON at column 10"),
    fatal("list: no comma", ".json", b'[{"text": "a"}\n {"text": "sesame"}]', 2, "goes on without a comma"),
    fatal("list: trailing comma", ".json", b'[{"text": "a"},\n]', 2, "not valid JSON at column 1 (Expecting value)"),
    fatal("list: cut", ".json", b'[{"text": "a"},\n', 2, "the file ends inside its list"),
    fatal("list: cut after a value", ".json", b'[{"text": "a"}\n', 2, "the file ends inside its list"),
    fatal("list: cut in a value", ".json", b'[{"text": "a"},\n\n{"text": "sesame', 3, "the file ends inside the value"),
    fatal("list: more behind", ".json", b'[{"text": "a"}]\n\n{"text": "sesame"}', 3, "more follows after the closing"),
    fatal("list: deep", ".json", b'[{"text": "a", "b":' + b"[" * 200_000, 1, "nested too deeply"),
    fatal("list: bad UTF-8", ".json", b'[{"text": "a"},\n {"text": "sesame\xff"}]', 2, "not valid UTF-8 at byte 34"),
    fatal("json: lines", ".json", GOOD % 1 + GOOD % 2, 2, "one object a line is named .jsonl"),
    fatal("json: empty", ".json", b" \n", 2, "the file is empty"),
    fatal("json: string", ".json", b'"sesame"', 1, "expected a list of objects, or one object"),
    csv("too few fields", ".csv", b"id,text\n1,a\nsesame\n2,b\n", 3, "1 field where the header has 2", ("1", "2")),
    csv("too many fields", ".csv", b'id,text\n"1\n2",a\n3,b,sesame\n', 4, "3 fields where the header has 2", ("1\n2",)),
    csv("tsv: too many fields", ".tsv", b"id\ttext\n1\ta\tsesame\n2\tb", 2, "3 fields where", ("2",)),
    csv("text after a quote", ".csv", b'id,text\n1,"se"same\n2,b\n', 2, "malformed quoting", ("2",)),
    csv("carriage return alone", ".csv", b"id,text\n1,a\rsesame,b\n2,b\n", 2, "malformed quoting or line end", ("2",)),
    csv("csv: NUL", ".csv", b"id,text\n1,a\0\n2,b\n", 2, "field 'text' holds a NUL character", ("2",)),
    csv("csv: bad UTF-8", ".csv", b'id,text\n1,"a\nb\xff\nc"\n2,b\n', 2, "not valid UTF-8 at byte 2", ("2",)),
    csv("open quote", ".csv", b'id,text\n1,a\n2,"sesame\n3,b\n4,c\n', 3, "never closed", None),
    csv("open quote in the header", ".csv", b'id,"text\n1,sesame\n', 1, "never closed", None),
    csv("bad UTF-8 in the header", ".csv", b"id,text,\xff\n1,sesame,c\n", 1, "not valid UTF-8 at byte 9", None),
    csv("repeated column", ".csv", b"id,text,id\n1,sesame,b\n", 1, "the header names 'id' twice", None),
    csv("unnamed column", ".csv", b"id,,text\n1,,sesame\n", 1, "column 2 has no name in the header", None),
    csv("field over the cap", ".csv", b'id,text\n1,a\n2,"' + (b"x" * 4095 + b"\n") * 4200, 3, "longer than 16", None),
    Case("txt: bad UTF-8", ".txt", b"a\nsesame\xff\nb\n", 2, "not valid UTF-8 at byte 7", ("a", "b")),
    Case("md: bad UTF-8", ".md", b"a\nsesame\xff\nb\n", 2, "not valid UTF-8 at byte 7", ()),
    fatal("parquet: empty", ".parquet", b"", None, "cannot be read as Parquet"),
    fatal("parquet: not one", ".parquet", b"sesame" * 100, None, "cannot be read as Parquet"),
    fatal("arrow: empty", ".arrow", b"", None, "cannot be read as Arrow"),
    fatal("arrow: not one", ".arrow", b"sesame" * 100, None, "cannot be read as Arrow"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_stops_the_run_with_its_place_and_reason(case: Case, tmp_path: Path) -> None:
    path = tmp_path / f"corpus{case.suffix}"
    path.write_bytes(case.content)
    with pytest.raises(CorpusError) as caught:
        list(read_corpus([path], case.options))
    error = caught.value
    assert (error.source, error.line) == (str(path), case.line)
    assert case.phrase in error.reason
    assert SECRET not in str(error)
    assert len(str(error).splitlines()) == 1
    assert error.exit_code == 4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_record_is_passed_over_when_asked_and_a_broken_file_never(case: Case, tmp_path: Path) -> None:
    path = tmp_path / f"corpus{case.suffix}"
    path.write_bytes(case.content)
    rejects: list[CorpusError] = []
    documents = read_corpus([path], case.options, on_reject=rejects.append)
    if case.survivors is None:
        with pytest.raises(CorpusError) as caught:
            list(documents)
        assert case.phrase in (rejects[0] if rejects else caught.value).reason
        return
    found = tuple(document.text if case.suffix == ".txt" else document.id for document in documents)
    assert found == case.survivors
    assert [(error.line, case.phrase in error.reason) for error in rejects] == [(case.line, True)]


def test_the_catalogue_has_no_two_cases_of_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 18])
def test_a_line_over_the_limit_is_rejected_and_the_next_is_read(
    block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.jsonl"
    long = b'{"text": "%s"}\n' % (b"x" * 500_000 if block_bytes > 7 else b"x" * 300)
    path.write_bytes(GOOD % 1 + long + GOOD % 2 + long.strip())
    rejects: list[CorpusError] = []
    found = [(d.id, d.place.line) for d in read_corpus([path], ReadOptions(), on_reject=rejects.append)]
    assert found == [("good-1", 1), ("good-2", 3)]
    assert [error.line for error in rejects] == [2, 4]


def test_names_in_a_message_are_few_and_short(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("3," + "a long headline that is no name " * 9 + "," + ",".join(f"c{n}" for n in range(50)) + "\n")
    with path.open("a") as file:
        file.write(",".join("x" * 52) + "\n")
    with pytest.raises(CorpusError) as caught:
        list(read_corpus([path], ReadOptions()))
    assert "'a long headline that is no name a long …'" in caught.value.reason
    assert caught.value.reason.count(",") < 25
    assert "and 32 more" in caught.value.reason


def test_records_before_the_damage_of_a_gzip_file_are_given(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(ZIPPED[:-8])
    found = []
    with pytest.raises(CorpusError):
        found.extend(document.id for document in read_corpus([path], ReadOptions()))
    documents = read_corpus([path], ReadOptions())
    assert next(documents).id == "good-0"
    documents.close()


def test_a_file_that_cannot_be_opened_names_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD % 1)
    documents = read_corpus([path], ReadOptions())
    path.unlink()
    with pytest.raises(CorpusError, match="cannot be opened: No such file"):
        next(documents)
