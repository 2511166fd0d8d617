"""The fast forward pass of the BERT family on a CPU, as a graph that OpenVINO compiles; used where it is installed.

A third faster there than `packed.py`, because its attention is one kernel, and equal to it.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
from numpy.typing import NDArray

from indexer.config import Pooling
from indexer.encoder.attention import Texts
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
from indexer.encoder.packed import n_within

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from indexer.encoder.engine import Transformer

logger = logging.getLogger(__name__)

State = Mapping[str, NDArray[np.float32]]


class CompiledModel:
    """A model of the BERT family on the CPU; made by `compile_graph`. Any number of threads may use it.

    `settings` are OpenVINO's.
    """

    engine = "openvino"
    cpu_batch_tokens = 1_024
    any_thread = True

    def __init__(self, model: Transformer, shape: Shape, precision: str, n_workers: int) -> None:
        import torch

        self.device = model.device
        self.dim = int(model.config.hidden_size)
        self._shape = shape
        self.settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": n_workers,
            "INFERENCE_NUM_THREADS": max(torch.get_num_threads(), n_workers),
            "ENABLE_CPU_PINNING": False,  # other programs run here, too
            # By default 5,000 kernels are kept, several for each shape: 0.4 MB a shape, of which texts make thousands.
            "CPU_RUNTIME_CACHE_CAPACITY": 100,
        }
        # The graph shares the memory of these.
        self._state = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in model.state_dict().items()}
        if shape.family.has_types:
            self._state[POSITIONS] = self._state[POSITIONS] + self._state[TYPES][0]
        bias = shape.family.relative_bias
        self._bias = self._state[bias] if bias else None
        self._lock = threading.Lock()
        self._compiled: dict[Pooling, Any] = {}
        self._requests = threading.local()
        _graph(self._state, shape, Pooling.MEAN)  # whatever it lacks shows here

    def n_fit(self, lengths: NDArray[np.int32], budget: int) -> int:
        """Return how many of the first texts fit into a budget of tokens, at least one."""
        return n_within(lengths, budget)

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32], pooling: Pooling) -> Tensor:
        """Return the pooled hidden states, (b, d) float32.

        Args:
            ids: token ids of the texts, one behind the other, (t,).
            lengths: tokens of each text, (b,), at least 1; equal lengths are neighbours and run together, unpadded.
            pooling: CLS, MEAN or LAST.
        """
        import torch

        request = self._request(pooling)
        texts = Texts.of(lengths)
        positions = position_ids(ids, texts.starts, self._shape).astype(np.int32)
        vectors = np.empty((len(lengths), self.dim), np.float32)
        for first, n, length in texts.groups:
            start = int(texts.starts[first])
            inputs: list[NDArray[Any]] = [
                part[start : start + n * length].reshape(n, length) for part in (ids, positions)
            ]
            if self._bias is not None:
                inputs.append(self._bias[relative_buckets(len(self._bias), length)].transpose(2, 0, 1)[None])
            vectors[first : first + n] = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(vectors)

    def _request(self, pooling: Pooling) -> Any:  # noqa: ANN401 - of OpenVINO
        """Return this thread's way into the graph."""
        mine = self._requests.__dict__
        if pooling not in mine:
            with self._lock:
                if pooling not in self._compiled:
                    self._compiled[pooling] = self._compile(_graph(self._state, self._shape, pooling))
                mine[pooling] = self._compiled[pooling].create_infer_request()
        return mine[pooling]

    def _compile(self, graph: Any) -> Any:  # noqa: ANN401 - of OpenVINO
        import openvino

        return openvino.Core().compile_model(graph, "CPU", self.settings)


def is_installed() -> bool:
    """Tell whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def compile_graph(
    model: Transformer, config: Mapping[str, Any], dtype: torch.dtype, n_workers: int
) -> CompiledModel | None:
    """Return the compiled form of a model, None without OpenVINO or for a model not known to the last detail.

    Args:
        model: as transformers loaded it, in float32 on the CPU; its tensors are shared.
        config: content of config.json.
        dtype: number format of the products, float32 or bfloat16.
        n_workers: how many threads will call it; they share the threads that torch has.
    """
    import torch

    shape, precision = read_shape(config), {torch.float32: "f32", torch.bfloat16: "bf16"}.get(dtype)
    if shape is None or precision is None or not is_installed():
        return None
    try:
        return CompiledModel(model, shape, precision, n_workers)
    except KeyError:  # a tensor that the family does not name so
        return None
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        logger.warning(
            "torch encodes, because OpenVINO cannot be used: %s",
            (str(error).strip() or type(error).__name__).splitlines()[0],
        )
        return None


def _graph(state: State, shape: Shape, pooling: Pooling) -> Any:  # noqa: ANN401 - of OpenVINO
    """Return the graph: ids and positions (b, t) int32, and MPNet's bias (1, h, t, t), to (b, d) float32."""
    import openvino
    from openvino import opset13 as op

    ids = op.parameter(openvino.PartialShape([-1, -1]), np.int32)
    positions = op.parameter(openvino.PartialShape([-1, -1]), np.int32)
    biased = shape.family.relative_bias is not None
    bias = [op.parameter(openvino.PartialShape([1, shape.n_heads, -1, -1]), np.float32)] if biased else []
    parts = _Parts(state, shape)
    x = parts.embed(ids, positions)
    last = shape.n_layers - 1
    for number in range(last):
        x = parts.layer(number, x, x, bias)
    match pooling:
        case Pooling.CLS | Pooling.LAST:
            only = _int64([0 if pooling is Pooling.CLS else -1])
            bias_of_one = [op.gather(each, only, _int64(2)) for each in bias]
            pooled = op.squeeze(parts.layer(last, op.gather(x, only, _int64(1)), x, bias_of_one), _int64(1))
        case Pooling.MEAN:
            pooled = op.reduce_mean(parts.layer(last, x, x, bias), _int64(1), keep_dims=False)
        case Pooling.AUTO:
            msg = "pooling must be resolved before"
            raise ValueError(msg)
        case _:
            assert_never(pooling)
    return openvino.Model([pooled], [ids, positions, *bias])


class _Parts:
    """Adds the parts of a model to a graph; values are nodes of OpenVINO."""

    def __init__(self, state: State, shape: Shape) -> None:
        from openvino import opset13

        self._op: Any = opset13
        self._state = state
        self._shape = shape

    def embed(self, ids: Any, positions: Any) -> Any:  # noqa: ANN401
        """Return the embeddings, (b, t, d)."""
        words = self._op.gather(self._constant(WORDS), ids, _int64(0))
        return self._normed(
            self._op.add(words, self._op.gather(self._constant(POSITIONS), positions, _int64(0))), EMBEDDINGS_NORM
        )

    def layer(self, number: int, x: Any, read: Any, bias: Sequence[Any]) -> Any:  # noqa: ANN401
        """Return the states after a layer, (b, r, d), of those in `x`, which attend to all of `read`, (b, t, d)."""
        op, family = self._op, self._shape.family
        at = family.layer.format(number)
        queries, keys, values = (
            self._heads(self._product(of, at + name))
            for of, name in ((x, family.query), (read, family.key), (read, family.value))
        )
        context = op.transpose(op.scaled_dot_product_attention(queries, keys, values, *bias), _int64([0, 2, 1, 3]))
        context = op.reshape(context, _int64([0, 0, -1]), special_zero=True)
        x = self._normed(op.add(self._product(context, at + family.attended), x), at + family.attended_norm)
        inner = op.gelu(self._product(x, at + family.up), "erf")
        return self._normed(op.add(self._product(inner, at + family.down), x), at + family.norm)

    def _constant(self, name: str) -> Any:  # noqa: ANN401
        return self._op.constant(self._state[name], shared_memory=True)

    def _heads(self, x: Any) -> Any:  # noqa: ANN401
        """Return (b, t, d) as (b, h, t, d / h)."""
        n_heads = self._shape.n_heads
        shape = _int64([0, 0, n_heads, self._state[WORDS].shape[1] // n_heads])
        return self._op.transpose(self._op.reshape(x, shape, special_zero=True), _int64([0, 2, 1, 3]))

    def _product(self, x: Any, name: str) -> Any:  # noqa: ANN401
        weight, bias = (self._constant(f"{name}.{part}") for part in ("weight", "bias"))
        return self._op.add(self._op.matmul(x, weight, transpose_a=False, transpose_b=True), bias)

    def _normed(self, x: Any, name: str) -> Any:  # noqa: ANN401
        weight, bias = (self._constant(f"{name}.{part}") for part in ("weight", "bias"))
        normed = self._op.mvn(x, _int64([-1]), True, self._shape.norm_eps, "inside_sqrt")
        return self._op.add(self._op.multiply(normed, weight), bias)


def _int64(value: int | list[int]) -> Any:  # noqa: ANN401 - a node
    from openvino import opset13

    return opset13.constant(np.array(value, np.int64))
