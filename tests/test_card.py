"""Exact search on a GPU against the exact scan of the CPU; where there is no GPU the CPU stands in for it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from indexes import build, records

from indexer.card import Card
from indexer.config import VectorDtype
from indexer.errors import StorageError, UsageError
from indexer.exact import rank
from indexer.storage.vectors import VectorLayout, VectorReader, VectorWriter, create_vector_file, encode_rows
from search import Searcher

pytestmark = pytest.mark.gpu

N, DIM = 1_003, 24


def units(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class File:
    """A vector file that grows."""

    def __init__(self, directory: Path, dtype: VectorDtype = VectorDtype.F16) -> None:
        self.directory = directory
        self.layout = VectorLayout(dim=DIM, dtype=dtype, index_uuid="ab" * 16)
        self.name = create_vector_file(directory, self.layout)
        self.rows = np.empty((0, DIM), np.float32)

    def grow(self, vectors: np.ndarray) -> VectorReader:
        writer = VectorWriter(self.directory, self.name, self.layout)
        writer.append(len(self.rows), encode_rows(vectors, self.layout))
        writer.close()
        self.rows = np.concatenate((self.rows, vectors))
        return VectorReader(self.directory, self.name, self.layout, len(self.rows))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card that cuts rows into chunks of 200 and queries into groups."""
    monkeypatch.setattr("indexer.card._CHUNK_NUMBERS", 200 * DIM)
    monkeypatch.setattr("indexer.card._SCORES_BYTES", 4 * 200 * 8)
    return Card("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", VectorDtype)
@pytest.mark.parametrize("k", [1, 10, 300, N + 5])
@pytest.mark.parametrize("share", [None, 0.0, 0.004, 0.5])
def test_the_nearest_slots_have_the_scores_of_the_cpu(
    tmp_path: Path, card: Card, dtype: VectorDtype, k: int, share: float | None
) -> None:
    vectors = File(tmp_path, dtype).grow(units(N, 0))
    assert card.hold(vectors)
    assert card.n_slots == N
    mask = np.random.default_rng(1).random(N) < (1.0 if share is None else share)
    queries = units(11, 2)
    scores, slots = card.search(queries, k, allowed=None if share is None else np.packbits(mask, bitorder="little"))
    assert scores.dtype == np.float32
    assert slots.dtype == np.int64
    assert scores.shape == slots.shape == (11, min(k, N))
    for query, near, found in zip(queries, scores, slots, strict=True):
        expected, _ = rank(vectors, query, np.flatnonzero(mask), k)
        assert (found >= 0).sum() == len(expected)
        assert len(set(found[found >= 0].tolist())) == len(expected)
        assert mask[found[found >= 0]].all()
        np.testing.assert_allclose(near[: len(expected)], expected, atol=card.rounding / 10)
        own, _ = rank(vectors, query, found[found >= 0], k)
        np.testing.assert_allclose(own, expected, atol=card.rounding)
        assert np.isneginf(near[len(expected) :]).all()


def test_rows_that_come_later_are_copied_when_there_are_many(
    tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.card._NEW_ROWS", 30)
    file, held = File(tmp_path), []
    for n in (150, 30, 1, 500, 10):
        vectors = file.grow(units(n, len(file.rows)))
        assert card.hold(vectors)
        held.append(card.n_slots)
    assert held == [150, 150, 181, 681, 681]
    query = units(1, 9)
    _, slots = card.search(query, 20)
    _, expected = rank(vectors, query[0], np.arange(681), 20)
    assert set(slots[0].tolist()) == set(expected.tolist())


def test_rows_that_cannot_be_read_leave_what_is_held_as_it_was(
    tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.card._NEW_ROWS", 30)
    monkeypatch.setattr("indexer.card.BLOCK_ROWS", 30)
    file = File(tmp_path)
    card.hold(file.grow(units(150, 0)))
    vectors, query = file.grow(units(500, 1)), units(1, 9)

    def fail_at_300(first_slot: int, n_rows: int) -> np.ndarray:
        if first_slot >= 300:
            raise StorageError("the disk cannot be read")
        return VectorReader.stored(vectors, first_slot, n_rows)

    with monkeypatch.context() as patched:
        patched.setattr(vectors, "stored", fail_at_300)
        with pytest.raises(StorageError):
            card.hold(vectors)
    for n_slots in (200, 650):  # the chunk that was complete; then, with a disk that can be read, all
        assert card.n_slots == n_slots
        _, expected = rank(vectors, query[0], np.arange(n_slots), 20)
        assert set(card.search(query, 20)[1][0].tolist()) == set(expected.tolist())
        assert card.hold(vectors)


def test_another_file_takes_the_place_of_the_one_before(tmp_path: Path, card: Card) -> None:
    card.hold(File(tmp_path).grow(units(500, 0)))
    vectors = File(tmp_path).grow(units(70, 1))
    assert card.hold(vectors)
    assert card.n_slots == 70
    query = units(1, 9)
    assert card.search(query, 1)[1][0, 0] == rank(vectors, query[0], np.arange(70), 1)[1][0]


def test_rows_that_fit_no_longer_leave_the_card_empty(
    tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, emptied = File(tmp_path), []
    assert card.hold(file.grow(units(500, 0)))
    card.device = torch.device("cuda")
    monkeypatch.setattr("indexer.card._NEW_ROWS", 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1_000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(card.n_slots))
    assert not card.hold(file.grow(units(500, 1)))
    assert not card.hold(file.grow(units(5, 2)))
    assert emptied == [500, 0], "what torch keeps is given back before the rows are, and then with them"


def test_scores_are_trusted_less_where_torch_multiplies_in_tf32(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    assert card.rounding == 1e-4
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert card.rounding > 2**-10


def test_rows_that_do_not_fit_are_refused_and_said_once(
    tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = File(tmp_path).grow(units(N, 0))
    card.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1_000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert not card.hold(vectors)
        assert not card.hold(vectors)
    assert len(caplog.records) == 1
    assert "100 bytes free" in caplog.text


def test_memory_that_is_gone_while_rows_are_copied_is_a_refusal(
    tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    vectors = File(tmp_path).grow(units(50, 0))
    with monkeypatch.context() as patched:
        patched.setattr("indexer.card.torch.empty", fail)
        assert not card.hold(vectors)
        assert not card.hold(vectors)
    assert len(caplog.records) == 1
    assert card.hold(vectors)
    assert card.n_slots == 50


def test_too_little_memory_for_a_search_is_one_line(
    tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    card.hold(File(tmp_path).grow(units(50, 0)))
    monkeypatch.setattr("indexer.card._products", fail)
    with pytest.raises(UsageError, match="too little memory left"):
        card.search(units(1, 1), 3)


def test_a_device_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    build(tmp_path / "index", records(5))
    with pytest.raises(UsageError, match="--device cuda:99 cannot be used here"):
        Searcher.open(tmp_path / "index", device="cuda:99")


def test_the_cpu_by_name_is_the_cpu_as_ever(tmp_path: Path) -> None:
    build(tmp_path / "index", records(5))
    with Searcher.open(tmp_path / "index", device="cpu") as searcher:
        assert searcher._card is None
