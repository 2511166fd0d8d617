"""Real data of every text format comes through whole."""

import csv
import json
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from corpora import read

from indexer.config import ReadOptions
from indexer.corpus import read_corpus
from indexer.documents import Document

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def data(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"the shared test data has no {name} here")
    return DATA / name


def as_rows(documents: list[Document]) -> list[dict[str, object]]:
    return [{"id": document.id, "text": document.text, **document.metadata} for document in documents]


def test_emotion_json_lines_are_read_whole() -> None:
    path = data("emotion/test.jsonl")
    expected = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    documents = read(path)
    assert as_rows(documents) == expected
    assert [document.place.line for document in documents] == list(range(1, 2001))
    assert documents[-1].place.fraction == 1.0


def test_banking_csv_has_3080_rows_of_strings() -> None:
    path = data("banking77/test.csv")
    with path.open(newline="") as file:
        expected = list(csv.DictReader(file))
    documents = read(path)
    assert [{"text": document.text, **document.metadata} for document in documents] == expected
    assert len(documents) == 3080


def test_agnews_without_header_has_7600_rows_and_keeps_its_backslashes() -> None:
    documents = read(data("agnews/test.csv"), columns=("class", "title", "text"), text_fields=("title", "text"))
    assert len(documents) == 7600
    assert {document.metadata["class"] for document in documents} == set("1234")
    assert any("\\" in document.text for document in documents)


def test_cranfield_has_two_empty_documents() -> None:
    skipped = []
    options = ReadOptions(text_fields=("title", "text"))
    source = data("cranfield/corpus.jsonl")
    documents = list(read_corpus([source], options, on_skip=lambda at, why, _: skipped.append((at.line, why))))
    assert len(documents) == 1398
    assert skipped == [(471, "empty_text"), (995, "empty_text")]
    assert documents[0].text == f"{documents[0].metadata['title']} {documents[0].metadata['text']}"


def test_the_first_records_of_a_large_gzip_file_come_without_reading_the_rest() -> None:
    with closing(read_corpus([data("package_summaries.jsonl.gz")], ReadOptions())) as documents:
        found = list(islice(documents, 1000))
    assert found[0].id == "0-0-1"
    assert set(found[0].metadata) == {"version", "updated"}
    fractions = [document.place.fraction or 0 for document in found]
    assert 0 < fractions[0] < fractions[-1] < 0.01
    assert fractions == sorted(fractions)
