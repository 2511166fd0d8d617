"""An index from elsewhere gets the generation that was asked of it, but FAISS no string of somebody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from indexes import build, records, sql

from indexer import Index
from indexer.maintenance.importing import import_index

NOTHING = {"kind": None, "target_recall": None, "max_memory_bytes": None}


@pytest.mark.parametrize(("asked", "kind"), [("hnsw", "hnsw"), ("HNSW16,SQ8", "flat")])
def test_what_was_asked_of_its_generation_holds_but_for_a_factory_string(asked: str, kind: str, tmp_path: Path) -> None:
    build(tmp_path, records(60))
    Index(tmp_path).rebuild(kind=asked, target_recall=0.8)
    assert import_index(tmp_path).dropped_generations == 1
    ((made, details),) = sql(tmp_path, "SELECT kind, details FROM generations")
    assert (made, json.loads(details)["asked"]["target_recall"]) == (kind, 0.8)


def test_an_index_of_before_it_was_kept_beside_the_row_gets_it_too(tmp_path: Path) -> None:
    build(tmp_path, records(60))
    Index(tmp_path).rebuild(kind="hnsw")
    sql(tmp_path, "DELETE FROM meta WHERE key = 'asked'")
    import_index(tmp_path)
    assert sql(tmp_path, "SELECT kind FROM generations") == [("hnsw",)]


def test_a_factory_string_is_forgotten_even_where_there_is_nothing_to_index(tmp_path: Path) -> None:
    build(tmp_path, [])
    sql(tmp_path, "INSERT INTO meta VALUES ('asked', ?)", json.dumps({**NOTHING, "kind": "HNSW16,SQ8"}))
    import_index(tmp_path)
    assert sql(tmp_path, "SELECT value FROM meta WHERE key = 'asked'") == [(json.dumps(NOTHING),)]


def test_what_the_user_should_know_of_the_new_generation_is_said(tmp_path: Path) -> None:
    build(tmp_path, records(60))
    Index(tmp_path).rebuild(kind="flat", max_index_memory=1_000)
    assert "more than --max-index-memory" in import_index(tmp_path).warnings[0]


def test_one_that_cannot_be_read_counts_for_nothing(tmp_path: Path) -> None:
    build(tmp_path, records(60))
    sql(tmp_path, "DELETE FROM generations")
    sql(tmp_path, "UPDATE meta SET value = 'hns' WHERE key = 'asked'")
    import_index(tmp_path)
    assert sql(tmp_path, "SELECT kind FROM generations") == [("flat",)]
