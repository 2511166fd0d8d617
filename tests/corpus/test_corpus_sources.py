"""Sources are named the same each time, and what is no source is refused at once."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from corpora import read

from indexer.config import ReadOptions
from indexer.corpus import check_sources, read_corpus, source_name
from indexer.errors import CorpusError, UsageError

PLAIN = ReadOptions()


def test_standard_input_is_json_lines_and_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}'))
    monkeypatch.setattr(sys, "stdin", stdin)
    check_sources(["-"])
    documents = read("-")
    assert [(d.id, d.place.source, d.place.line, d.place.fraction) for d in documents] == [
        ("1", "-", 1, None),
        ("2", "-", 2, None),
    ]
    assert not stdin.closed


def test_errors_of_the_callers_iterable_pass_through() -> None:
    class OwnError(Exception):
        pass

    def records() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise OwnError

    documents = read_corpus([records()], PLAIN, on_reject=lambda error: pytest.fail(str(error)))
    assert next(documents).place.fraction is None
    with pytest.raises(OwnError):
        next(documents)


def test_an_iterable_is_read_no_further_than_asked() -> None:
    taken = []

    def records() -> Iterator[dict[str, object]]:
        for n in range(100):
            taken.append(n)
            yield {"id": n, "text": "a"}

    with closing(read_corpus([records()], PLAIN)) as documents:
        assert not taken
        next(documents)
    assert taken == [0]


@pytest.mark.parametrize("source", [b"a.jsonl", 7, None, {"text": "a"}, SimpleNamespace()])
def test_what_is_no_source_is_a_usage_error(source: object) -> None:
    for action in (lambda: check_sources([source]), lambda: read_corpus([source], PLAIN), lambda: source_name(source)):
        with pytest.raises(UsageError, match="is not a source"):
            action()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.jsonl", "no such file or directory; supported are .jsonl .json .csv"),
        ("notes.docx", r"files that end in .docx cannot be read; supported are .*hf:NAME"),
        ("README", "files without a suffix cannot be read"),
        ("table.parquet.gz", "files that end in .gz cannot be read"),
        ("empty", "the directory has no file that can be read"),
        ("unknown", "the directory has no file that can be read"),
        ("a\0b.txt", "cannot be opened"),
        ("x" * 300 + ".txt", "cannot be opened"),
    ],
)
def test_sources_that_cannot_be_read_are_refused_at_once(name: str, reason: str, inside: Path) -> None:
    for file in ("notes.docx", "README", "table.parquet.gz"):
        (inside / file).write_text("a")
    (inside / "empty").mkdir()
    (inside / "unknown").mkdir()
    (inside / "unknown" / "a.docx").write_text("a")
    (inside / "unknown" / ".a.txt").write_text("a")
    for action in (lambda: check_sources([name]), lambda: read_corpus([name], PLAIN)):
        with pytest.raises(CorpusError, match=reason) as caught:
            action()
        assert (caught.value.source, caught.value.line) == (name, None)


def test_a_link_that_leads_nowhere_is_named(inside: Path) -> None:
    (inside / "corpus").mkdir()
    (inside / "corpus" / "a.txt").symlink_to(inside / "gone.txt")
    with pytest.raises(CorpusError, match=r"corpus/a.txt: no such file"):
        check_sources(["corpus"])


def test_names_are_absolute_and_stable(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inside / "f").mkdir()
    here = str(inside)
    assert source_name("a.jsonl") == source_name(Path("a.jsonl")) == source_name("f/../a.jsonl") == f"{here}/a.jsonl"
    assert source_name("-") == "-"
    assert source_name("hf:org/set:en@train") == "hf:org/set:en@train"
    assert source_name("hf:f@train") == f"hf:{here}/f@train"
    assert source_name("sqlite:f/a.db?sql=SELECT '?sql='") == f"sqlite:{here}/f/a.db?sql=SELECT '?sql='"
    assert source_name([]) == source_name(iter([])) == "python"
    monkeypatch.chdir(inside / "f")
    assert source_name("../a.jsonl") == f"{here}/a.jsonl"


def test_reading_text_loads_neither_pyarrow_nor_datasets(inside: Path) -> None:
    (inside / "a.jsonl").write_text('{"text": "a"}')
    code = """
import sys
from indexer.config import ReadOptions
from indexer.corpus import check_sources, read_corpus
sources = ["a.jsonl", [{"text": "a"}]]
check_sources(sources)
assert len(list(read_corpus(sources, ReadOptions()))) == 2
print(sorted({"pyarrow", "datasets", "pandas", "huggingface_hub", "torch"} & set(sys.modules)))
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
