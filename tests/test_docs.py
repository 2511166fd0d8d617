"""The documents say what is so."""

from __future__ import annotations

import ast
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FORMAT = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
INDEX = str(Path(sys.executable).parent / "index")


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


@pytest.fixture(scope="module")
def demo_index(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo.index"
    command = next(line for line in README.splitlines() if line.startswith("$ index build data/corpus.jsonl"))
    words = [str(out) if word == "demo.index" else word for word in command.split()[2:]]
    assert minilm in words
    done = subprocess.run([INDEX, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out


def test_the_readme_shows_what_its_query_prints(demo_index: Path) -> None:
    block = next(block for block in blocks(README, "") if "$ index query" in block)
    lines = block.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("$ index query"))
    words = [str(demo_index) if word == "demo.index" else word for word in lines[at].split()[2:]]
    done = subprocess.run([INDEX, *words], capture_output=True, text=True)
    shown = re.findall(r"^ +(\d+)  +([\d.]+)  (\S+)", "\n".join(lines[at + 1 :]), re.MULTILINE)
    printed = re.findall(r"^ +(\d+)  +([\d.]+)  (\S+)", done.stdout, re.MULTILINE)
    assert [(rank, id_) for rank, _, id_ in printed] == [(rank, id_) for rank, _, id_ in shown]
    for (_, score, _), (_, wanted, _) in zip(printed, shown, strict=True):
        assert float(score) == pytest.approx(float(wanted), abs=5e-3)


def test_the_python_example_of_the_readme_runs(tmp_path: Path, minilm: str) -> None:
    (code,) = blocks(README, "python")
    code = code.replace("BAAI/bge-small-en-v1.5", minilm).replace("my.index", str(tmp_path / "my.index"))
    code = code.replace("corpus.jsonl", str(ROOT / "data" / "corpus.jsonl"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 hits" in done.stdout


def test_every_command_stands_in_the_readme() -> None:
    listing = subprocess.run([INDEX, "--help"], capture_output=True, text=True).stdout
    commands = re.findall(r"^  ([a-z]+)  ", listing.split("Commands:")[1], re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        assert f"index {command} DIR" in README or f"index {command} SOURCE" in README


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_format_page_names_every_table_and_column(demo_index: Path) -> None:
    with sqlite3.connect(demo_index / "index.db") as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            if table.startswith("sqlite_"):
                continue
            assert f"| `{table}` |" in FORMAT
            row = next(line for line in FORMAT.splitlines() if line.startswith(f"| `{table}` |"))
            if table in {"_sqlite_migrations", "metadata"}:
                continue
            for column in connection.execute(f"PRAGMA table_info({table})"):
                assert f"`{column[1]}`" in row
        for (key,) in connection.execute("SELECT key FROM meta"):
            assert f"`{key}`" in FORMAT


def test_the_reader_of_the_format_page_gets_the_vectors(demo_index: Path) -> None:
    (code,) = blocks(FORMAT, "python")
    scope: dict[str, object] = {}
    exec(code.replace("my.index", str(demo_index)), scope)  # the page's own example
    vectors = scope["vectors"]
    assert isinstance(vectors, np.memmap)
    assert vectors.shape == (344, 384)
    assert np.linalg.norm(vectors.astype(np.float32), axis=1) == pytest.approx(np.ones(344), abs=1e-3)


def test_every_error_class_is_drawn_in_the_tree_of_errors() -> None:
    source = (ROOT / "indexer" / "errors.py").read_text(encoding="utf-8")
    module = ast.parse(source)
    tree = ast.get_docstring(module) or ""
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            assert node.name in tree


def test_the_page_of_the_code_has_every_module_and_no_other() -> None:
    page = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    where, ideas = page.split("## Where an idea belongs")
    listed = set()
    for cell in re.findall(r"^\| (`.+?) \|", where, re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", cell)
        listed |= {first} | {f"{first.split('/')[0]}/{other}" for other in others}
    packages = [path for name in ("indexer", "search") for path in (ROOT / name).iterdir()]
    there = {f"{path.parent.name}/{path.name}" for path in packages if path.suffix == ".py"}
    there |= {f"{path.parent.name}/{path.name}/" for path in packages if (path / "__init__.py").is_file()}
    assert listed == there - {"indexer/__init__.py", "search/__init__.py"}
    modules = [str(path) for name in ("indexer", "search") for path in (ROOT / name).rglob("*.py")]
    for name in re.findall(r"`([\w/]+\.py)`", ideas):
        assert any(path.endswith(f"/{name}") for path in modules), name


def test_the_sample_corpus_is_what_its_page_says() -> None:
    records = [json.loads(line) for line in (ROOT / "data" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    queries = [json.loads(line) for line in (ROOT / "data" / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    judgements = [
        line.split("\t") for line in (ROOT / "data" / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    ids = {record["id"] for record in records}
    assert len(ids) == len(records) >= 300
    assert len({record["text"] for record in records}) == len(records)
    assert len(queries) >= 40
    assert {query["_id"] for query in queries} == {query for query, _, _ in judgements}
    assert {document for _, document, _ in judgements} <= ids
    page = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for n in (len(records), len(queries), len(judgements)):
        assert str(n) in page
