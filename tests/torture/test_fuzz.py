"""No bytes bring a reader down: the corpus is replayed always, and with --torture atheris looks for more."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import MODEL, TARGETS
from places import MINILM

CORPUS = Path(__file__).with_name("corpus")
FUZZER = Path(__file__).with_name("fuzzing.py")
RUNS = 1_000_000
MAX_BYTES = 512
HANG_S = 30


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_of_the_corpus_is_answered(target: str, minilm: str) -> None:
    assert minilm == MINILM == MODEL
    inputs = sorted((CORPUS / target).iterdir())
    assert len(inputs) >= 10
    for path in inputs:
        TARGETS[target](path.read_bytes())


def test_what_is_fuzzed_is_the_real_reader() -> None:
    inputs = [b'{"id": "a", "text": "one"}\n', b"id,text\n1,one\n", b"label=joy", b'{"id": 1, "text": "a"}\n']
    for target, data in zip(("jsonl", "csv", "filter", "queries"), inputs, strict=True):
        with pytest.MonkeyPatch.context() as patched:
            for name in ("Place", "compile_filter", "read_queries"):
                patched.setattr(f"fuzzing.{name}", _breaks)
            with pytest.raises(ZeroDivisionError):
                TARGETS[target](data)


def _breaks(*_: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("target", TARGETS)
def test_a_million_inputs_bring_no_reader_down(
    target: str, torture: bool, tmp_path: Path, minilm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not torture:
        pytest.skip("only with --torture")
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; make torture installs it where it has a wheel")
    options = (f"-runs={RUNS}", f"-max_len={MAX_BYTES}", f"-timeout={HANG_S}", "-rss_limit_mb=4096", "-seed=20261124")
    done = subprocess.run(
        [sys.executable, str(FUZZER), target, str(tmp_path), *options, str(CORPUS / target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    log = done.stdout.decode(errors="replace")
    finished = re.search(r"Done (\d+) runs in (\d+) second", log)
    assert done.returncode == 0, log[-4000:]
    assert finished is not None
    assert int(finished[1]) >= RUNS
    with capsys.disabled():
        print(f"\nfuzz {target}: {finished[1]} inputs in {finished[2]} s, none uncaught")
