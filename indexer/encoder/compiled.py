"""The fast forward pass of the BERT family on a CPU, as a graph that OpenVINO compiles; used where it is installed.

A third faster there than `packed.py`, because its attention is one kernel, and equal to it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

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
from indexer.encoder.plain import n_within_padded, padded_length
from indexer.encoder.weights import FamilyWeights, Weights
from indexer.errors import EncoderError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

# Kernels are made for each shape that is new, some milliseconds long: steps that grow keep the shapes few, and padding
# at an eighth or less.
STEPS = ((32, 1), (64, 4), (256, 8), (sys.maxsize, 16))
_FAR = 1e9  # taken from a score, it leaves a weight of exactly zero


class CompiledModel:
    """A model of the BERT family on the CPU; made by `compile_graph`. Any number of threads may use it.

    `settings` are OpenVINO's.
    """

    engine = "openvino"
    cpu_batch_tokens = 1_024
    any_thread = True

    def __init__(self, weights: Weights, shape: Shape, precision: str, pooling: Pooling, n_workers: int) -> None:
        import openvino
        import torch

        parts = FamilyWeights(weights, shape.family)
        self.device = torch.device("cpu")
        self._n_words, self.dim = parts.table(WORDS).shape
        self._n_positions = len(parts.table(POSITIONS))
        self._shape = shape
        self._pooling = pooling
        self.settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": n_workers,
            "INFERENCE_NUM_THREADS": max(torch.get_num_threads(), n_workers),
            "ENABLE_CPU_PINNING": False,  # other programs run here, too
            # By default 5,000 kernels are kept, several for each shape of a batch, 0.4 MB a shape.
            "CPU_RUNTIME_CACHE_CAPACITY": 100,
        }
        bias = shape.family.relative_bias
        self._bias = parts.array(bias) if bias else None
        self._compiled = openvino.Core().compile_model(_graph(parts, shape, pooling), "CPU", self.settings)
        self._mine = threading.local()
        _keep_in_children(self._compiled)

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Tell whether the weights have the sizes that a configuration, with all defaults filled in, gives them."""
        found = config["vocab_size"], config["max_position_embeddings"], config.get("hidden_size", config.get("dim"))
        return found == (self._n_words, self._n_positions, self.dim)

    def n_fit(self, lengths: NDArray[np.int32], budget: int) -> int:
        """Return how many of the first texts fit, padded, into a budget of tokens, at least one."""
        return n_within_padded(lengths, budget, STEPS)

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Tensor:
        """Return the pooled hidden states, (b, d) float32.

        Args:
            ids: token ids of the texts, one behind the other, (t,).
            lengths: tokens of each text, (b,), at least 1.
        """
        import torch

        longest = padded_length(int(lengths.max()), STEPS)
        inside = np.arange(longest) < lengths[:, None]
        if self._pooling is Pooling.LAST:  # padding goes before a text, so that its last token has one place
            inside = inside[:, ::-1]
        padded = np.zeros((2, *inside.shape), np.int32)
        padded[0, inside] = ids
        padded[1, inside] = position_ids(ids, np.cumsum(lengths) - lengths, self._shape)
        inputs: list[NDArray[Any]] = [*padded, inside.astype(np.float32)]
        if self._bias is not None:
            inputs.append(self._bias[relative_buckets(len(self._bias), longest)].transpose(2, 0, 1)[None])
        vectors: NDArray[np.float32] = self._request().infer(inputs, share_inputs=True)[0]
        if self._pooling is Pooling.MEAN:  # of the padding, too, which is zero
            vectors = vectors * (longest / lengths[:, None]).astype(np.float32)
        return torch.from_numpy(vectors)

    def _request(self) -> Any:  # noqa: ANN401 - of OpenVINO
        """Return this thread's way into the graph."""
        if not hasattr(self._mine, "request"):
            self._mine.request = self._compiled.create_infer_request()
        return self._mine.request


def is_installed() -> bool:
    """Tell whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def compile_graph(
    config: Mapping[str, Any], weights: Sequence[Path], dtype: torch.dtype, pooling: Pooling, n_workers: int
) -> CompiledModel | None:
    """Return the compiled form of a model, None without OpenVINO or for a model not known to the last detail.

    Args:
        config: content of config.json.
        weights: the safetensors files.
        dtype: number format of the products, float32 or bfloat16.
        pooling: CLS, MEAN or LAST.
        n_workers: how many threads will call it; they share the threads that torch has.
    """
    import torch

    shape, precision = read_shape(config), {torch.float32: "f32", torch.bfloat16: "bf16"}.get(dtype)
    if shape is None or precision is None or not is_installed():
        return None
    try:
        return CompiledModel(Weights(weights), shape, precision, pooling, n_workers)
    except (KeyError, EncoderError):  # what the files lack, transformers names
        return None
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        logger.warning(
            "torch encodes, because OpenVINO cannot be used: %s",
            (str(error).strip() or type(error).__name__).splitlines()[0],
        )
        return None


def _keep_in_children(compiled: Any) -> None:  # noqa: ANN401 - of OpenVINO
    """Let a forked child never free a graph that it inherits: that waits for threads which only its parent has."""
    alive = weakref.ref(compiled)

    def leak() -> None:  # a list would be freed at the end of the interpreter
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(alive()))

    os.register_at_fork(after_in_child=leak)


def _graph(weights: FamilyWeights, shape: Shape, pooling: Pooling) -> Any:  # noqa: ANN401 - of OpenVINO
    """Return the graph: ids, positions (b, t) int32, 1 for tokens and 0 for padding (b, t) float32, to (b, d) float32.

    MPNet's bias, (1, h, t, t) float32, is a fourth input.
    """
    import openvino
    from openvino import opset13 as op

    by_token = openvino.PartialShape([-1, -1])
    ids, positions = (op.parameter(by_token, np.int32) for _ in range(2))
    inside = op.parameter(by_token, np.float32)
    inputs = [ids, positions, inside]
    unseen = op.multiply(op.subtract(inside, np.float32(1)), np.float32(_FAR))
    mask = op.unsqueeze(unseen, _int64([1, 2]))
    if shape.family.relative_bias is not None:
        inputs.append(op.parameter(openvino.PartialShape([1, shape.n_heads, -1, -1]), np.float32))
        mask = op.add(inputs[-1], mask)
    parts = _Parts(weights, shape)
    x = parts.embed(ids, positions)
    last = shape.n_layers - 1
    for number in range(last):
        x = parts.layer(number, x, x, mask)
    match pooling:
        case Pooling.CLS | Pooling.LAST:
            only = _int64([0 if pooling is Pooling.CLS else -1])
            mask_of_one = op.gather(mask, only, _int64(2))
            pooled = op.squeeze(parts.layer(last, op.gather(x, only, _int64(1)), x, mask_of_one), _int64(1))
        case Pooling.MEAN:
            states = op.multiply(parts.layer(last, x, x, mask), op.unsqueeze(inside, _int64(2)))
            pooled = op.reduce_mean(states, _int64(1), keep_dims=False)
        case Pooling.AUTO:
            msg = "pooling must be resolved before"
            raise ValueError(msg)
        case _:
            assert_never(pooling)
    return openvino.Model([pooled], inputs)


class _Parts:
    """Adds the parts of a model to a graph; values are nodes of OpenVINO."""

    def __init__(self, weights: FamilyWeights, shape: Shape) -> None:
        from openvino import opset13

        self._op: Any = opset13
        self._weights = weights
        self._shape = shape
        self._dim = weights.table(WORDS).shape[1]

    def embed(self, ids: Any, positions: Any) -> Any:  # noqa: ANN401
        """Return the embeddings, (b, t, d)."""
        table = self._weights.array(POSITIONS)
        if self._shape.family.has_types:
            table = table + self._weights.array(TYPES)[0]
        words, placed = (
            self._op.gather(self._constant(rows), at, _int64(0))
            for rows, at in ((self._weights.array(WORDS), ids), (table, positions))
        )
        return self._normed(self._op.add(words, placed), EMBEDDINGS_NORM)

    def layer(self, number: int, x: Any, read: Any, mask: Any) -> Any:  # noqa: ANN401
        """Return the states after a layer, (b, r, d), of those in `x`, which attend to all of `read`, (b, t, d)."""
        op, family = self._op, self._shape.family
        at = family.layer.format(number)
        queries, keys, values = (
            self._heads(self._product(of, at + name))
            for of, name in ((x, family.query), (read, family.key), (read, family.value))
        )
        context = op.transpose(op.scaled_dot_product_attention(queries, keys, values, mask), _int64([0, 2, 1, 3]))
        context = op.reshape(context, _int64([0, 0, -1]), special_zero=True)
        x = self._normed(op.add(self._product(context, at + family.attended), x), at + family.attended_norm)
        inner = op.gelu(self._product(x, at + family.up), "erf")
        return self._normed(op.add(self._product(inner, at + family.down), x), at + family.norm)

    def _constant(self, values: NDArray[np.float32]) -> Any:  # noqa: ANN401
        return self._op.constant(values, shared_memory=True)

    def _heads(self, x: Any) -> Any:  # noqa: ANN401
        """Return (b, t, d) as (b, h, t, d / h)."""
        n_heads = self._shape.n_heads
        shape = _int64([0, 0, n_heads, self._dim // n_heads])
        return self._op.transpose(self._op.reshape(x, shape, special_zero=True), _int64([0, 2, 1, 3]))

    def _product(self, x: Any, name: str) -> Any:  # noqa: ANN401
        weight, bias = map(self._constant, self._weights.linear(name))
        return self._op.add(self._op.matmul(x, weight, transpose_a=False, transpose_b=True), bias)

    def _normed(self, x: Any, name: str) -> Any:  # noqa: ANN401
        weight, bias = map(self._constant, self._weights.norm(name))
        normed = self._op.mvn(x, _int64([-1]), True, self._shape.norm_eps, "inside_sqrt")
        return self._op.add(self._op.multiply(normed, weight), bias)


def _int64(value: int | list[int]) -> Any:  # noqa: ANN401 - a node
    from openvino import opset13

    return opset13.constant(np.array(value, np.int64))
