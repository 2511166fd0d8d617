"""Padded hidden states into one vector per text, with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from indexer.config import Pooling

if TYPE_CHECKING:
    from torch import Tensor


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector per text, (b, d) float32, not normalised.

    Args:
        hidden: last hidden state, (b, t, d) of any float type.
        mask: (b, t) bool, true for tokens, which come first in each row; at least one in each.
        pooling: CLS, MEAN or LAST.
    """
    match pooling:
        case Pooling.CLS:
            return hidden[:, 0].float()
        case Pooling.MEAN:
            # Not a product with the mask: a padded position may hold NaN.
            total = hidden.float().masked_fill(~mask.unsqueeze(2), 0.0).sum(dim=1)
            return total / mask.sum(dim=1, keepdim=True)
        case Pooling.LAST:
            last = mask.sum(dim=1) - 1
            return hidden.take_along_dim(last[:, None, None], dim=1)[:, 0].float()
        case Pooling.AUTO:
            msg = "pooling must be resolved before"
            raise ValueError(msg)
        case _:
            assert_never(pooling)
