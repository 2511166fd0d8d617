"""The fast forward pass against the plain one, for every family, with random and with real weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import FAMILIES, build_model, stored_as
from passes import PACKED, POOLINGS, TEXTS, check_random_weights, check_real_weights, longest_first, vectors

from indexer.config import Pooling
from indexer.encoder.attention import ByLength, Texts, Varlen, varlen_kernel
from indexer.encoder.engine import load_forward, load_model
from indexer.encoder.models import resolve_model
from indexer.encoder.modern import pack_modern
from indexer.encoder.packed import PackedModel, pack
from indexer.encoder.plain import PlainModel
from indexer.encoder.tokens import TextTokenizer


def both(name: Path | str, pooling: Pooling, dtype: str = "float32") -> tuple[PackedModel, PlainModel, TextTokenizer]:
    import torch

    files = resolve_model(str(name), allow_download=False)
    model = load_model(files, "cpu", torch.float32)
    number = getattr(torch, dtype)
    with torch.inference_mode():
        packed = pack(model, files.config, number, pooling) or pack_modern(model, number, pooling)
        plain = PlainModel(model, files.name, pooling)
    assert packed is not None
    return packed, plain, TextTokenizer.load(files)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_that_are_claimed_and_no_others_run_the_fast_pass(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("indexer.encoder.compiled.is_installed", lambda: False)

    files = resolve_model(str(build_model(tmp_path / "m", family)), allow_download=False)
    model, _ = load_forward(files, "cpu", torch.float32, Pooling.CLS)
    assert isinstance(model, PackedModel if family in PACKED else PlainModel)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", PACKED)
def test_it_equals_the_plain_pass_with_random_weights(family: str, pooling: Pooling, tmp_path: Path) -> None:
    packed, plain, tokenizer = both(build_model(tmp_path / "m", family), pooling)
    check_random_weights(packed, plain, tokenizer)


def test_a_checkpoint_in_bfloat16_gives_the_vectors_of_transformers(tmp_path: Path) -> None:
    packed, plain, tokenizer = both(stored_as("bfloat16", build_model(tmp_path / "m")), Pooling.MEAN)
    check_random_weights(packed, plain, tokenizer)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_it_equals_the_plain_pass_with_real_weights(pooling: Pooling, minilm: str, cranfield_texts: list[str]) -> None:
    packed, plain, tokenizer = both(minilm, pooling)
    fast, _, _ = both(minilm, pooling, "bfloat16")
    check_real_weights(packed, fast, plain, tokenizer, cranfield_texts[:6])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_mpnet_beyond_its_exact_buckets(pooling: Pooling, tmp_path: Path) -> None:
    packed, plain, tokenizer = both(build_model(tmp_path / "m", "mpnet", max_position_embeddings=402), pooling)
    ids, lengths = longest_first(tokenizer.encode(["heat flow " * n for n in (5, 30, 90, 190)], 400))
    np.testing.assert_allclose(vectors(packed, ids, lengths), vectors(plain, ids, lengths), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_modernbert_variants(pooling: Pooling, tmp_path: Path) -> None:
    """Windows wider and narrower than the texts, biases everywhere, one kind of layer only."""
    variants: list[dict[str, object]] = [
        {"local_attention": 200},
        {"local_attention": 2},
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True},
        {"global_attn_every_n_layers": 1},
        {"num_hidden_layers": 1},
    ]
    for number, changes in enumerate(variants):
        packed, plain, tokenizer = both(build_model(tmp_path / str(number), "modernbert", **changes), pooling)
        ids, lengths = longest_first(tokenizer.encode(TEXTS, 64))
        expected = vectors(plain, ids, lengths)
        np.testing.assert_allclose(vectors(packed, ids, lengths), expected, atol=2e-5, err_msg=str(changes))


def test_a_modernbert_of_another_make_runs_the_plain_pass(tmp_path: Path) -> None:
    import torch

    model = load_model(
        resolve_model(str(build_model(tmp_path / "m", "modernbert")), allow_download=False), "cpu", torch.float32
    )
    assert pack_modern(model, torch.float32, Pooling.CLS) is not None
    model.config.hidden_activation = "relu"
    assert pack_modern(model, torch.float32, Pooling.CLS) is None
    model.config.hidden_activation = "gelu"
    model.config.rope_parameters["full_attention"]["rope_type"] = "yarn"
    assert pack_modern(model, torch.float32, Pooling.CLS) is None


def test_a_model_that_lacks_a_tensor_of_its_family_runs_the_plain_pass(tiny_bert: Path) -> None:
    import torch

    files = resolve_model(str(tiny_bert), allow_download=False)
    model = load_model(files, "cpu", torch.float32)
    assert pack(model, files.config, torch.float32, Pooling.CLS) is not None
    assert pack(model, {**files.config, "model_type": "distilbert"}, torch.float32, Pooling.CLS) is None
    assert pack(model, {**files.config, "hidden_act": "relu"}, torch.float32, Pooling.CLS) is None


@pytest.mark.parametrize(("budget", "n"), [(1, 1), (30, 1), (49, 1), (50, 2), (59, 2), (60, 3), (1000, 4)])
def test_texts_fit_a_budget_by_their_tokens_without_padding(budget: int, n: int, tiny_bert: Path) -> None:
    packed, _, _ = both(tiny_bert, Pooling.CLS)
    assert packed.n_fit(np.array([30, 20, 10, 5], np.int32), budget) == n


def kernel_in_its_place() -> Callable[..., Any]:
    """Return what torch's kernel for CUDA does, for the CPU: an attention of its own for each text."""
    from torch import cat
    from torch.nn.functional import scaled_dot_product_attention

    def attend(query, key, value, query_bounds, key_bounds, longest_query, longest_key):
        found = []
        for text in range(len(query_bounds) - 1):
            rows = slice(int(query_bounds[text]), int(query_bounds[text + 1]))
            tokens = slice(int(key_bounds[text]), int(key_bounds[text + 1]))
            assert 0 < rows.stop - rows.start <= longest_query
            assert 0 < tokens.stop - tokens.start <= longest_key
            parts = (part.transpose(0, 1)[None] for part in (query[rows], key[tokens], value[tokens]))
            found.append(scaled_dot_product_attention(*parts)[0].transpose(0, 1))
        return cat([*found, query[int(query_bounds[-1]) :]])

    return attend


@pytest.mark.parametrize("only", [None, 0, -1])
def test_attention_by_length_equals_the_kernel_for_all_lengths(only: int | None) -> None:
    import torch

    lengths = np.array([7, 4, 4, 4, 1, 1], np.int32)
    texts = Texts.of(lengths)
    torch.manual_seed(0)
    keys, values = torch.randn(2, 32, 4, 8)  # rows behind the last text, too
    queries = torch.randn(32 if only is None else len(lengths), 4, 8)
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    n = len(queries) if only is not None else int(lengths.sum())
    expected = Varlen(kernel_in_its_place(), bounds, 7)(queries, keys, values, only)[:n]
    np.testing.assert_allclose(ByLength(texts)(queries, keys, values, only)[:n], expected, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_whole_pass_is_the_same_with_the_kernel_for_all_lengths(
    family: str, pooling: Pooling, tmp_path: Path
) -> None:
    packed, plain, tokenizer = both(build_model(tmp_path / "m", family), pooling)
    packed._varlen = kernel_in_its_place()
    ids, lengths = longest_first(tokenizer.encode(TEXTS, 64))
    np.testing.assert_allclose(vectors(packed, ids, lengths), vectors(plain, ids, lengths), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "dtype", "runs"), [(32, "float16", True), (26, "float16", False), (32, "float32", False)]
)
def test_the_kernel_for_all_lengths_is_found_only_where_it_runs(
    size: int, dtype: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of 26 numbers are those of BERTs of 312 dimensions; an older card refuses every head in the same way."""
    import torch

    heads = torch.zeros(1, 12, size, dtype=getattr(torch, dtype))
    assert varlen_kernel(heads) is None, "on a CPU there is none"

    def as_torch_does(query: torch.Tensor, *_: object) -> torch.Tensor:
        if query.dtype is torch.float32 or query.shape[2] % 8:
            raise RuntimeError("head_size must be a multiple of 8, this is ensured by padding!")
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", as_torch_does)
    assert varlen_kernel(heads) is (as_torch_does if runs else None)
