"""Every kind of damage is reported, and a sound index never is."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from fakes import FakeEncoder
from indexes import build, flip_byte, only, records, sql

from indexer import Index
from indexer.delete import delete_documents
from indexer.errors import IndexNotFoundError
from indexer.maintenance.verify import verify_index

LONG = [{"id": f"l{i}", "text": " ".join(f"word{i}{j}" for j in range(9)), "n": i} for i in range(6)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "index"
    build(out, records(30))
    build(out, [{**records(2)[1], "text": "changed"}, *records(5, 30)])
    delete_documents(out, ["d2"])
    assert verify_index(out, deep=True) == []
    return out


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "index"))


def interrupted(out: Path) -> None:
    def breaks():
        yield from records(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(out, breaks())


SOUND: dict[str, Callable[[Path], object]] = {
    "fresh": lambda out: build(out, records(9)),
    "empty": lambda out: build(out, []),
    "without metadata": lambda out: build(out, [{"id": "a", "text": "words"}]),
    "all deleted": lambda out: (build(out, records(9)), delete_documents(out, [], {})),
    "interrupted": interrupted,
    "in passages": lambda out: build(out, LONG, encoder=FakeEncoder(chunk_tokens=4)),
    "in passages, some deleted": lambda out: (
        build(out, LONG, encoder=FakeEncoder(chunk_tokens=4)),
        delete_documents(out, ["l1"]),
    ),
    "texts of every plane": lambda out: build(
        out, [{"id": "\u202e", "text": "a\u0301 \U0001f680 \uffff", "é": "\x01"}]
    ),
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_index_has_no_problem(name: str, deep: bool, tmp_path: Path) -> None:
    SOUND[name](tmp_path)
    assert verify_index(tmp_path, deep=deep) == []


STRUCTURE = [
    "DELETE FROM documents WHERE id = 'd3'",
    "DELETE FROM documents",
    "DELETE FROM metadata WHERE document = 4",
    "INSERT INTO metadata (document) VALUES (999)",
    "DELETE FROM passages WHERE slot = 3",
    "DELETE FROM passages",
    "UPDATE passages SET document = 5 WHERE slot = 3",
    "UPDATE passages SET document = NULL WHERE slot = 3",
    "UPDATE passages SET document = 999 WHERE slot = 3",
    "UPDATE passages SET slot = 999 WHERE slot = 3",
    "DELETE FROM blocks",
    "DELETE FROM blocks WHERE first_slot = 0",
    "UPDATE meta SET value = value - 1 WHERE key = 'n_rows'",
    "UPDATE meta SET value = value + 1 WHERE key = 'n_rows'",
    "UPDATE meta SET value = 'vectors-' || hex(randomblob(16)) || '.f16' WHERE key = 'vector_file'",
    "UPDATE meta SET value = lower(hex(randomblob(16))) WHERE key = 'index_uuid'",
    "UPDATE meta SET value = 17 WHERE key = 'dim'",
    "UPDATE meta SET value = 'f99' WHERE key = 'vector_dtype'",
    "DELETE FROM meta WHERE key = 'dim'",
    "DELETE FROM meta WHERE key = 'contract'",
    "DELETE FROM meta",
    "DELETE FROM sources",
    "DELETE FROM canaries",
    "UPDATE meta SET value = json_set(value, '$.documents', 7) WHERE key = 'totals'",
    "UPDATE meta SET value = '{}' WHERE key = 'totals'",
    "UPDATE passages SET n_tokens = n_tokens + 1 WHERE slot = 3",
    "DROP TABLE fields",
    "UPDATE documents SET metadata = '{' WHERE id = 'd3'",
    "UPDATE generations SET n_slots = n_slots - 1",
    "UPDATE generations SET n_bytes = n_bytes + 1",
    "UPDATE generations SET name = 'gen-' || lower(hex(randomblob(16))) || '.faiss'",
    "UPDATE generations SET kind = 'magic'",
]
CONTENT = [
    "UPDATE documents SET text = text || ' ' WHERE id = 'd3'",
    "UPDATE documents SET metadata = replace(metadata, '3', '4') WHERE id = 'd3'",
    "UPDATE documents SET content_hash = zeroblob(16) WHERE id = 'd3'",
    "UPDATE passages SET text_key = text_key + 1 WHERE slot = 3",
    "UPDATE metadata SET n = -1 WHERE document = 4",
    "DELETE FROM fields",
    "DELETE FROM fields WHERE name = 'n'",
    "UPDATE fields SET n = n + 1 WHERE name = 'n'",
    "UPDATE fields SET type = 'string' WHERE name = 'n'",
    "INSERT INTO fields VALUES ('ghost', 'string', 1)",
    "UPDATE blocks SET crc32 = crc32 + 1 WHERE first_slot = 0",
    "UPDATE generations SET sha256 = 'x'",
]


def test_what_a_writer_does_meanwhile_is_no_problem(index: Path) -> None:
    ended = Event()

    def write() -> int:
        n = 0
        while not ended.is_set():
            build(index, [{"id": f"more {n}", "text": f"more {n}", f"field{n % 7}": n}])
            Index(index).rebuild(kind="flat")
            delete_documents(index, [f"more {n - 1}"])
            Index(index).compact()
            n += 1
        return n

    with ThreadPoolExecutor(1) as threads:
        written = threads.submit(write)
        try:
            problems = [problem for deep in [True, False] * 12 for problem in verify_index(index, deep=deep)]
        finally:
            ended.set()
        assert written.result() > 2
    assert problems == []
    assert verify_index(index, deep=True) == []


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("statement", STRUCTURE)
def test_damage_to_the_structure_is_reported(statement: str, deep: bool, index: Path) -> None:
    sql(index, statement)
    problems = verify_index(index, deep=deep)
    assert problems
    assert all("\n" not in problem and str(index) in problem for problem in problems)


@pytest.mark.parametrize("statement", CONTENT)
def test_damage_to_the_content_is_reported_by_a_deep_check(statement: str, index: Path) -> None:
    sql(index, statement)
    assert verify_index(index, deep=True)


@pytest.mark.parametrize("pattern", ["vectors-*", "gen-*"])
def test_a_flipped_byte_anywhere_in_a_file_is_reported_by_a_deep_check(pattern: str, index: Path) -> None:
    path = only(index, pattern)
    size = path.stat().st_size
    chosen = random.Random(0)
    for offset in [0, size - 1, min(4095, size // 2), *(chosen.randrange(size) for _ in range(15))]:
        flip_byte(path, offset)
        problems = verify_index(index, deep=True)
        assert len(problems) == 1, offset
        assert str(path) in problems[0]
        flip_byte(path, offset)
    assert verify_index(index, deep=True) == []


@pytest.mark.parametrize("part", [b"text number 7", b'"n":7', b"d7"], ids=["text", "metadata", "id"])
def test_a_flipped_byte_in_the_database_is_reported_by_a_deep_check(part: bytes, index: Path) -> None:
    path = index / "index.db"
    at = path.read_bytes().rindex(part) + len(part) - 1
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert verify_index(index, deep=True)


def test_a_damaged_page_of_the_database_is_reported(index: Path) -> None:
    path = index / "index.db"
    path.write_bytes(path.read_bytes()[:8192].ljust(path.stat().st_size, b"\xff"))
    assert verify_index(index)


@pytest.mark.parametrize("pattern", ["vectors-*", "gen-*"])
@pytest.mark.parametrize("way", ["truncate", "remove", "replace by a link"])
def test_a_truncated_missing_or_replaced_file_is_reported(pattern: str, way: str, index: Path, tmp_path: Path) -> None:
    path = only(index, pattern)
    match way:
        case "truncate":
            os.truncate(path, path.stat().st_size - 1)
        case "remove":
            path.unlink()
        case _:
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    problems = verify_index(index)
    assert len(problems) == 1
    assert path.name in problems[0]


def test_every_problem_is_reported_not_only_the_first(index: Path) -> None:
    sql(index, "DELETE FROM metadata WHERE document = 4")
    flip_byte(only(index, "vectors-*"), -1)
    flip_byte(only(index, "gen-*"), -1)
    assert len(verify_index(index, deep=True)) == 3


def test_there_must_be_an_index(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError):
        verify_index(tmp_path)
