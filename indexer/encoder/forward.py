"""The forward pass of the BERT family in numpy: one text at a time, float32, so that a query needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.config import Pooling
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
from indexer.encoder.weights import FamilyWeights, Weights, as_float32

Array = NDArray[np.float32]

# erf as a rational function, x * P(x^2) / Q(x^2) on |x| <= 3.83, the approximation of Eigen and XLA for float32; in
# float64, as here, it is within 4e-8 of the true value (the test checks this).
_ERF_LIMIT = 3.832506856900711
_ERF_P = (0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145, 1.128379143519084)
_ERF_Q = (
    *(-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667),
    *(0.11098505178285362, 0.49746925110067538, 1.0),
)

# OpenBLAS shares a product of more multiplications than this among threads (interface/gemm.c: 65,536 times 4), which
# spin while they wait: with both cores of a small machine busy, a query then took 430 ms instead of 10. Eight rows at a
# time are also faster on one thread than all rows at once, up to 128 tokens.
_ONE_THREAD = 262_144
_ROWS = 8


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Array
    bias: Array
    eps: float

    def __call__(self, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        normed: Array = centred / np.sqrt(variance + self.eps) * self.weight + self.bias
        return normed


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        return _times(x, self.weight) + self.bias


@dataclass(frozen=True, slots=True)
class _Layer:
    query: _Linear
    key: _Linear
    value: _Linear
    attended: _Linear
    attended_norm: _Norm
    up: _Linear
    down: _Linear
    norm: _Norm

    def __call__(self, x: Array, rows: slice, n_heads: int, bias: Array | None) -> Array:
        """Return the new states of `rows` alone, (r, d), from the states of all tokens, (t, d)."""
        keys, values = _heads(self.key(x), n_heads), _heads(self.value(x), n_heads)
        kept = np.arange(len(x))[rows]
        parts = [kept[at : at + _ROWS] for at in range(0, len(kept), _ROWS)]
        return np.concatenate(
            [self._advance(x[part], keys, values, None if bias is None else bias[:, part]) for part in parts]
        )

    def _advance(self, x: Array, keys: Array, values: Array, bias: Array | None) -> Array:
        queries = _heads(self.query(x), len(keys))
        scores = queries @ keys.transpose(0, 2, 1) / np.float32(math.sqrt(queries.shape[2]))
        if bias is not None:
            scores += bias
        context = (_softmax(scores) @ values).transpose(1, 0, 2).reshape(x.shape)
        x = self.attended_norm(self.attended(context) + x)
        return self.norm(self.down(gelu(self.up(x))) + x)


class NumpyEncoder:
    """A model of the BERT family; made by `open_numpy_encoder`. Any number of threads may use it."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        family = shape.family
        parts = FamilyWeights(weights, family)
        self._shape = shape
        self._words = parts.table(WORDS)
        self._positions = parts.table(POSITIONS)
        self._type = parts.array(TYPES)[0] if family.has_types else None
        self._norm = _Norm(*parts.norm(EMBEDDINGS_NORM), shape.norm_eps)
        self._layers = [_layer(parts, shape, number) for number in range(shape.n_layers)]
        self._bias = parts.array(family.relative_bias) if family.relative_bias else None

    @property
    def dim(self) -> int:
        """Length of a hidden state."""
        return int(self._words.shape[1])

    def encode(self, ids: NDArray[np.int32], pooling: Pooling) -> Array:
        """Return the pooled hidden state of one text.

        Args:
            ids: (t,) int32 with special tokens, no padding, t at least 1.
            pooling: CLS, MEAN or LAST; for CLS and LAST the last layer is computed for that token alone.

        Returns:
            (d,) float32 of unit length.
        """
        x = self._embed(ids)
        bias = None
        if self._bias is not None:
            bias = self._bias[relative_buckets(len(self._bias), len(ids))].transpose(2, 0, 1)
        rows = {Pooling.CLS: slice(0, 1), Pooling.LAST: slice(-1, None)}.get(pooling, slice(None))
        for layer in self._layers[:-1]:
            x = layer(x, slice(None), self._shape.n_heads, bias)
        pooled: Array = self._layers[-1](x, rows, self._shape.n_heads, bias).mean(axis=0)
        unit: Array = pooled / np.linalg.norm(pooled)
        return unit

    def _embed(self, ids: NDArray[np.int32]) -> Array:
        positions = position_ids(ids, np.zeros(1, np.int64), self._shape)
        x = as_float32(self._words[ids]) + as_float32(self._positions[positions])
        if self._type is not None:
            x += self._type
        return self._norm(x)


def open_numpy_encoder(config: Mapping[str, Any], weights: Weights) -> NumpyEncoder | None:
    """Return the encoder, or None for a model that this forward pass does not know to the last detail.

    Args:
        config: content of config.json.
        weights: of the model.
    """
    shape = read_shape(config)
    if shape is None:
        return None
    try:
        return NumpyEncoder(shape, weights)
    except KeyError:  # a tensor that the family does not name so, or in another number format
        return None


def gelu(x: Array) -> Array:
    """Return x times the normal distribution's cumulative function, the exact form, float32."""
    half = np.clip(x.astype(np.float64) * math.sqrt(0.5), -_ERF_LIMIT, _ERF_LIMIT)
    square = half * half
    erf = half * _polynomial(_ERF_P, square) / _polynomial(_ERF_Q, square)
    return (x * (0.5 + 0.5 * erf)).astype(np.float32)


def _layer(parts: FamilyWeights, shape: Shape, number: int) -> _Layer:
    family, at = shape.family, shape.family.layer.format(number)
    return _Layer(
        query=_Linear(*parts.linear(at + family.query)),
        key=_Linear(*parts.linear(at + family.key)),
        value=_Linear(*parts.linear(at + family.value)),
        attended=_Linear(*parts.linear(at + family.attended)),
        attended_norm=_Norm(*parts.norm(at + family.attended_norm), shape.norm_eps),
        up=_Linear(*parts.linear(at + family.up)),
        down=_Linear(*parts.linear(at + family.down)),
        norm=_Norm(*parts.norm(at + family.norm), shape.norm_eps),
    )


def _times(x: Array, weight: Array) -> Array:
    """Return (t, k) times the transpose of (o, k), in products that OpenBLAS runs on one thread."""
    n_out, n_in = weight.shape
    width = n_out
    while width * n_in * _ROWS > _ONE_THREAD and width % 2 == 0:
        width //= 2
    blocks = weight.reshape(-1, width, n_in).transpose(0, 2, 1)
    parts = (np.matmul(x[at : at + _ROWS], blocks) for at in range(0, len(x), _ROWS))
    return np.concatenate([part.transpose(1, 0, 2).reshape(-1, n_out) for part in parts])


def _heads(x: Array, n_heads: int) -> Array:
    """Return (t, d) as (h, t, d / h)."""
    return x.reshape(len(x), n_heads, -1).transpose(1, 0, 2)


def _softmax(scores: Array) -> Array:
    weights: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total *= x
        total += coefficient
    return total
