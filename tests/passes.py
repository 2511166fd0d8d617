"""What the tests of the forward passes share: texts of all lengths, in the order that a pass takes, and its answer."""

from __future__ import annotations

import numpy as np

from indexer.config import Pooling
from indexer.encoder.engine import Forward
from indexer.encoder.tokens import Tokens

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


def vectors(model: Forward, ids: np.ndarray, lengths: np.ndarray, pooling: Pooling) -> np.ndarray:
    import torch

    with torch.inference_mode():
        found = model(ids, lengths, pooling)
    assert found.dtype is torch.float32
    return found.numpy()
