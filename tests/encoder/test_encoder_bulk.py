"""BulkEncoder against a plain transformers forward pass of one text at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import FAMILIES, build_model, declared_pooling

from indexer.config import Dtype, EncoderOptions, Pooling
from indexer.encoder.bulk import BulkEncoder
from indexer.errors import ContractError, EncoderError, NonFiniteVectorError, UsageError

TEXTS = [
    "the cat sat on the mat",
    "card",
    "",
    "which card works abroad? The BANK says: 3 of 10.",
    "pressure of the boundary layer in the flow, " * 12,
    "[PAD] is no padding here [SEP]",
    "naïve 今日は 🚀",
    "storm and shock " * 6,
]


def options(model: Path | str, **more: object) -> EncoderOptions:
    return EncoderOptions(**{"model": str(model), "dtype": Dtype.FLOAT32, "device": "cpu", **more})


def plain(directory: Path | str, texts: list[str], pooling: Pooling, max_length: int) -> np.ndarray:
    """The oracle: transformers, one text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=max_length, padding=False, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state[0]
        row = {Pooling.CLS: hidden[0], Pooling.MEAN: hidden.mean(0), Pooling.LAST: hidden[-1]}[pooling]
        rows.append((row / row.norm()).numpy())
    return np.stack(rows)


@pytest.fixture(scope="module")
def encoder(tiny_bert: Path) -> BulkEncoder:
    return BulkEncoder.load(options(tiny_bert))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_a_plain_forward_pass_for_every_pooling(family: str, tmp_path: Path) -> None:
    directory = build_model(tmp_path / family, family)
    for pooling in (Pooling.CLS, Pooling.MEAN, Pooling.LAST):
        encoder = BulkEncoder.load(options(directory, batch_tokens=150, pooling=pooling))
        assert encoder.contract.architecture == family
        assert encoder.contract.max_length_tokens == 64
        expected = plain(directory, TEXTS, pooling, 64)
        assert np.ptp(expected, axis=0).max() > 0.1, "the oracle must tell texts apart"
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    fast = BulkEncoder.load(options(directory, pooling=Pooling.LAST, dtype=Dtype.BFLOAT16))
    assert (fast.encode(TEXTS) * expected).sum(axis=1).min() > 0.995


def test_tokens_equal_those_of_transformers_with_its_own_truncation(minilm: str, cranfield_texts: list[str]) -> None:
    from transformers import AutoTokenizer

    from indexer.encoder.models import resolve_model
    from indexer.encoder.tokens import TextTokenizer

    files = resolve_model(minilm, allow_download=False)
    reference = AutoTokenizer.from_pretrained(files.directory)
    texts = [*cranfield_texts[:20], *TEXTS]
    tokens = TextTokenizer.load(files).encode(texts, 128)
    expected = reference(texts, truncation=True, max_length=128, padding=False)["input_ids"]
    assert [tokens.row(i).tolist() for i in range(len(texts))] == expected
    assert tokens.n_tokens.tolist() == [len(reference(text, truncation=False)["input_ids"]) for text in texts]
    assert tokens.n_tokens.max() > 128


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("in_config", [True, False])
def test_case_is_decided_by_the_tokenizer_config_as_in_transformers(
    in_file: bool, in_config: bool, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from indexer.encoder.models import resolve_model
    from indexer.encoder.tokens import TextTokenizer

    directory = build_model(tmp_path / "m", lowercase=in_file)
    path = directory / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "tokenizer_class": "BertTokenizer", "do_lower_case": in_config}
    path.write_text(json.dumps(config))
    tokens = TextTokenizer.load(resolve_model(str(directory), allow_download=False)).encode(["The CAT"], 64)
    assert tokens.row(0).tolist() == AutoTokenizer.from_pretrained(directory)("The CAT")["input_ids"]


def test_vectors_are_unit_float32_and_counts_include_special_tokens(encoder: BulkEncoder) -> None:
    batches = list(encoder.encode_stream(TEXTS))
    positions = np.concatenate([batch.positions for batch in batches])
    assert sorted(positions.tolist()) == list(range(len(TEXTS)))
    n_tokens = np.empty(len(TEXTS), int)
    n_lost = np.empty(len(TEXTS), int)
    for batch in batches:
        assert batch.vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(batch.vectors, axis=1), 1.0, atol=1e-5)
        n_tokens[batch.positions] = batch.n_tokens
        n_lost[batch.positions] = batch.n_tokens_lost
    assert n_tokens[0] == 8
    assert n_tokens[2] == 2
    assert n_tokens[4] == 12 * 9 + 2
    assert n_lost.tolist() == [max(0, count - 64) for count in n_tokens]
    assert encoder.encode([]).shape == (0, 32)


def test_batches_are_longest_first_and_keep_the_budget_with_padding(tiny_bert: Path) -> None:
    encoder = BulkEncoder.load(options(tiny_bert, batch_tokens=100))
    kept = [batch.n_tokens - batch.n_tokens_lost for batch in encoder.encode_stream(TEXTS * 3)]
    assert len(kept) > 3
    flat = np.concatenate(kept)
    assert (np.diff(flat) <= 0).all()
    assert all(len(tokens) == 1 or tokens.sum() <= 100 for tokens in kept)


@pytest.mark.parametrize(("dtype", "tolerance"), [(Dtype.FLOAT32, 1e-5), (Dtype.BFLOAT16, 1e-3)])
def test_a_vector_does_not_depend_on_its_neighbours(
    dtype: Dtype, tolerance: float, minilm: str, cranfield_texts: list[str]
) -> None:
    texts = [cranfield_texts[0], "the cat sat on the mat", *(text[:200] for text in cranfield_texts[1:9])]
    encoder = BulkEncoder.load(options(minilm, dtype=dtype))
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=tolerance)


def test_a_revision_of_a_model_that_is_not_of_the_hub_is_refused(minilm: str) -> None:
    with pytest.raises(UsageError, match="--revision v1 names a state of a model of the hub"):
        BulkEncoder.load(options(minilm, revision="v1"))


def test_bfloat16_keeps_the_vectors_of_real_texts(minilm: str, cranfield_texts: list[str]) -> None:
    texts = cranfield_texts[:8]
    exact = BulkEncoder.load(options(minilm)).encode(texts)
    fast = BulkEncoder.load(options(minilm, dtype=Dtype.BFLOAT16)).encode(texts)
    assert (exact * fast).sum(axis=1).min() >= 0.9999


def test_cls_is_the_hidden_state_not_the_pooler(tiny_bert: Path, encoder: BulkEncoder) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tiny_bert)("the cat", return_tensors="pt")
    model = AutoModel.from_pretrained(tiny_bert).eval()
    with torch.inference_mode():
        pooler = model(**tokens).pooler_output[0].numpy()
    assert abs(float(encoder.encode(["the cat"])[0] @ (pooler / np.linalg.norm(pooler)))) < 0.9


def test_prompts_are_prepended_and_names_stand_for_declared_texts(tmp_path: Path) -> None:
    declares = {"config_sentence_transformers.json": {"prompts": {"query": "the query: ", "passage": "a passage: "}}}
    directory = build_model(tmp_path / "m", declares=declares)
    encoder = BulkEncoder.load(options(directory, query_prompt="query", doc_prompt="my own "))
    assert (encoder.contract.query_prompt, encoder.contract.doc_prompt) == ("the query: ", "my own ")
    bare = BulkEncoder.load(options(directory))
    np.testing.assert_allclose(encoder.encode_queries(["bank"]), bare.encode(["the query: bank"]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode(["bank"]), bare.encode(["my own bank"]), atol=1e-6)
    assert encoder.warnings == []
    assert "prompts that are not used" in bare.warnings[0]


def test_pooling_auto_takes_what_the_model_declares(tmp_path: Path) -> None:
    directory = build_model(tmp_path / "m", declares=declared_pooling("mean_tokens"))
    encoder = BulkEncoder.load(options(directory, pooling=Pooling.AUTO))
    assert encoder.contract.pooling is Pooling.MEAN
    assert encoder.warnings == []
    undeclared = build_model(tmp_path / "n")
    with pytest.raises(UsageError, match="declares no pooling"):
        BulkEncoder.load(options(undeclared, pooling=Pooling.AUTO))


def test_cls_without_a_cls_token_is_warned_of(tmp_path: Path) -> None:
    encoder = BulkEncoder.load(options(build_model(tmp_path / "m", special_first=False)))
    assert len(encoder.warnings) == 1
    assert "first word" in encoder.warnings[0]
    with pytest.raises(NonFiniteVectorError) as caught:
        encoder.encode(["the cat", ""])
    assert caught.value.position == 1


def test_max_length_is_the_declared_one_capped_by_the_positions(tmp_path: Path) -> None:
    declares = {"sentence_bert_config.json": {"max_seq_length": 20}}
    directory = build_model(tmp_path / "m", "roberta", declares=declares)
    assert BulkEncoder.load(options(directory)).contract.max_length_tokens == 20
    assert BulkEncoder.load(options(directory, max_length=64)).contract.max_length_tokens == 64
    with pytest.raises(UsageError, match=r"65 is more than the 64 tokens"):
        BulkEncoder.load(options(directory, max_length=65))
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert BulkEncoder.load(options(directory)).contract.max_length_tokens == 64


def wrap_model(encoder: BulkEncoder, wrap: Callable[[Any], Any]) -> None:
    """Put something between the workers of an encoder and their models."""
    pipeline = encoder._pipeline
    for _ in pipeline._models:
        pipeline._idle.put(wrap(pipeline._idle.get()))


class Wrapped:
    """A model whose call goes through a function of the tokens."""

    def __init__(self, model: Any, before: Callable[..., None]) -> None:
        self.model = model
        self.device = model.device
        self.before = before

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> Any:
        vectors = self.model(ids, lengths)
        self.before(ids, lengths, vectors)
        return vectors


def test_a_vector_that_is_not_finite_names_its_position(tiny_bert: Path) -> None:
    import torch

    encoder = BulkEncoder.load(options(tiny_bert))
    fatal = encoder._tokenizer.encode(["storm"], 64).ids[1]

    def poison(ids: np.ndarray, lengths: np.ndarray, vectors: torch.Tensor) -> None:
        texts = np.split(ids, np.cumsum(lengths)[:-1])
        vectors[[bool((text == fatal).any()) for text in texts]] = torch.nan

    wrap_model(encoder, lambda model: Wrapped(model, poison))
    with pytest.raises(NonFiniteVectorError) as caught:
        encoder.encode(["the cat", "a storm", "the dog"])
    assert caught.value.position == 1
    assert np.isfinite(encoder.encode(["the cat", "the dog"])).all()


@pytest.mark.parametrize("pooling", [Pooling.CLS, Pooling.MEAN, Pooling.LAST])
def test_pooling_takes_the_right_positions_and_ignores_padding(pooling: Pooling) -> None:
    import torch

    from indexer.encoder.pooling import pool

    hidden = torch.zeros(2, 5, 3)
    hidden[:, :, 0] = torch.arange(1.0, 6.0)
    hidden[:, :, 1] = 1.0
    hidden[1, 3:] = torch.nan
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    first = {Pooling.CLS: (1, 1), Pooling.MEAN: (3, 2), Pooling.LAST: (5, 3)}[pooling]
    expected = np.array([[value, 1.0, 0.0] for value in first])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = pool(hidden.half(), mask, pooling)
    np.testing.assert_allclose((found / found.norm(dim=1, keepdim=True)).numpy(), expected, atol=1e-6)


def test_out_of_memory_halves_the_batches_and_goes_on(tiny_bert: Path, encoder: BulkEncoder) -> None:
    import torch

    small, sizes = BulkEncoder.load(options(tiny_bert, batch_tokens=1000)), []

    def scarce(ids: np.ndarray, lengths: np.ndarray, _vectors: object) -> None:
        sizes.append(len(ids))
        if len(ids) > 130:
            raise torch.OutOfMemoryError("no")

    wrap_model(small, lambda model: Wrapped(model, scarce))
    np.testing.assert_allclose(small.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    assert small._pipeline.batch_tokens < 1000
    assert sizes[0] > sizes[1]
    n_tried = len(sizes)
    small.encode(TEXTS)
    assert max(sizes[n_tried:]) <= 130, "what did not fit is not tried again"

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no")

    wrap_model(small, lambda model: Wrapped(model, full))
    with pytest.raises(EncoderError, match="does not fit into the memory"):
        small.encode(TEXTS)


def test_an_existing_contract_decides_and_contradictions_name_both_values(tiny_bert: Path, tmp_path: Path) -> None:
    contract = BulkEncoder.load(options(tiny_bert, pooling=Pooling.MEAN, max_length=32, doc_prompt="the ")).contract
    again = BulkEncoder.load(EncoderOptions(device="cpu", dtype=Dtype.FLOAT32), contract=contract)
    assert again.contract == contract
    with pytest.raises(ContractError, match=r"--pooling is 'cls', but the index was built with 'mean'"):
        BulkEncoder.load(options(tiny_bert, pooling=Pooling.CLS), contract=contract)
    with pytest.raises(ContractError, match=r"--max-length is 33, .* 32"):
        BulkEncoder.load(options(tiny_bert, max_length=33), contract=contract)
    other = build_model(tmp_path / "other", seed=1)
    with pytest.raises(ContractError, match=contract.weights_sha256[:12]) as caught:
        BulkEncoder.load(options(other), contract=contract)
    assert f"--model {contract.model}" in str(caught.value)


def test_the_same_weights_elsewhere_are_the_same_model(tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    contract = BulkEncoder.load(options(tiny_bert)).contract
    shutil.copytree(tiny_bert, tmp_path / "copy")
    assert BulkEncoder.load(options(tmp_path / "copy"), contract=contract).contract == contract


def test_loading_writes_nothing_to_the_terminal(tiny_bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    BulkEncoder.load(options(tiny_bert)).encode(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_weights_that_are_missing_are_refused_not_invented(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    directory = build_model(tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        BulkEncoder.load(options(directory))


@pytest.mark.parametrize("device", ["cuda:7", "nonsense"])
def test_a_device_that_is_not_there_is_a_usage_error(device: str, tiny_bert: Path) -> None:
    with pytest.raises(UsageError, match=f"--device {device}"):
        BulkEncoder.load(options(tiny_bert, device=device))


def test_chunks_longer_than_the_model_takes_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(UsageError, match=r"--chunk-tokens 65 is more than the 64 tokens"):
        BulkEncoder.load(options(tiny_bert, chunk_tokens=65))
