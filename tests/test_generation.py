"""Generations: FAISS against brute force, when they are built anew, and what a bad one costs."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEncoder, fake_vector
from indexes import Oracle, build, flip_byte, only, records, searching, sql

import indexer.ann.generation
import indexer.upkeep
from indexer.ann.generation import Generation, is_usable
from indexer.ann.kinds import AnnOptions, Kind, choose_recipe
from indexer.config import VectorDtype
from indexer.delete import delete_documents
from indexer.errors import IndexCorruptError, MissingExtraError, StorageError
from indexer.maintenance.verify import verify_index
from indexer.storage.generations import GenerationRow
from indexer.storage.snapshot import SnapshotReader

N, DIM = 200, 16


@pytest.fixture(scope="module", params=VectorDtype)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "index"
    build(out, records(N), vector_dtype=request.param)
    return out


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "index"))


def row_of(out: Path) -> GenerationRow:
    with closing(SnapshotReader(out)) as reader:
        row = reader.snapshot().generation
    assert row is not None
    return row


def stored(out: Path) -> np.ndarray:
    dtype = np.float16 if list(out.glob("*.f16")) else np.float32
    return np.stack([fake_vector(record["text"]).astype(dtype).astype(np.float32) for record in records(N)])


@pytest.mark.parametrize("share", [None, 1.0, 0.5, 0.01, 0.0])
@pytest.mark.parametrize("k", [1, 10, N + 7])
def test_a_generation_finds_the_nearest_allowed_slots(built: Path, k: int, share: float | None) -> None:
    generation = Generation(built, row_of(built), DIM)
    queries = np.stack([fake_vector(f"query {i}") for i in range(5)])
    allowed = None if share is None else np.random.default_rng(0).random(N) < share
    bits = None if allowed is None else np.packbits(allowed, bitorder="little")
    scores, slots = generation.index.search(queries, k, allowed=bits)
    assert scores.shape == slots.shape == (5, min(k, N))
    for query, near, row in zip(queries, slots, scores, strict=True):
        truth = stored(built) @ query
        candidates = np.arange(N) if allowed is None else np.flatnonzero(allowed)
        expected = candidates[np.argsort(-truth[candidates], kind="stable")][:k]
        np.testing.assert_array_equal(near[: len(expected)], expected)
        np.testing.assert_allclose(row[: len(expected)], truth[expected], atol=1e-5)
        assert (near[len(expected) :] == -1).all()


def test_a_generation_is_a_stock_faiss_file_whose_ids_are_slots(built: Path) -> None:
    import faiss

    row = row_of(built)
    index = faiss.read_index(str(built / row.name))
    assert (index.ntotal, index.d, index.metric_type) == (N, DIM, faiss.METRIC_INNER_PRODUCT)
    np.testing.assert_array_equal(index.reconstruct_n(0, N), stored(built))
    assert row.sha256 == hashlib.sha256((built / row.name).read_bytes()).hexdigest()
    assert row.n_bytes == (built / row.name).stat().st_size


@pytest.mark.parametrize("offset", [0, 100, -1])
def test_a_changed_byte_is_noticed(index: Path, offset: int) -> None:
    row = row_of(index)
    flip_byte(index / row.name, offset)
    with pytest.raises(IndexCorruptError, match="damaged"):
        Generation(index, row, DIM)
    assert not is_usable(index, row, DIM)


def test_a_truncated_a_missing_and_a_misfit_generation_are_noticed(index: Path) -> None:
    row = row_of(index)
    with pytest.raises(IndexCorruptError, match="dimensions"):
        Generation(index, row, DIM + 1)
    os.truncate(index / row.name, row.n_bytes - 1)
    with pytest.raises(IndexCorruptError):
        Generation(index, row, DIM)
    (index / row.name).unlink()
    with pytest.raises(FileNotFoundError):
        Generation(index, row, DIM)
    assert not is_usable(index, row, DIM)


def test_a_file_too_large_to_hash_whose_header_is_damaged_is_noticed(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.ann.generation, "HASHED_AT_OPEN_BYTES", 0)
    row = row_of(index)
    flip_byte(index / row.name, 0)
    with pytest.raises(IndexCorruptError):
        Generation(index, row, DIM)


def test_a_build_that_changes_little_keeps_the_generation(index: Path) -> None:
    row = row_of(index)
    build(index, records(N + 10))
    delete_documents(index, ["d1"])
    build(index, records(N + 10))
    assert row_of(index) == row
    assert row.n_slots == N


def test_a_long_tail_makes_the_next_writer_rebuild(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.upkeep, "TAIL_SLOTS", 10)
    old = row_of(index)
    build(index, records(N + 10))
    assert row_of(index) == old
    build(index, records(N + 11))
    assert row_of(index).n_slots == N + 11
    assert [path.name for path in index.glob("gen-*")] == [row_of(index).name]  # the old file is gone
    assert verify_index(index, deep=True) == []


def test_many_dead_slots_make_the_next_writer_rebuild_once(index: Path) -> None:
    old = row_of(index)
    delete_documents(index, [f"d{i}" for i in range(N // 5)])
    left = records(N - N // 5, N // 5)
    build(index, left)
    assert row_of(index) == old
    delete_documents(index, [f"d{N // 5}"])
    build(index, left[1:])
    new = row_of(index)
    assert new != old
    build(index, left[1:])
    assert row_of(index) == new


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_the_next_build_makes_a_damaged_generation_anew(index: Path, damage: str) -> None:
    path = only(index, "gen-*")
    match damage:
        case "flip":
            flip_byte(path, -1)
        case "truncate":
            os.truncate(path, 10)
        case "remove":
            path.unlink()
    assert len(verify_index(index, deep=True)) == 1
    assert build(index, records(N)).encoded == 0
    assert verify_index(index, deep=True) == []
    assert only(index, "gen-*") != path


def test_an_index_without_rows_has_no_generation(tmp_path: Path) -> None:
    build(tmp_path, [{"id": "a", "text": "  "}])
    assert sql(tmp_path, "SELECT * FROM generations") == []
    with searching(tmp_path) as searcher:
        assert list(searcher.search("x")) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_while_the_generation_is_written_costs_only_the_generation(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(indexer.ann.generation, "write_all", refuse)
        with pytest.raises(StorageError, match=os.strerror(code)):
            build(tmp_path, records(N))
    assert list(tmp_path.glob("gen-*")) == []
    assert verify_index(tmp_path, deep=True) == []
    encoder = FakeEncoder()
    with searching(tmp_path) as searcher:
        assert searcher.is_complete
        Oracle().put(records(N)).check_searcher(searcher, ["text number 5"], 10)
    build(tmp_path, records(N), encoder=encoder)
    assert encoder.texts == []
    assert row_of(tmp_path).n_slots == N


def test_bytes_that_do_not_read_back_are_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = indexer.ann.generation.write_all
    with monkeypatch.context() as patched:
        patched.setattr(indexer.ann.generation, "write_all", lambda fd, data, at: real(fd, bytes(len(data)), at))
        with pytest.raises(StorageError, match="reads back"):
            build(tmp_path, records(N))
    assert sql(tmp_path, "SELECT * FROM generations") == []
    build(tmp_path, records(N))
    assert len(list(tmp_path.glob("gen-*"))) == 1


def test_a_file_that_goes_between_its_hash_and_its_opening_is_gone_and_not_damaged(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, hashed = row_of(index), indexer.ann.generation._hash

    def hash_then_lose(path: Path) -> str:
        found = hashed(path)
        path.unlink()
        return found

    monkeypatch.setattr(indexer.ann.generation, "_hash", hash_then_lose)
    with pytest.raises(FileNotFoundError):
        Generation(index, row, DIM)


def test_without_faiss_the_error_names_the_extra_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"clsindex\[cpu\]"):
        build(tmp_path / "index", records(1))
    assert list(tmp_path.iterdir()) == []


def test_auto_becomes_a_kind_that_says_whether_it_is_exact() -> None:
    assert choose_recipe(AnnOptions(), N, DIM, VectorDtype.F16).kind is Kind.FLAT
    assert Kind.FLAT.is_exact
    assert not Kind.AUTO.is_exact


def test_the_reading_limits_of_faiss_are_those_of_the_process_again(index: Path) -> None:
    faiss = pytest.importorskip("faiss")

    def limits() -> tuple[int, int]:
        return faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()

    before = limits()
    Generation(index, row_of(index), DIM)
    flip_byte(only(index, "gen-*"), 5)
    with pytest.raises(IndexCorruptError):
        Generation(index, row_of(index), DIM)
    assert limits() == before
