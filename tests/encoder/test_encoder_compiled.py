"""The graph that OpenVINO compiles against the plain pass, for every family, with random and with real weights."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from models import FAMILIES, build_model, stored_as
from passes import POOLINGS, TEXTS, check_random_weights, check_real_weights, longest_first, vectors

from indexer.config import Dtype, EncoderOptions, Pooling
from indexer.encoder.bulk import BulkEncoder
from indexer.encoder.compiled import STEPS, CompiledModel, compile_graph
from indexer.encoder.engine import load_forward, load_model, load_workers
from indexer.encoder.models import resolve_model
from indexer.encoder.packed import PackedModel
from indexer.encoder.plain import PlainModel, padded_length
from indexer.encoder.tokens import TextTokenizer
from indexer.errors import EncoderError

pytest.importorskip("openvino")
COMPILED = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet")


def both(name: Path | str, pooling: Pooling, dtype: str = "float32") -> tuple[CompiledModel, PlainModel, TextTokenizer]:
    import torch

    files = resolve_model(str(name), allow_download=False)
    model = load_model(files, "cpu", torch.float32)
    compiled = compile_graph(files.config, files.weights, getattr(torch, dtype), pooling, 2)
    assert compiled is not None
    with torch.inference_mode():
        return compiled, PlainModel(model, files.name, pooling), TextTokenizer.load(files)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_taken_for_its_families_and_no_others(family: str, tmp_path: Path) -> None:
    import torch

    files = resolve_model(str(build_model(tmp_path / "m", family)), allow_download=False)
    model, _ = load_forward(files, "cpu", torch.float32, Pooling.CLS)
    assert isinstance(model, CompiledModel) == (family in COMPILED)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", COMPILED)
def test_it_equals_the_plain_pass_with_random_weights(family: str, pooling: Pooling, tmp_path: Path) -> None:
    compiled, plain, tokenizer = both(build_model(tmp_path / "m", family), pooling)
    check_random_weights(compiled, plain, tokenizer)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_it_equals_the_plain_pass_with_real_weights(pooling: Pooling, minilm: str, cranfield_texts: list[str]) -> None:
    compiled, plain, tokenizer = both(minilm, pooling)
    fast, _, _ = both(minilm, pooling, "bfloat16")
    check_real_weights(compiled, fast, plain, tokenizer, cranfield_texts[:6])


def test_threads_share_it(tiny_bert: Path) -> None:
    compiled, plain, tokenizer = both(tiny_bert, Pooling.CLS)
    ids, lengths = longest_first(tokenizer.encode(TEXTS, 64))
    expected = vectors(plain, ids, lengths)
    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(vectors, compiled, ids, lengths) for _ in range(60)]:
            np.testing.assert_allclose(job.result(), expected, atol=1e-5)


def test_a_model_that_lacks_a_tensor_of_its_family_is_left_to_others(tiny_bert: Path) -> None:
    import torch

    files = resolve_model(str(tiny_bert), allow_download=False)
    config = files.config
    assert compile_graph(config, files.weights, torch.float32, Pooling.CLS, 1) is not None
    assert compile_graph({**config, "model_type": "distilbert"}, files.weights, torch.float32, Pooling.CLS, 1) is None
    assert compile_graph({**config, "hidden_act": "relu"}, files.weights, torch.float32, Pooling.CLS, 1) is None
    assert compile_graph(config, files.weights, torch.float16, Pooling.CLS, 1) is None


def test_an_openvino_that_cannot_be_used_leaves_it_to_torch(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    def refuse(*_: object) -> None:
        raise RuntimeError("no such operation\nat some line of its own")

    monkeypatch.setattr("indexer.encoder.compiled._graph", refuse)
    files = resolve_model(str(tiny_bert), allow_download=False)
    model, _ = load_forward(files, "cpu", torch.float32, Pooling.CLS)
    assert isinstance(model, PackedModel)
    assert caplog.messages == ["torch encodes, because OpenVINO cannot be used: no such operation"]


def test_workers_share_the_threads(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    workers = load_workers(resolve_model(str(tiny_bert), allow_download=False), ("cpu",), torch.float32, Pooling.CLS)
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


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"max_position_embeddings": 128}, {"vocab_size": 999}])
def test_weights_that_do_not_fit_the_configuration_are_named(
    change: dict[str, int], tiny_bert: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(tiny_bert, tmp_path / "m")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises(EncoderError, match=r"do not fit its config\.json"):
        BulkEncoder.load(EncoderOptions(model=str(directory), device="cpu", dtype=Dtype.FLOAT32))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_checkpoint_with_a_head_and_old_names_in_float16(pooling: Pooling, tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = shutil.copytree(tiny_bert, tmp_path / "m")
    tensors = load_file(directory / "model.safetensors")
    old = {"weight": "gamma", "bias": "beta"}
    renamed = {
        "bert." + (name.rpartition(".")[0] + "." + old[name.rpartition(".")[2]] if "LayerNorm" in name else name): value
        for name, value in tensors.items()
    }
    save_file({name: value.half() for name, value in renamed.items()}, directory / "model.safetensors")
    compiled, plain, tokenizer = both(directory, pooling)
    check_random_weights(compiled, plain, tokenizer)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", COMPILED)
def test_a_checkpoint_in_bfloat16_gives_the_vectors_of_transformers(
    family: str, pooling: Pooling, tmp_path: Path
) -> None:
    compiled, plain, tokenizer = both(stored_as("bfloat16", build_model(tmp_path / "m", family)), pooling)
    check_random_weights(compiled, plain, tokenizer)


def test_few_shapes_reach_the_graph_and_little_padding(tiny_bert: Path) -> None:
    compiled, _, _ = both(tiny_bert, Pooling.CLS)
    shapes, tokens, padded = set(), 0, 0
    for longest in range(1, 513):
        lengths = np.full(1_024, longest, np.int32)
        n = compiled.n_fit(lengths, 1_024)
        width = padded_length(longest, STEPS)
        shapes.add((n, width))
        tokens, padded = tokens + longest, padded + width
    assert len(shapes) < 90
    assert padded < 1.03 * tokens


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_does_not_change_a_vector(pooling: Pooling, tiny_bert: Path) -> None:
    compiled, _, tokenizer = both(tiny_bert, pooling)
    ids, lengths = longest_first(tokenizer.encode(TEXTS, 64))
    starts = np.cumsum(lengths) - lengths
    together = vectors(compiled, ids, lengths)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        alone = vectors(compiled, ids[start : start + length], lengths[[row]])
        np.testing.assert_allclose(together[[row]], alone, atol=1e-6)
