"""The commands of the pages about real corpora run as they stand, on the first records of the same files."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from places import DATA
from test_docs_pages import blocks, commands, on_a_terminal, page

N_RECORDS = 1_300  # of the packages; the first with all their fields come late
FILES = {
    "corpora.md": ("emotion/train.jsonl", "banking77/train.csv", "agnews/test.csv", "package_summaries.jsonl.gz"),
    "tutorial-emotion.md": ("emotion/train.jsonl", "emotion/validation.jsonl"),
}
HIT = re.compile(r"^ +\d+  +-?\d\.\d+  ", re.MULTILINE)


def take_sample(source: Path, target: Path) -> None:
    """Copy the first records of a file; none of these files has a record of several lines so early."""
    target.parent.mkdir(exist_ok=True)
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rb") as lines, opened(target, "wb") as sample:
        sample.writelines(islice(lines, N_RECORDS if source.suffix == ".gz" else N_RECORDS // 5))


def sample_files(name: str, folder: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("the corpora do not lie beside the project")
    for file in FILES[name]:
        take_sample(DATA / file, folder / file)
        if name == "tutorial-emotion.md":  # the page has its files at hand
            shutil.copy(folder / file, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_command_of_the_page_runs(name: str, tmp_path: Path, minilm: str) -> None:
    sample_files(name, tmp_path)
    shown = [pair for language, code in blocks(page(name)) if not language for pair in commands(code)]
    assert len(shown) >= 6
    for command, output in shown:
        code, stdout, stderr = on_a_terminal(command, tmp_path)
        assert code == 0, f"{command}: {stderr}"
        if command.startswith("index query"):
            assert len(HIT.findall(stdout)) == len(HIT.findall(output)) > 0, command
        if "--explain" in command:
            assert stderr.startswith("plan: ")
        for line in output.splitlines():
            if line.startswith("warning: "):
                assert line in stderr.splitlines()
        if command.startswith("index build"):
            assert " documents, " in stdout
            assert " encoded (" in stdout


@pytest.mark.slow
def test_the_python_of_the_tutorial_runs(tmp_path: Path, minilm: str) -> None:
    sample_files("tutorial-emotion.md", tmp_path)
    code = "\n".join(code for language, code in blocks(page("tutorial-emotion.md")) if language == "python")
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "'hidden_state'" in done.stdout
    assert 0.0 < float(done.stdout.split()[-1]) < 1.0
