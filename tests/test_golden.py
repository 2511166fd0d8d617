"""Golden indexes, one of every format ever written; every later version must open, check, query and change them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from fakes import FakeEncoder
from indexes import build, searching, sql

from indexer.maintenance.compact import compact_index
from indexer.maintenance.importing import import_index
from indexer.maintenance.verify import verify_index
from indexer.storage.schema import FORMAT_VERSION

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make import FIRST, SECOND  # noqa: E402

VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.name.startswith("v"))
HELD = {record["id"]: record for record in (*FIRST, *SECOND) if record["id"] != "d"}


@pytest.fixture(params=VERSIONS)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "index"))


def check(out: Path) -> None:
    assert verify_index(out, deep=True) == []
    with searching(out) as searcher:
        hits = {hit.id: hit for hit in searcher.search("has been changed", 100)}
        assert set(hits) == set(HELD)
        assert dict(sql(out, "SELECT id, text FROM documents")) == {id_: each["text"] for id_, each in HELD.items()}
        for id_, record in HELD.items():
            assert hits[id_].text in record["text"]
            assert hits[id_].metadata == {key: value for key, value in record.items() if key not in {"id", "text"}}
        assert hits["e"].score == pytest.approx(1.0, abs=1e-3)
        assert [hit.id for hit in searcher.search("seven eight", 2)] == ["b", "c"]
        (passage,) = searcher.search("five six", 1, passages=True)
        assert (passage.id, passage.span) == ("a", (19, 27))
        assert [hit.id for hit in searcher.search("x", 9, where={"n": {"$gte": 5}, "label": {"$exists": False}})] != []


def test_every_format_up_to_this_one_has_its_golden_index() -> None:
    assert [f"v{version}" for version in range(1, FORMAT_VERSION + 1)] == VERSIONS


def test_it_opens_and_answers_and_every_byte_is_right(index: Path) -> None:
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    check(index)
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before


def test_it_can_be_added_to_compacted_and_taken_in(index: Path) -> None:
    encoder = FakeEncoder(chunk_tokens=4)
    assert build(index, list(HELD.values()), encoder=encoder, adds=True).unchanged == len(HELD)
    assert encoder.texts == []
    assert compact_index(index).dropped == 2
    check(index)
    import_index(index)
    check(index)
