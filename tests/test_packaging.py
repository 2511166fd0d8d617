"""What is shipped: the wheel, the public names, and what the packages may not do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import indexer
import search

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("indexer/**/*.py"), *ROOT.glob("search/**/*.py")])


@pytest.mark.parametrize("package", [indexer, search])
def test_every_public_name_can_be_imported(package: object) -> None:
    names = package.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(package, name).__doc__


def test_an_unknown_name_is_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = indexer.nothing
    with pytest.raises(AttributeError, match="nothing"):
        _ = search.nothing


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_packages_do_without_pickle_print_and_assert(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                assert not {"pickle", "joblib", "dill"} & {name.name.split(".")[0] for name in names}
            case ast.Call(func=ast.Name(id=name)):
                assert name not in {"print", "eval", "exec"}
            case ast.Assert():
                pytest.fail(f"assert on line {node.lineno}")


@pytest.mark.slow
def test_the_wheel_installs_in_an_empty_environment_and_shows_its_help(tmp_path: Path) -> None:
    """The dependencies are taken from here, so that the test needs no network; that all are declared is checked too."""
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH"}}
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        env=clean,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("clsindex-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if not name.startswith("clsindex-")} == {"indexer", "search"}
    assert {"indexer/py.typed", "search/py.typed"} <= set(names)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    here = next(Path(entry) for entry in sys.path if (Path(entry) / "typer").is_dir())
    (packages / "dependencies.pth").write_text(f"{here}\n", encoding="utf-8")
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "index", "--help"], capture_output=True, text=True, env=clean, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "build" in done.stdout
    code = "import indexer, search; print(indexer.__file__, search.__file__)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, env=clean, cwd=tmp_path).stdout
    assert found.count(str(packages)) == 2


def test_without_a_faiss_wheel_the_error_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'faiss' else find(name, *rest)\n"
        "from indexer import build_index\n"
        "from indexer.errors import MissingExtraError\n"
        f"try: build_index([{{'text': 'a'}}], {str(tmp_path / 'x')!r}, model='package:nothing')\n"
        "except MissingExtraError as error: sys.stdout.write(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "clsindex[cpu]" in done.stdout, done.stderr
    assert not (tmp_path / "x").exists()
