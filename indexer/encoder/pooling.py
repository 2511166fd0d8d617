"""Hidden states into one unit vector per text, with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from indexer.config import Pooling

if TYPE_CHECKING:
    from torch import Tensor


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling, *, normalize: bool = True) -> Tensor:
    """Pool, and normalise unless told not to.

    Args:
        hidden: last hidden state, (b, t, d) of any float type.
        mask: (b, t) bool, true for tokens, which come first in each row; at least one in each.
        pooling: CLS, MEAN or LAST.
        normalize: scale to unit length.

    Returns:
        (b, d) float32; of unit length, and NaN where the hidden state holds NaN or Inf or is zero, if normalised.
    """
    vectors = _pooled(hidden, mask, pooling)
    if not normalize:
        return vectors
    # In 16 bits the square of a hidden state can overflow, so the cast comes first; 0/0 and inf/inf become NaN.
    norms: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / norms


def _pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
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
