"""Queries and judgements from files: what is read, and the line that an error names."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from indexer.errors import CorpusError
from search.queries import Query, read_qrels, read_queries


@pytest.fixture
def file(tmp_path: Path):
    def write(content: str | bytes) -> str:
        path = tmp_path / "file.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_queries_are_read_in_order_with_either_name_of_the_id(file) -> None:
    path = file('\ufeff{"_id": "q1", "text": "one", "more": 1}\r\n\n{"id": 7, "text": "naïve 日本"}')
    assert read_queries(path) == [Query("q1", "one"), Query("7", "naïve 日本")]
    assert read_queries(file("")) == []


def test_queries_are_read_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b'{"id": "a", "text": "one"}\n')

    monkeypatch.setattr("sys.stdin", Stdin)
    assert read_queries("-") == [Query("a", "one")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["a"]', "not a JSON object"),
        ('{"text": "one"}', "needs an _id or id"),
        ('{"id": "", "text": "one"}', "needs an _id or id"),
        ('{"id": true, "text": "one"}', "needs an _id or id"),
        ('{"id": 1.5, "text": "one"}', "needs an _id or id"),
        ('{"id": "a"}', "text that is not empty"),
        ('{"id": "a", "text": " "}', "text that is not empty"),
        ('{"id": "a", "text": 3}', "text that is not empty"),
        ('{"id": "q", "text": "one"}', "stands twice, first on line 1"),
    ],
)
def test_a_bad_query_is_refused_with_file_and_line(file, line: str, reason: str) -> None:
    path = file('{"id": "q", "text": "fine"}\n\n' + line + "\n")
    with pytest.raises(CorpusError, match=f"file.jsonl:3: .*{reason}") as caught:
        read_queries(path)
    assert caught.value.exit_code == 4
    assert len(str(caught.value)) < 300 + len(path)


def test_bytes_that_are_not_utf8_are_refused_with_file_and_line(file) -> None:
    with pytest.raises(CorpusError, match=r"file\.jsonl:2: not UTF-8 \(byte 4 of the line\)"):
        read_queries(file(b'{"id": "q", "text": "fine"}\n123\xff\n'))


@pytest.mark.parametrize("read", [read_queries, read_qrels])
def test_a_file_that_cannot_be_read_is_an_error_of_the_input(read, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(CorpusError, match="cannot be read"):
            read(str(path))


EXPECTED = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 1}}


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t1\n",
        "q1\td1\t2\r\nq1\td2\t0\r\n\r\nq2\td1\t1",
        "q1 0 d1 2\nq1 0 d2 0\nq2 0 d1 1\n",
        "q1\t0\td1\t2\nq1\t0\td2\t0\nq2\t0\td1\t1\n",
        "\ufeffquery-id corpus-id score\nq1   d1 2\nq1 d2 0\nq2 d1 1\n",
    ],
    ids=["BEIR", "BEIR without header", "TREC", "TREC with tabs", "spaces"],
)
def test_judgements_are_read_as_beir_and_trec_write_them(file, content: str) -> None:
    assert read_qrels(file(content)) == EXPECTED


def test_an_id_with_spaces_stands_between_tabs(file) -> None:
    assert read_qrels(file("query one\tdocument one\t1\n")) == {"query one": {"document one": 1}}


@pytest.mark.parametrize(
    ("line", "reason"), [("q1\td1", "2 columns"), ("a b c d e", "5 columns"), ("q1 0 d1 high", "'high' is no integer")]
)
def test_a_bad_judgement_is_refused_with_file_and_line(file, line: str, reason: str) -> None:
    with pytest.raises(CorpusError, match=f"file.jsonl:2: .*{reason}"):
        read_qrels(file("q1 0 d1 1\n" + line + "\n"))
