"""The BERT family: where each kind keeps its tensors, which configurations are ordinary, and how positions count.

Three forward passes stand on it: of one query in numpy (`forward.py`), of many texts in torch (`packed.py`) and in a
compiled graph (`compiled.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
EMBEDDINGS_NORM = "embeddings.LayerNorm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Where a family keeps its tensors, and what its configuration leaves out."""

    prefix: str
    layer: str
    query: str
    key: str
    value: str
    attended: str
    attended_norm: str
    up: str
    down: str
    norm: str
    heads_key: str = "num_attention_heads"
    layers_key: str = "num_hidden_layers"
    activation_key: str = "hidden_act"
    default_layers: int = 12
    default_pad_id: int = 0
    has_norm_eps: bool = True
    has_types: bool = False
    offset_positions: bool = False
    relative_bias: str | None = None


def _bert(prefix: str, *, offset_positions: bool) -> Family:
    return Family(
        prefix=prefix,
        layer="encoder.layer.{}.",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        attended="attention.output.dense",
        attended_norm="attention.output.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        norm="output.LayerNorm",
        has_types=True,
        default_pad_id=1 if offset_positions else 0,
        offset_positions=offset_positions,
    )


_FAMILIES: Mapping[str, Family] = {
    "bert": _bert("bert.", offset_positions=False),
    "roberta": _bert("roberta.", offset_positions=True),
    "xlm-roberta": _bert("roberta.", offset_positions=True),
    "distilbert": Family(
        prefix="distilbert.",
        layer="transformer.layer.{}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attended="attention.out_lin",
        attended_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        norm="output_layer_norm",
        heads_key="n_heads",
        layers_key="n_layers",
        activation_key="activation",
        default_layers=6,
        has_norm_eps=False,
    ),
    "mpnet": Family(
        prefix="mpnet.",
        layer="encoder.layer.{}.",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attended="attention.attn.o",
        attended_norm="attention.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        norm="output.LayerNorm",
        default_pad_id=1,
        offset_positions=True,
        relative_bias="encoder.relative_attention_bias.weight",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model of a family, in numbers."""

    family: Family
    n_heads: int
    n_layers: int
    norm_eps: float
    pad_id: int


def read_shape(config: Mapping[str, Any]) -> Shape | None:
    """Return the shape that a config.json describes, None for another family or anything unusual.

    Keys that are missing have the defaults of transformers, which leaves them out when it writes the file.
    """
    family = _FAMILIES.get(config.get("model_type", ""))
    if family is None:
        return None
    usual = (
        config.get(family.activation_key, "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
    )
    n_layers = config.get(family.layers_key, family.default_layers)
    if not usual or n_layers < 1:
        return None
    return Shape(
        family=family,
        n_heads=config.get(family.heads_key, 12),
        n_layers=n_layers,
        norm_eps=config.get("layer_norm_eps", 1e-12) if family.has_norm_eps else 1e-12,
        pad_id=config.get("pad_token_id", family.default_pad_id),
    )


def position_ids(ids: NDArray[np.int32], starts: NDArray[np.int64], shape: Shape) -> NDArray[np.int64]:
    """Return the position that each token of one or more texts has, (t,) int64.

    Args:
        ids: token ids of the texts, one behind the other, (t,).
        starts: where each text starts, (b,) ascending from 0.
        shape: of the model; some families count from behind the padding id, and pass over it where a text holds it.
    """
    if not shape.family.offset_positions:
        return positions_from_zero(starts, len(ids))
    lengths = np.diff(starts, append=len(ids))
    counted = (ids != shape.pad_id).astype(np.int64)
    total = np.cumsum(counted)
    before = np.repeat(total[starts] - counted[starts], lengths)
    positions: NDArray[np.int64] = (total - before) * counted + shape.pad_id
    return positions


def positions_from_zero(starts: NDArray[np.int64], n_tokens: int) -> NDArray[np.int64]:
    """Return how far each of t tokens stands from the start of its text, (t,) int64."""
    return np.arange(n_tokens) - np.repeat(starts, np.diff(starts, append=n_tokens))


def relative_buckets(n_buckets: int, n_tokens: int) -> NDArray[np.int64]:
    """Return the bucket of MPNet's bias for each pair of positions, (t, t) int64 in [0, n_buckets).

    A bucket for each small distance, logarithmic ones beyond (T5, section 2.1): Raffel et al., Exploring the Limits of
    Transfer Learning with a Unified Text-to-Text Transformer, 2020.
    """
    n_sided, furthest = n_buckets // 2, 128
    n_exact = n_sided // 2
    distance = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    apart = np.abs(distance)
    ratio = np.log(np.maximum(apart, 1).astype(np.float32) / np.float32(n_exact)) / np.float32(
        math.log(furthest / n_exact)
    )
    far = np.minimum(n_exact + (ratio * (n_sided - n_exact)).astype(np.int64), n_sided - 1)
    buckets: NDArray[np.int64] = np.where(apart < n_exact, apart, far) + n_sided * (distance < 0)
    return buckets
