"""The graph that OpenVINO compiles against the plain pass, for every family, with random and with real weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from models import FAMILIES, build_model
from passes import POOLINGS, TEXTS, longest_first, vectors

from indexer.config import Pooling
from indexer.encoder.compiled import CompiledModel, compile_graph
from indexer.encoder.engine import load_forward, load_model
from indexer.encoder.models import resolve_model
from indexer.encoder.plain import PlainModel
from indexer.encoder.tokens import TextTokenizer

pytest.importorskip("openvino")
COMPILED = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet")


def both(name: Path | str, dtype: str = "float32") -> tuple[CompiledModel, PlainModel, TextTokenizer]:
    import torch

    files = resolve_model(str(name), allow_download=False)
    model = load_model(files, "cpu", torch.float32)
    compiled = compile_graph(model, files.config, getattr(torch, dtype), 2)
    assert compiled is not None
    with torch.inference_mode():
        return compiled, PlainModel(model, files.name), TextTokenizer.load(files)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_taken_for_its_families_and_no_others(family: str, tmp_path: Path) -> None:
    import torch

    files = resolve_model(str(build_model(tmp_path / "m", family)), allow_download=False)
    model, _ = load_forward(files, "cpu", torch.float32)
    assert isinstance(model, CompiledModel) == (family in COMPILED)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", COMPILED)
def test_it_equals_the_plain_pass_with_random_weights(family: str, pooling: Pooling, tmp_path: Path) -> None:
    compiled, plain, tokenizer = both(build_model(tmp_path / "m", family))
    ids, lengths = longest_first(tokenizer.encode(TEXTS, 64))
    assert len(np.unique(lengths)) < len(lengths), "some texts share a length"
    expected = vectors(plain, ids, lengths, pooling)
    assert np.ptp(expected, axis=0).max() > 0.1, "the oracle must tell texts apart"
    np.testing.assert_allclose(vectors(compiled, ids, lengths, pooling), expected, atol=1e-5)
    assert compiled.dim == plain.dim


@pytest.mark.parametrize("pooling", POOLINGS)
def test_it_equals_the_plain_pass_with_real_weights(pooling: Pooling, minilm: str, cranfield_texts: list[str]) -> None:
    compiled, plain, tokenizer = both(minilm)
    fast, _, _ = both(minilm, "bfloat16")
    ids, lengths = longest_first(tokenizer.encode([*cranfield_texts[:6], *TEXTS], 256))
    expected = vectors(plain, ids, lengths, pooling)
    np.testing.assert_allclose(vectors(compiled, ids, lengths, pooling), expected, atol=2e-5)
    found = vectors(fast, ids, lengths, pooling)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) / norms).min() >= 0.9999


def test_threads_share_it(tiny_bert: Path) -> None:
    compiled, plain, tokenizer = both(tiny_bert)
    ids, lengths = longest_first(tokenizer.encode(TEXTS, 64))
    expected = [vectors(plain, ids, lengths, pooling) for pooling in POOLINGS]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(n % 3, pool.submit(vectors, compiled, ids, lengths, POOLINGS[n % 3])) for n in range(60)]
        for n, job in jobs:
            np.testing.assert_allclose(job.result(), expected[n], atol=1e-5)


def test_a_model_that_lacks_a_tensor_of_its_family_is_left_to_others(tiny_bert: Path) -> None:
    import torch

    files = resolve_model(str(tiny_bert), allow_download=False)
    model = load_model(files, "cpu", torch.float32)
    assert compile_graph(model, {**files.config, "model_type": "distilbert"}, torch.float32, 1) is None
    assert compile_graph(model, {**files.config, "hidden_act": "relu"}, torch.float32, 1) is None
    assert compile_graph(model, files.config, torch.float16, 1) is None
