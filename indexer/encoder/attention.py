"""Attention over texts that stand one behind the other, each token to the tokens of its own text alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Texts:
    """Where b texts stand in a flat matrix of t tokens.

    `starts` and `lengths` are (b,) int64; `groups` are (first text, texts, length) of each run of equal lengths.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    groups: list[tuple[int, int, int]]

    @property
    def lasts(self) -> NDArray[np.int64]:
        """The last token of each text, (b,)."""
        return self.starts + self.lengths - 1

    @classmethod
    def of(cls, lengths: NDArray[np.int32]) -> Texts:
        """Return where texts of these lengths, (b,), stand."""
        wide = lengths.astype(np.int64)
        bounds = [0, *(np.flatnonzero(np.diff(wide)) + 1).tolist(), len(wide)]
        groups = [(first, stop - first, int(wide[first])) for first, stop in pairwise(bounds)]
        return cls(np.cumsum(wide) - wide, wide, groups)


class Attention(Protocol):
    """Attends within each text."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, only: int | None = None) -> Tensor:
        """Return what each query attended to, of the shape of the queries.

        Args:
            queries: (r, h, c): of all tokens, or of one token of each text.
            keys: (r, h, c), of all tokens.
            values: (r, h, c), of all tokens.
            only: which token of each text the queries are of, 0 or -1; None means all.
        """


@dataclass(frozen=True, slots=True)
class ByLength:
    """One call, free of padding, of scaled_dot_product_attention for all texts of one length; runs on every device.

    `bias` (h, m, m), with m the longest length, is added to the scores, or, if it is bool, says which tokens are seen;
    it depends on the distance of two tokens alone.
    """

    texts: Texts
    bias: Tensor | None = None

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, only: int | None = None) -> Tensor:
        """Attend; rows behind the last text come out as zero."""
        from torch.nn.functional import scaled_dot_product_attention

        context = queries.new_zeros(queries.shape)
        for first, n, length in self.texts.groups:
            start = int(self.texts.starts[first])
            tokens = slice(start, start + n * length)
            rows = tokens if only is None else slice(first, first + n)
            bias = None if self.bias is None else self.bias[:, :length, :length]
            if bias is not None and only is not None:
                bias = bias[:, only:][:, :1]  # a list of one would be copied to the device first
            query, key, value = (
                part.view(n, -1, *part.shape[1:]).transpose(1, 2)
                for part in (queries[rows], keys[tokens], values[tokens])
            )
            found = scaled_dot_product_attention(query, key, value, attn_mask=bias)
            context[rows].view(n, -1, *context.shape[1:]).copy_(found.transpose(1, 2))
        return context


@dataclass(frozen=True, slots=True)
class Varlen:
    """The kernel of torch for texts of all lengths at once, on CUDA; `varlen_kernel` finds it.

    `bounds` (b + 1,) int32 on the device are where texts start, and the last one ends; `longest` is the longest length.
    """

    kernel: Callable[..., Tensor]
    bounds: Tensor
    longest: int

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, only: int | None = None) -> Tensor:
        """Attend; rows behind the last text come out as anything."""
        import torch

        if only is None:
            return self.kernel(queries, keys, values, self.bounds, self.bounds, self.longest, self.longest)
        one_each = torch.arange(len(self.bounds), dtype=torch.int32, device=self.bounds.device)
        return self.kernel(queries, keys, values, one_each, self.bounds, 1, self.longest)


@dataclass(frozen=True, slots=True)
class Rotated:
    """Attention with rotary positions: queries and keys are turned by the angles of their positions.

    `firsts` and `lasts` (b,) are the first and last token of each text; `cosines` and `sines`, (t, 1, c / 2) float32,
    are of all tokens. Source: Su et al., RoFormer, 2021.
    """

    inner: Attention
    firsts: Tensor
    lasts: Tensor
    cosines: Tensor
    sines: Tensor

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, only: int | None = None) -> Tensor:
        """Turn and attend."""
        cosines, sines = self.cosines, self.sines
        if only is not None:
            at = self.firsts if only == 0 else self.lasts
            cosines, sines = cosines[at], sines[at]
        return self.inner(_turned(queries, cosines, sines), _turned(keys, self.cosines, self.sines), values, only)


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    import torch

    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1).to(x.dtype)


def varlen_kernel(heads: Tensor) -> Callable[..., Tensor] | None:
    """Return torch's kernel for texts of all lengths, new in torch 2.10, or None where it does not run.

    Which cards, number formats and sizes of a head it takes changes with torch (2.13: Ampere or newer, 16 bits, a
    multiple of 8 up to 256), and not every wheel has it, so it is tried.

    Args:
        heads: (r, h, c), on the device and in the number format of what will attend.
    """
    import torch

    try:
        from torch.nn.attention.varlen import varlen_attn

        bounds = torch.tensor([0, len(heads)], dtype=torch.int32, device=heads.device)
        varlen_attn(heads, heads, heads, bounds, bounds, len(heads), len(heads))
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        logger.info("texts attend by runs of one length: torch's kernel for all lengths does not run here: %s", reason)
        return None
    kernel: Callable[..., Any] = varlen_attn
    return kernel
