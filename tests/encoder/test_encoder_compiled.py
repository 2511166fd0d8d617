"""The graph that OpenVINO compiles against the plain pass, for every family, with random and with real weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from models import FAMILIES, build_model
from passes import POOLINGS, TEXTS, check_random_weights, check_real_weights, longest_first, vectors

from indexer.config import Dtype, EncoderOptions, Pooling
from indexer.encoder.bulk import BulkEncoder
from indexer.encoder.compiled import CompiledModel, compile_graph
from indexer.encoder.engine import load_forward, load_model, load_workers
from indexer.encoder.models import resolve_model
from indexer.encoder.packed import PackedModel
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
    check_random_weights(compiled, plain, tokenizer, pooling)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_it_equals_the_plain_pass_with_real_weights(pooling: Pooling, minilm: str, cranfield_texts: list[str]) -> None:
    compiled, plain, tokenizer = both(minilm)
    fast, _, _ = both(minilm, "bfloat16")
    check_real_weights(compiled, fast, plain, tokenizer, cranfield_texts[:6], pooling)


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


def test_an_openvino_that_cannot_be_used_leaves_it_to_torch(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    def refuse(*_: object) -> None:
        raise RuntimeError("no such operation\nat some line of its own")

    monkeypatch.setattr("indexer.encoder.compiled._graph", refuse)
    files = resolve_model(str(tiny_bert), allow_download=False)
    model, _ = load_forward(files, "cpu", torch.float32)
    assert isinstance(model, PackedModel)
    assert caplog.messages == ["torch encodes, because OpenVINO cannot be used: no such operation"]


def test_workers_share_the_threads(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    workers = load_workers(resolve_model(str(tiny_bert), allow_download=False), ("cpu",), torch.float32)
    assert len(workers.models) == 8
    model = workers.models[0]
    assert isinstance(model, CompiledModel)
    assert (model.settings["NUM_STREAMS"], model.settings["INFERENCE_NUM_THREADS"]) == (8, 64)


def test_with_and_without_it_texts_have_the_same_vectors(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EncoderOptions(model=str(tiny_bert), dtype=Dtype.FLOAT32, pooling=Pooling.CLS, device="cpu")
    engines, vectors = [], []
    for is_there in (True, False):
        monkeypatch.setattr("indexer.encoder.compiled.is_installed", lambda is_there=is_there: is_there)
        with closing(BulkEncoder.load(options)) as encoder:
            engines.append(encoder.engine)
            vectors.append(encoder.encode(TEXTS * 40))
    assert engines == ["openvino", "torch"]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
