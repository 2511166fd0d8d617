"""A flipped bit or a cut end anywhere in an index: `verify --deep` says so, or every answer is what it was."""

from __future__ import annotations

import logging
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from fakes import FakeEncoder, fake_vector
from indexes import build, records

import search.nearest
from indexer.delete import delete_documents
from indexer.encoder.contract import Contract
from indexer.errors import IndexerError
from indexer.maintenance.verify import verify_index
from search import Searcher

SMALL, FULL = 200, 2_000
QUERIES = ["text number 3", "a lake", "word42", "something else"]
WHERES = [None, {"even": True}, {"n": {"$gte": 20}}, {"tags": {"$contains": "t1"}}, {"$not": {"n": 4}}]


class ContractEncoder(FakeEncoder):
    """Embeds queries in another way as soon as anything in the contract is another."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract)
        self.salt = "" if repr(contract) in KNOWN else repr(contract)

    def close(self) -> None:
        pass

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        return np.stack([fake_vector(self.salt + text) for text in texts])


KNOWN = {repr(FakeEncoder().contract), repr(FakeEncoder(chunk_tokens=4).contract)}


@contextmanager
def searching(directory: Path) -> Iterator[Searcher]:
    """Open a searcher that uses FAISS and embeds as the contract in the index says."""
    with (
        patch("search.searcher.open_query_encoder", lambda contract, **_: ContractEncoder(contract)),
        patch.object(search.nearest, "EXACT_SLOTS", 3),
        Searcher.open(directory) as searcher,
    ):
        yield searcher


def answers(directory: Path) -> list[object]:
    """Return all that an index answers: hits with scores, texts and metadata, with and without filters, its size."""
    with searching(directory) as searcher:
        found: list[object] = [
            [(hit.id, hit.score, hit.text, hit.metadata, hit.span) for hit in hits]
            for where in WHERES
            for passages in (False, True)
            for hits in searcher.search_batch(QUERIES, 7, where=where, passages=passages)
        ]
        return [*found, len(searcher), searcher.is_complete, searcher.contract, searcher.text_fields]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, list[object]]:
    """Indexes with several commits, dead slots, a generation and a tail, one of them in passages, and their answers."""
    folder = tmp_path_factory.mktemp("sound")
    long = [{"id": f"l{i}", "text": " ".join(f"word{i}{j}" for j in range(9)), "n": i, "even": True} for i in range(15)]
    build(folder / "whole", records(40))
    build(folder / "passages", long, encoder=FakeEncoder(chunk_tokens=4))
    for out, encoder in ((folder / "whole", FakeEncoder()), (folder / "passages", FakeEncoder(chunk_tokens=4))):
        build(out, records(12, 60), encoder=encoder, adds=True)
        build(out, [{"id": "d61", "text": "a lake", "n": -1, "tags": []}], encoder=encoder, adds=True)
        delete_documents(out, ["d3", "l3", "d64"])
    found = {out: answers(out) for out in sorted(folder.iterdir())}
    assert all(verify_index(out, deep=True) == [] for out in found)
    return found


def damage(path: Path, chance: random.Random) -> str:
    """Flip one bit of a file, or cut its end off; return what was done."""
    data = bytearray(path.read_bytes())
    if chance.random() < 0.2:
        keep = chance.choice([0, chance.randrange(len(data)), len(data) - chance.randint(1, min(64, len(data)))])
        path.write_bytes(data[:keep])
        return f"{path.name} cut to {keep} of {len(data)} bytes"
    bit = chance.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit % 8} of byte {bit // 8} of {path.name} flipped"


def outcome(directory: Path, expected: list[object]) -> str:
    """Return how an index with one damaged file is dealt with; the answers are asked for in any case."""
    try:
        problems = verify_index(directory, deep=True)
    except IndexerError as error:  # e.g. a newer format, another application's database
        problems = [str(error)]
    try:
        same = answers(directory) == expected
    except IndexerError:
        same = False
    if problems:
        return "found"
    return "the same answers" if same else "WRONG"


def test_damage_is_found_or_changes_no_answer(
    sound: dict[Path, list[object]],
    tmp_path: Path,
    torture: bool,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)  # each FAISS file that exact search takes the place of is a warning
    chance = random.Random(20261124)
    n_trials, counts, wrong = FULL if torture else SMALL, Counter[str](), []
    for trial in range(n_trials):
        source = list(sound)[trial % len(sound)]
        copy = Path(shutil.copytree(source, tmp_path / str(trial)))
        files = sorted(path for path in copy.iterdir() if path.stat().st_size)
        weights = [4 if path.name == "index.db" else 1 for path in files]  # most kinds of content live there
        done = damage(chance.choices(files, weights)[0], chance)
        result = outcome(copy, sound[source])
        counts[result] += 1
        if result == "WRONG":
            wrong.append(f"{source.name}: {done}")
        shutil.rmtree(copy)
    with capsys.disabled():
        print(f"\ndamage: {n_trials} trials, {dict(counts)}")
    assert wrong == []
    assert counts["found"] > n_trials / 3
