"""What runs on a GPU alone, with tensors that pretend to be there: devices, number formats and shapes of every step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import build_model
from passes import PACKED, POOLINGS
from pretend import pretended_cuda
from test_card import DIM, File, units

from indexer.card import Card
from indexer.config import Pooling, VectorDtype
from indexer.encoder.engine import load_model
from indexer.encoder.models import resolve_model
from indexer.encoder.modern import pack_modern
from indexer.encoder.packed import pack


def test_a_pretended_tensor_refuses_what_a_gpu_refuses() -> None:
    with pretended_cuda():
        there = torch.zeros(3, 4, device="cuda")
        assert there[1:, None].shape == (2, 1, 4)
        assert there[:, torch.zeros(5, dtype=torch.int64, device="cuda")].shape == (3, 5)
        for wrong in (torch.zeros(3, 4), torch.zeros(3, 5, device="cuda")):
            with pytest.raises(RuntimeError, match=r"device|size|broadcast"):
                there + wrong
        with pytest.raises(RuntimeError, match="two formats"):
            there @ there.T.half()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", PACKED)
def test_the_fast_pass_keeps_to_its_device_and_format(family: str, pooling: Pooling, tmp_path: Path) -> None:
    files = resolve_model(str(build_model(tmp_path / "m", family)), allow_download=False)
    real = load_model(files, "cpu", torch.float16)
    lengths = np.array([40, 12, 12, 7, 1], np.int32)
    with pretended_cuda():
        state = {name: torch.empty_like(value, device="cuda") for name, value in real.state_dict().items()}
        there = SimpleNamespace(config=real.config, device=torch.device("cuda"), state_dict=lambda: state)
        packed = pack(there, files.config, torch.float16, pooling) or pack_modern(there, torch.float16, pooling)
        assert packed is not None
        assert packed._varlen is not None
        found = packed(np.arange(lengths.sum(), dtype=np.int32) % 30, lengths)
        assert (found.is_cuda, found.dtype, found.shape) == (True, torch.float32, (5, 32))


@pytest.mark.parametrize("dtype", VectorDtype)
@pytest.mark.parametrize("is_filtered", [False, True])
def test_exact_search_keeps_to_its_device(
    dtype: VectorDtype, is_filtered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.card._CHUNK_NUMBERS", 200 * DIM)
    monkeypatch.setattr("indexer.card._SCORES_BYTES", 4 * 200 * 8)
    monkeypatch.setattr("indexer.card._NEW_ROWS", 5)
    monkeypatch.setattr("indexer.card.choose_devices", lambda device: (device,))
    file = File(tmp_path, dtype)
    allowed = np.full(138, 0b01010101, np.uint8) if is_filtered else None
    came_back = []

    def numbers(tensor: torch.Tensor) -> np.ndarray:
        came_back.append(tensor.is_cuda)
        return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))

    with pretended_cuda():
        card = Card("cuda:0")
        assert card.hold(file.grow(units(1_003, 0)))
        assert card.hold(file.grow(units(101, 1)))
        assert all(chunk.is_cuda for chunk in card._chunks)
        monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: SimpleNamespace(numpy=lambda: numbers(tensor)))
        scores, slots = card.search(units(30, 2), 10, allowed=allowed)
    assert len(came_back) > 2
    assert all(came_back)
    assert (scores.shape, scores.dtype, slots.shape, slots.dtype) == ((30, 10), np.float32, (30, 10), np.int64)
