"""Settings that no other checksum covers are sealed, and a damaged value is a line of ours, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from indexes import build, records, searching, sql

from indexer.errors import IndexCorruptError
from indexer.maintenance.verify import verify_index

SETTINGS = [
    "UPDATE meta SET value = replace(value, '\"cls\"', '\"mean\"') WHERE key = 'contract'",
    "UPDATE meta SET value = replace(value, '\"text\"', '\"body\"') WHERE key = 'read'",
    "UPDATE meta SET value = 1 - value WHERE key = 'complete'",
    "UPDATE canaries SET text = 'x' WHERE position = 2",
]
VALUES = [
    "UPDATE documents SET metadata = '{\"n\": '",
    "UPDATE documents SET metadata = x'ff'",
    "UPDATE documents SET text = CAST(x'ff' AS TEXT) WHERE id = 'd3'",
    "UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE key = 'created_at'",
    "UPDATE meta SET value = 'many' WHERE key = 'n_rows'",
    "UPDATE meta SET value = -1 WHERE key = 'n_rows'",
    "UPDATE meta SET value = 0 WHERE key = 'dim'",
    "UPDATE meta SET value = '../../etc' WHERE key = 'index_uuid'",
    "UPDATE meta SET value = '{' WHERE key = 'contract'",
    "UPDATE generations SET details = '{'",
    "DELETE FROM passages WHERE slot = 3",
]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build(tmp_path, records(9))
    return tmp_path


@pytest.mark.parametrize("statement", SETTINGS)
def test_a_changed_setting_is_found_and_no_query_is_answered_by_it(statement: str, index: Path) -> None:
    sql(index, statement)
    (problem,) = verify_index(index)
    assert "its settings are not those that were stored" in problem
    with pytest.raises(IndexCorruptError, match="settings"), searching(index):
        pass


def test_an_index_from_before_the_seal_is_read(index: Path) -> None:
    sql(index, "DELETE FROM meta WHERE key = 'seal'")
    assert verify_index(index, deep=True) == []
    build(index, records(12))
    assert verify_index(index, deep=True) == []


@pytest.mark.parametrize("statement", VALUES)
def test_a_damaged_value_is_found_and_a_query_says_so_in_one_line(statement: str, index: Path) -> None:
    sql(index, statement)
    assert verify_index(index, deep=True)
    with pytest.raises(IndexCorruptError, match=r"damaged|settings") as caught, searching(index) as searcher:
        searcher.search("text number 3", 9)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "damaged"),
    [
        (b"(first_slot INTEGER", b"(first_slo\xf4 INTEGER"),  # Python's complaint, without a code
        (b"CREATE TABLE blocks", b"C\xd2EATE TABLE blocks"),  # SQLite's, which Python cannot decode
    ],
)
def test_a_damaged_schema_is_a_line_of_ours(stored: bytes, damaged: bytes, index: Path) -> None:
    path = index / "index.db"
    data = path.read_bytes()
    assert data.count(stored) == 1
    path.write_bytes(data.replace(stored, damaged))
    assert len(verify_index(index, deep=True)) == 1
    with pytest.raises(IndexCorruptError, match="damaged"), searching(index):
        pass
