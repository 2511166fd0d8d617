"""Build, query and equality with the CPU on a GPU; where there is none the CPU in 16 bits stands in for it.

`make gpu` runs these and writes what benchmarks/GPU.md asks for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import build_model
from passes import PACKED

from indexer import build_index
from indexer.config import Dtype, EncoderOptions, Pooling
from indexer.encoder.bulk import BulkEncoder
from indexer.encoder.engine import load_model
from indexer.encoder.models import resolve_model
from indexer.encoder.plain import PlainModel
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


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("pooling", [Pooling.CLS, Pooling.MEAN, Pooling.LAST])
def test_the_fast_pass_in_16_bits_agrees_with_the_plain_one_in_float32(
    family: str, pooling: Pooling, device: str, dtype: Dtype, tmp_path: Path
) -> None:
    directory = str(build_model(tmp_path / "m", family))
    options = EncoderOptions(model=directory, device=device, dtype=dtype, pooling=pooling, batch_tokens=300)
    fast = BulkEncoder.load(options)
    files = resolve_model(directory, allow_download=False)
    plain = PlainModel(load_model(files, "cpu", torch_float32()), files.name, pooling)
    texts = ["the cat sat on the mat " * n for n in (1, 1, 2, 5, 8)] + ["card", "", "[PAD] is no padding"]
    tokens = fast._tokenize(texts)
    order = np.argsort(-tokens.lengths, kind="stable")
    expected = plain(tokens.take(order), tokens.lengths[order]).detach().numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.einsum("ij,ij->i", fast.encode(texts)[order], expected).min() >= 0.995


def test_heads_that_the_kernel_for_all_lengths_refuses_attend_by_runs_of_one_length(
    device: str, dtype: Dtype, tmp_path: Path
) -> None:
    directory = str(build_model(tmp_path / "m", hidden_size=52, num_attention_heads=2))
    found = []
    for options in (EncoderOptions(device=device, dtype=dtype), EncoderOptions(device="cpu", dtype=Dtype.FLOAT32)):
        encoder = BulkEncoder.load(replace(options, model=directory))
        found.append(encoder.encode(["the cat sat on the mat " * n for n in (1, 1, 2, 5, 8)]))
    assert np.einsum("ij,ij->i", *found).min() >= 0.995


def torch_float32() -> Any:
    import torch

    return torch.float32


def test_a_neighbour_on_the_device_changes_a_vector_by_less_than_a_thousandth(
    minilm: str, cranfield_texts: list[str], device: str, dtype: Dtype
) -> None:
    texts = [cranfield_texts[0], "the cat sat on the mat", *(text[:300] for text in cranfield_texts[1:12])]
    encoder = BulkEncoder.load(EncoderOptions(model=minilm, device=device, dtype=dtype))
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-3)


def test_two_workers_on_the_device_give_what_one_gives(
    minilm: str, cranfield_texts: list[str], device: str, dtype: Dtype
) -> None:
    found = []
    for devices in (device, f"{device},{device}"):
        options = EncoderOptions(model=minilm, device=devices, dtype=dtype, batch_tokens=1_000)
        encoder = BulkEncoder.load(options)
        found.append(encoder.encode(cranfield_texts[:24]))
        assert encoder.seconds["encode"] > 0
        encoder.close()
    np.testing.assert_allclose(*found, atol=1e-3)


def test_the_benchmark_of_search_runs_on_the_stand_in() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu_search.py"
    command = [sys.executable, str(script), "--stand-in", "--rows", "12000", "--kinds", "ivf", "IVF64,SQ8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["exact"]["same_as_cpu"]
    assert {kind: each["cpu_recall@10"] >= 0.9 for kind, each in found["built"].items()} == {
        "ivf": True,
        "IVF64,SQ8": True,
    }


def test_the_benchmark_of_the_gpu_runs_on_the_stand_in(minilm: str) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    done = subprocess.run(
        [sys.executable, str(script), "--stand-in"], capture_output=True, text=True, check=True, cwd=script.parent
    )
    result = json.loads(done.stdout)
    assert result["smallest_cosine_to_cpu_float32"] >= 0.999
    assert result["encoder_alone"]["stand-in"]["best"] > 0
    for figures in result["end_to_end"].values():
        assert figures["limiting_stage"] in figures["busy"]
        assert figures["build_share_of_encoder"] > 0


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
