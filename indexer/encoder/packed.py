"""The fast forward pass in torch: texts one behind the other without padding, under a token budget; the BERT family.

Queries, keys and values come from one product; the last layer is computed for the one position that pooling takes; on a
CPU that computes in bfloat16 the products are in bfloat16 and all that is between them in float32. It equals the plain
pass of transformers (`plain.py`), which runs every model that is neither of this family nor ModernBERT (`modern.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, assert_never

import numpy as np
from numpy.typing import NDArray

from indexer.config import Pooling
from indexer.encoder.attention import Attention, ByLength, Texts, Varlen, varlen_kernel
from indexer.encoder.families import (
    EMBEDDINGS_NORM,
    POSITIONS,
    TYPES,
    WORDS,
    Shape,
    position_ids,
    read_shape,
    relative_buckets,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from indexer.encoder.engine import Transformer

# oneDNN keeps a program for every number of rows that it meets, some 100 kB each; steps keep their number bounded.
_ROW_STEP = 16


class Linear(NamedTuple):
    """Weight (o, i) and bias (o,) of a product."""

    weight: Tensor
    bias: Tensor | None


class Norm(NamedTuple):
    """Weight and bias of a layer norm, (d,) each."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer; `before` is the norm of what it reads, if it has one there.

    `inputs` gives queries, keys and values, (3 d, d); where the two other norms stand is the family's affair.
    """

    before: Norm | None
    inputs: Linear
    attended: Linear
    attended_norm: Norm
    up: Linear
    down: Linear
    norm: Norm | None


class PackedModel(ABC):
    """A model on one device. Any number of threads may use it."""

    engine = "torch"
    # On Zen 4, one thread a worker, MiniLM: 512 to 2,048 are alike; beyond, what is between products leaves the cache.
    cpu_batch_tokens = 1_024
    any_thread = True

    def __init__(
        self,
        words: Tensor,
        layers: Sequence[Layer],
        *,
        dtype: torch.dtype,
        pooling: Pooling,
        n_heads: int,
        eps: float,
    ) -> None:
        self._words = words
        self._layers = layers
        self._dtype = dtype
        self._pooling = pooling
        self._n_heads = n_heads
        self._eps = eps
        self.device = words.device
        heads = words.new_zeros((1, n_heads, self.dim // n_heads), dtype=dtype)
        self._varlen = varlen_kernel(heads) if heads.is_cuda else None

    @abstractmethod
    def _embed(self, ids: NDArray[np.int32], texts: Texts) -> Tensor:
        """Return the embeddings, (t, d), with rows of no text behind them up to a whole step."""

    @abstractmethod
    def _attentions(self, texts: Texts) -> Sequence[Attention]:
        """Return how each layer attends."""

    @abstractmethod
    def _advance(self, layer: Layer, x: Tensor, context: Tensor) -> Tensor:
        """Return the states after a layer, (r, d), from those before it and what they attended to, (r, h, d / h)."""

    @property
    def dim(self) -> int:
        """Length of a hidden state."""
        return int(self._words.shape[1])

    def n_fit(self, lengths: NDArray[np.int32], budget: int) -> int:
        """Return how many of the first texts fit into a budget of tokens, at least one."""
        return n_within(lengths, budget)

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Tensor:
        """Return the pooled hidden states, (b, d) float32 on the device, not waited for.

        Args:
            ids: token ids of the texts, one behind the other, (t,).
            lengths: tokens of each text, (b,), at least 1; equal lengths are neighbours.
        """
        texts = Texts.of(lengths)
        *others, (layer, attend) = zip(self._layers, self._attentions(texts), strict=True)
        x = self._embed(ids, texts)
        for other, attends in others:
            x = self._whole(other, x, attends)
        match self._pooling:
            case Pooling.MEAN:
                return self._means(self._whole(layer, x, attend), texts)
            case Pooling.CLS:
                return self._last(layer, x, attend, texts.starts, 0)
            case Pooling.LAST:
                return self._last(layer, x, attend, texts.lasts, -1)
            case Pooling.AUTO:
                msg = "pooling must be resolved before"
                raise ValueError(msg)
            case _:
                assert_never(self._pooling)

    def _whole(self, layer: Layer, x: Tensor, attend: Attention) -> Tensor:
        """Return the states of all tokens after a layer, (t, d)."""
        queries, keys, values = self._heads(self._normed(x, layer.before), layer.inputs, 3)
        return self._advance(layer, x, attend(queries, keys, values))

    def _last(self, layer: Layer, x: Tensor, attend: Attention, tokens: NDArray[np.int64], only: int) -> Tensor:
        """Return the states after the last layer of one token of each text, (b, d) float32."""
        queries_of, others_of = _parted(layer.inputs, x.shape[1])
        read = self._normed(x, layer.before)
        keys, values = self._heads(read, others_of, 2)
        at = self._to_device(tokens)
        (queries,) = self._heads(read[at], queries_of, 1)
        return self._advance(layer, x[at], attend(queries, keys, values, only)).float()

    def _heads(self, x: Tensor, linear: Linear, n: int) -> tuple[Tensor, ...]:
        """Return n projections of (t, d) as (t, h, d / h) each."""
        from torch.nn.functional import linear as multiply

        projected = multiply(x.to(self._dtype), *linear)
        return projected.view(len(x), n, self._n_heads, -1).unbind(1)

    def _normed(self, x: Tensor, norm: Norm | None) -> Tensor:
        from torch.nn.functional import layer_norm

        return x if norm is None else layer_norm(x, x.shape[-1:], *norm, self._eps)

    def _attention(self, texts: Texts) -> Attention:
        """Return attention of every token to its whole text."""
        if self._varlen is not None:
            bounds = np.append(texts.starts, texts.lengths.sum()).astype(np.int32)
            return Varlen(self._varlen, self._to_device(bounds), int(texts.lengths.max()))
        return ByLength(texts)

    def _means(self, x: Tensor, texts: Texts) -> Tensor:
        owners = self._to_device(np.repeat(np.arange(len(texts.lengths)), texts.lengths))
        total = x.new_zeros((len(texts.lengths), x.shape[1])).float()
        return total.index_add_(0, owners, x[: len(owners)].float()) / self._to_device(texts.lengths)[:, None]

    def _to_device(self, array: NDArray[np.int64] | NDArray[np.int32]) -> Tensor:
        import torch

        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


class BertModel(PackedModel):
    """A model of the BERT family, made by `pack`: norms behind the sums, positions in the embeddings."""

    def __init__(self, model: Transformer, shape: Shape, dtype: torch.dtype, pooling: Pooling) -> None:
        family, state, wide = shape.family, model.state_dict(), wide_dtype(model, dtype)
        layers = [_layer(state, shape, number, dtype, wide) for number in range(shape.n_layers)]
        super().__init__(
            state[WORDS].to(wide), layers, dtype=dtype, pooling=pooling, n_heads=shape.n_heads, eps=shape.norm_eps
        )
        self._shape = shape
        self._positions = state[POSITIONS].to(wide)
        if family.has_types:
            self._positions = self._positions + state[TYPES][0].to(wide)
        self._norm = _norm(state, EMBEDDINGS_NORM, wide)
        self._bias = state[family.relative_bias].to(dtype) if family.relative_bias else None

    def _embed(self, ids: NDArray[np.int32], texts: Texts) -> Tensor:
        positions = in_steps(position_ids(ids, texts.starts, self._shape))
        at = self._to_device(np.stack((in_steps(ids), positions)))
        return self._normed(self._words[at[0]] + self._positions[at[1]], self._norm)

    def _advance(self, layer: Layer, x: Tensor, context: Tensor) -> Tensor:
        from torch.nn.functional import gelu, linear

        x = self._normed(x + linear(context.flatten(1), *layer.attended), layer.attended_norm)
        inner = gelu(linear(x.to(self._dtype), *layer.up))
        return self._normed(x + linear(inner, *layer.down), layer.norm)

    def _attentions(self, texts: Texts) -> Sequence[Attention]:
        attention = self._attention(texts)
        if self._bias is not None:
            buckets = self._to_device(relative_buckets(len(self._bias), int(texts.lengths.max())))
            attention = ByLength(texts, self._bias[buckets].permute(2, 0, 1))
        return [attention] * len(self._layers)


def n_within(lengths: NDArray[np.int32], budget: int) -> int:
    """Return how many of the first texts have at most `budget` tokens together, at least one."""
    # A text has a token at least, so no more texts than that need to be looked at.
    return max(int(np.searchsorted(np.cumsum(lengths[:budget]), budget, side="right")), 1)


def wide_dtype(model: Transformer, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of what is between the products.

    On a CPU sums and norms in float32 cost nothing and keep a vector four times nearer to float32.
    """
    import torch

    return torch.float32 if model.device.type == "cpu" else dtype


def in_steps(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """Return numbers with zeros behind them up to a whole step of rows, int64."""
    padded = np.zeros(-(-len(numbers) // _ROW_STEP) * _ROW_STEP, np.int64)
    padded[: len(numbers)] = numbers
    return padded


def pack(model: Transformer, config: Mapping[str, Any], dtype: torch.dtype, pooling: Pooling) -> PackedModel | None:
    """Return the fast form of a model, None for one that this forward pass does not know to the last detail.

    Args:
        model: as transformers loaded it; its tensors are shared or copied.
        config: content of config.json.
        dtype: number format of the products.
        pooling: CLS, MEAN or LAST.
    """
    shape = read_shape(config)
    if shape is None:
        return None
    try:
        return BertModel(model, shape, dtype, pooling)
    except KeyError:  # a tensor that the family does not name so
        return None


def _layer(state: Mapping[str, Tensor], shape: Shape, number: int, dtype: torch.dtype, wide: torch.dtype) -> Layer:
    import torch

    family, at = shape.family, shape.family.layer.format(number)

    def linear(*names: str) -> Linear:
        weights, biases = ([state[f"{at}{name}.{part}"].to(dtype) for name in names] for part in ("weight", "bias"))
        return Linear(torch.cat(weights), torch.cat(biases))

    return Layer(
        before=None,
        inputs=linear(family.query, family.key, family.value),
        attended=linear(family.attended),
        attended_norm=_norm(state, at + family.attended_norm, wide),
        up=linear(family.up),
        down=linear(family.down),
        norm=_norm(state, at + family.norm, wide),
    )


def _norm(state: Mapping[str, Tensor], name: str, wide: torch.dtype) -> Norm:
    return Norm(state[f"{name}.weight"].to(wide), state[f"{name}.bias"].to(wide))


def _parted(linear: Linear, n: int) -> tuple[Linear, Linear]:
    """Return the first n outputs of a product and the others."""
    weight, bias = linear
    if bias is None:
        return Linear(weight[:n], None), Linear(weight[n:], None)
    return Linear(weight[:n], bias[:n]), Linear(weight[n:], bias[n:])
