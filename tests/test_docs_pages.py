"""The pages of docs/ are true: their commands and Python run in order, and print what the pages show."""

from __future__ import annotations

import inspect
import io
import os
import pty
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import indexer
import search

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COLUMNS = 110
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SCORE_TOLERANCE = 5e-3
needs_sqlite3 = pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 tool is not installed")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the blocks of code of a page, each with its language."""
    return BLOCK.findall(text)


def agrees(shown: str, printed: str) -> bool:
    """Whether a text is the one that is shown: `...` is anything, numbers with a point may differ by 5e-3."""
    shown, printed = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (shown, printed))
    parts = re.split(r"(\.\.\.|-?\d+\.\d+)", shown)
    numbers = [float(part) for part in parts[1::2] if part != "..."]
    for i, part in enumerate(parts):
        is_number = i % 2 == 1 and part != "..."
        parts[i] = r"(-?\d+\.\d+)" if is_number else ".*?" if part == "..." else re.escape(part)
    found = re.fullmatch("".join(parts), printed, re.DOTALL)
    return found is not None and all(
        float(number) == pytest.approx(wanted, abs=SCORE_TOLERANCE)
        for number, wanted in zip(found.groups(), numbers, strict=True)
    )


def on_a_terminal(command: str, folder: Path) -> tuple[int, str, str]:
    """Run a command of the shell with a terminal as stdout; return exit code, stdout and stderr."""
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": paths, "COLUMNS": str(COLUMNS)}
    ours, theirs = pty.openpty()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            ["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=theirs, stderr=errors, cwd=folder, env=environment
        )
        os.close(theirs)
        printed = b"".join(iter(lambda: _read(ours), b""))
        os.close(ours)
        process.wait()
        errors.seek(0)
        return process.returncode, printed.decode().replace("\r\n", "\n"), errors.read().decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so at the end
        return b""


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with the output that is shown under it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, shown = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*)\n(.*)", part, re.DOTALL).groups()
        yield command, shown


def run_console(block: str, folder: Path) -> None:
    for command, shown in commands(block):
        code, stdout, stderr = on_a_terminal(command, folder)
        assert code == 0, f"{command}: {stderr}"
        said = stderr.splitlines()
        lines = [line for line in shown.splitlines() if line == "..." or line not in said]
        assert agrees("\n".join(lines), stdout), f"{command}\n{stdout}{stderr}"


def run_page(name: str, folder: Path) -> None:
    """Run a page from top to bottom; a block without a language shows what the Python before it prints."""
    scope: dict[str, object] = {}
    printed = ""
    for language, code in blocks(page(name)):
        match language:
            case "console":
                run_console(code, folder)
            case "python":
                with redirect_stdout(io.StringIO()) as stdout:
                    exec(code, scope)  # the page's own example
                printed = stdout.getvalue()
            case "":
                assert agrees(code, printed), printed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data/ in it, where the blocks are run."""
    shutil.copytree(ROOT / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_agrees_compares_numbers_loosely_and_all_else_to_the_letter() -> None:
    assert agrees("1  0.668  sub-008 ...\n", "1  0.664  sub-008 My Flow bike\nwas stolen")
    assert not agrees("1  0.668  sub-008", "1  0.662  sub-008")
    assert not agrees("1  0.668  sub-008", "1  0.668  sub-009")
    assert not agrees("1  0.668  sub-008", "2  0.668  sub-008")
    assert not agrees("one line", "one line\nand another")


@needs_sqlite3
@pytest.mark.parametrize("name", ["quickstart.md", "models.md"])
def test_the_commands_of_a_page_run_and_print_what_it_shows(name: str, folder: Path, minilm: str) -> None:
    assert minilm in page(name)
    run_page(name, folder)


def test_the_python_page_runs_and_prints_what_it_shows(folder: Path, minilm: str) -> None:
    assert minilm in page("python.md")
    run_page("python.md", folder)


def test_the_python_page_shows_every_public_name_and_its_signature() -> None:
    text = page("python.md")
    headings = set(re.findall(r"\w+", " ".join(re.findall(r"^## (.*)$", text, re.MULTILINE))))
    assert set(indexer.__all__) | set(search.__all__) <= headings | {"IndexerError"}
    shown = " ".join(code for language, code in blocks(text) if language == "text").split()
    for name in ("build_index", "Index", "HiddenState"):
        assert signature(name, getattr(indexer, name)) in " ".join(shown)
    for owner in (indexer.Index, search.Searcher):
        for name, method in inspect.getmembers(owner, callable):
            if not name.startswith("_"):
                assert signature(f"{owner.__name__}.{name}", method) in " ".join(shown)


def signature(name: str, function: Callable[..., object]) -> str:
    """Return a signature as the page shows it: without the types of arguments, in one line."""
    found = inspect.signature(function)
    arguments = [each.replace(annotation=each.empty) for each in found.parameters.values() if each.name != "self"]
    result = "" if found.return_annotation in {found.empty, "None"} and "." not in name else found.return_annotation
    text = str(found.replace(parameters=arguments, return_annotation=found.empty))
    text = re.sub(r"<\w+\.\w+: ('\w+')>", r"\1", text)
    return f"{name}{text} -> {result}" if result else f"{name}{text}"


def test_the_python_page_lists_the_fields_of_what_it_returns() -> None:
    text = page("python.md")
    for kind, heading in (
        (indexer.BuildReport, "BuildReport"),
        (indexer.Progress, "Progress, Phase"),
        (search.Hit, "Hits, Hit"),
    ):
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
        assert set(re.findall(r"`(\w+)`", "".join(cells))) == set(inspect.signature(kind).parameters)


def test_arguments_of_build_index_are_options_of_the_command() -> None:
    section = page("commands.md").split("\n## index build\n")[1].split("\n## ")[0]
    options = {name.replace("-", "_") for name in re.findall(r"--([\w-]+)", section)}
    assert set(inspect.signature(indexer.build_index).parameters) - options == {"source", "on_progress"}


def test_the_page_of_commands_is_what_make_docs_would_write() -> None:
    made = runpy.run_path(str(DOCS / "make_commands.py"))["commands_page"]()
    assert page("commands.md") == made, "run: make docs"
    assert made.count("\n## index ") >= 7
    assert "INDEX_QUERY_TOP_K" in made


def test_every_page_stands_in_the_list_of_pages() -> None:
    listed = set(re.findall(r"^\| \[.*?\]\((.*?)\)", page("README.md"), re.MULTILINE))
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} <= listed


@pytest.mark.parametrize("name", ["README.md", "quickstart.md", "commands.md", "python.md", "models.md", "errors.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page(name)):
        path = (DOCS / target) if target else DOCS / name
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
