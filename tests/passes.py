"""What the tests of the forward passes share: texts of all lengths, in the order that a pass takes, and its answer."""

from __future__ import annotations

import numpy as np

from indexer.config import Pooling
from indexer.encoder.engine import Forward
from indexer.encoder.plain import PlainModel
from indexer.encoder.tokens import TextTokenizer, Tokens

PACKED = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert")  # what runs the fast pass
POOLINGS = (Pooling.CLS, Pooling.MEAN, Pooling.LAST)
TEXTS = [
    "the cat sat on the mat",
    "card",
    "",
    "pressure of the boundary layer in the flow, " * 12,
    "[PAD] is no [PAD] here [SEP]",
    "storm and shock " * 6,
    "the dog sat on the mat",
]


def longest_first(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-tokens.lengths, kind="stable")
    return tokens.take(order), tokens.lengths[order]


def vectors(model: Forward, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        found = model(ids, lengths)
    assert found.dtype is torch.float32
    return found.numpy()


def check_random_weights(model: Forward, plain: PlainModel, tokenizer: TextTokenizer) -> None:
    """Check a pass over a tiny model in float32 against the plain one."""
    ids, lengths = longest_first(tokenizer.encode(TEXTS, 64))
    assert len(np.unique(lengths)) < len(lengths), "some texts share a length"
    expected = vectors(plain, ids, lengths)
    assert np.ptp(expected, axis=0).max() > 0.1, "the oracle must tell texts apart"
    np.testing.assert_allclose(vectors(model, ids, lengths), expected, atol=1e-5)
    assert model.dim == plain.dim


def check_real_weights(
    exact: Forward, fast: Forward, plain: PlainModel, tokenizer: TextTokenizer, texts: list[str]
) -> None:
    """Check a pass over a real model, in float32 and in bfloat16, against the plain one in float32."""
    ids, lengths = longest_first(tokenizer.encode([*texts, *TEXTS], 256))
    expected = vectors(plain, ids, lengths)
    np.testing.assert_allclose(vectors(exact, ids, lengths), expected, atol=2e-5)
    found = vectors(fast, ids, lengths)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) / norms).min() >= 0.9999
