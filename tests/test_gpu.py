"""Build, query and equality with the CPU on a GPU; where there is none the CPU in 16 bits stands in for it.

`make gpu` runs these and writes what benchmarks/GPU.md asks for.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from indexer import build_index
from indexer.config import Dtype, EncoderOptions, Pooling
from indexer.encoder.bulk import BulkEncoder
from search import Searcher

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def dtype(device: str) -> Dtype:
    """What AUTO picks on a GPU; on the stand-in the other 16-bit format, which every CPU can emulate."""
    return Dtype.AUTO if device == "cuda" else Dtype.BFLOAT16


@pytest.mark.parametrize("pooling", [Pooling.CLS, Pooling.MEAN])
def test_16_bit_vectors_agree_with_float32_on_the_cpu(
    minilm: str, cranfield_texts: list[str], device: str, dtype: Dtype, pooling: Pooling
) -> None:
    texts = cranfield_texts[:32]
    fast = BulkEncoder.load(EncoderOptions(model=minilm, device=device, dtype=dtype, pooling=pooling)).encode(texts)
    plain = BulkEncoder.load(EncoderOptions(model=minilm, device="cpu", dtype=Dtype.FLOAT32, pooling=pooling))
    cosines = np.einsum("ij,ij->i", fast, plain.encode(texts))
    assert cosines.min() >= 0.999


def test_an_index_built_on_the_device_answers_like_one_built_on_the_cpu(
    minilm: str, cranfield_texts: list[str], device: str, dtype: Dtype, tmp_path: Path
) -> None:
    records = [{"id": str(i), "text": text} for i, text in enumerate(cranfield_texts)]
    build_index(records, tmp_path / "fast", model=minilm, device=device, dtype=dtype)
    build_index(records, tmp_path / "plain", model=minilm, device="cpu", dtype="float32", vector_dtype="f32")
    queries = ["boundary layer on a flat plate", "supersonic flow past a cone", "heat transfer in a wind tunnel"]
    with Searcher.open(tmp_path / "fast") as fast, Searcher.open(tmp_path / "plain") as plain:
        for found, wanted in zip(fast.search_batch(queries, 5), plain.search_batch(queries, 5), strict=True):
            assert found[0].id == wanted[0].id
            scores = {hit.id: hit.score for hit in wanted}
            for hit in found:
                assert hit.id not in scores or hit.score == pytest.approx(scores[hit.id], abs=5e-3)


def test_a_build_on_the_device_is_resumed_without_encoding_anything_twice(
    minilm: str, device: str, dtype: Dtype, tmp_path: Path
) -> None:
    records = [{"id": str(i), "text": f"text number {i}"} for i in range(40)]
    first = build_index(records[:25], tmp_path / "x", model=minilm, device=device, dtype=dtype)
    second = build_index(records, tmp_path / "x", device=device, dtype=dtype)
    assert (first.encoded, second.encoded, second.unchanged) == (25, 15, 25)
    recorded = json.loads(json.dumps(second.to_json()))
    assert recorded["documents"] == 40
