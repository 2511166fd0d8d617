"""The plain forward pass: any encoder of transformers, texts padded to the longest; what the fast passes must equal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.config import Pooling
from indexer.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor

    from indexer.encoder.engine import Transformer

# (most, step): a batch of up to so many tokens a text is padded to a multiple of the step.
Steps = Sequence[tuple[int, int]]

# oneDNN keeps a program for every shape it meets, some 100 kB each, so long lengths go in steps.
_STEPS = ((64, 1), (sys.maxsize, 8))
_MAX_ROWS = 4_096


class PlainModel:
    """A transformer on one device, for one thread at a time.

    Args:
        model: the bare encoder.
        name: of the model, for messages.
        pooling: CLS, MEAN or LAST.

    Raises:
        EncoderError: it cannot run over tokens alone.
    """

    engine = "torch"
    cpu_batch_tokens = 2_048
    any_thread = False  # some architectures keep tables of positions that grow

    def __init__(self, model: Transformer, name: str, pooling: Pooling) -> None:
        self._model = model
        self._pooling = pooling
        self.device = model.device
        self._pad_id = getattr(model.config, "pad_token_id", None) or 0
        try:
            self.dim = int(self._hidden(np.zeros((1, 3), np.int64), np.ones((1, 3), bool))[0].shape[2])
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            msg = f"{name} ({model.config.model_type}) cannot be used as a text encoder: {error}"
            raise EncoderError(msg) from error

    def n_fit(self, lengths: NDArray[np.int32], budget: int) -> int:
        """Return how many of the first texts fit, padded, into a budget of tokens, at least one."""
        return min(n_within_padded(lengths, budget, _STEPS), _MAX_ROWS)

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Tensor:
        """Return the pooled hidden states, (b, d) float32 on the device, not waited for.

        Args:
            ids: token ids of the texts, one behind the other, (t,).
            lengths: tokens of each text, (b,), at least 1.
        """
        from indexer.encoder.pooling import pool

        inside = np.arange(padded_length(int(lengths.max()), _STEPS)) < lengths[:, None]
        padded = np.full(inside.shape, self._pad_id, np.int64)
        padded[inside] = ids
        return pool(*self._hidden(padded, inside), self._pooling)

    def _hidden(self, ids: NDArray[np.int64], inside: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """Return the last hidden state, (b, t, d), and the mask, (b, t) bool."""
        import torch

        mask = torch.from_numpy(inside).to(self.device)
        output = self._model(input_ids=torch.from_numpy(ids).to(self.device), attention_mask=mask.long())
        return output.last_hidden_state, mask


def padded_length(longest: int, steps: Steps) -> int:
    """Return the length that a batch is padded to: few lengths are few shapes, for each of which kernels are kept."""
    step = next(step for most, step in steps if longest <= most)
    return -(-longest // step) * step


def n_within_padded(lengths: NDArray[np.int32], budget: int, steps: Steps) -> int:
    """Return how many of the first texts fit, padded to the first, into a budget of tokens, at least one."""
    return min(max(budget // padded_length(int(lengths[0]), steps), 1), len(lengths))
