"""The fast forward pass of ModernBERT: norms before the products, rotated positions, most layers see a window only.

Source: Warner et al., Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder, 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.config import Pooling
from indexer.encoder.attention import Attention, ByLength, Rotated, Texts
from indexer.encoder.families import positions_from_zero
from indexer.encoder.packed import Layer, Linear, Norm, PackedModel, in_steps, wide_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from indexer.encoder.engine import Transformer

_WINDOW = "sliding_attention"
_KINDS = frozenset({_WINDOW, "full_attention"})


class ModernBertModel(PackedModel):
    """A ModernBERT; made by `pack_modern`."""

    def __init__(self, model: Transformer, dtype: torch.dtype, pooling: Pooling) -> None:
        config: Any = model.config
        state, wide = model.state_dict(), wide_dtype(model, dtype)
        # Only the last layer has a norm behind it.
        norms = [None] * (config.num_hidden_layers - 1) + [_norm(state, "final_norm", wide)]
        layers = [_layer(state, f"layers.{n}.", norm, dtype, wide) for n, norm in enumerate(norms)]
        words = state["embeddings.tok_embeddings.weight"].to(wide)
        super().__init__(
            words, layers, dtype=dtype, pooling=pooling, n_heads=config.num_attention_heads, eps=config.norm_eps
        )
        self._norm = _norm(state, "embeddings.norm", wide)
        self._kinds: list[str] = config.layer_types
        self._thetas = {kind: config.rope_parameters[kind]["rope_theta"] for kind in self._kinds}
        self._window: int = config.sliding_window

    def _embed(self, ids: NDArray[np.int32], texts: Texts) -> Tensor:  # noqa: ARG002 - positions come in later
        return self._normed(self._words[self._to_device(in_steps(ids))], self._norm)

    def _advance(self, layer: Layer, x: Tensor, context: Tensor) -> Tensor:
        from torch.nn.functional import gelu, linear

        x = x + linear(context.flatten(1), *layer.attended)
        normed = self._normed(x, layer.attended_norm)
        inner, gate = linear(normed.to(self._dtype), *layer.up).chunk(2, dim=-1)
        x = x + linear(gelu(inner) * gate, *layer.down)
        return self._normed(x, layer.norm)

    def _attentions(self, texts: Texts) -> Sequence[Attention]:
        positions = self._to_device(in_steps(positions_from_zero(texts.starts, int(texts.lengths.sum()))))
        ends = (self._to_device(texts.starts), self._to_device(texts.lasts))
        made = {kind: Rotated(self._within(kind, texts), *ends, *self._turns(kind, positions)) for kind in self._thetas}
        return [made[kind] for kind in self._kinds]

    def _turns(self, kind: str, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the angles of positions, (t, 1, d / h / 2) float32 each."""
        import torch

        n = self.dim // self._n_heads
        steps = torch.arange(0, n, 2, dtype=torch.float32, device=self.device)
        angles = positions[:, None].float() / self._thetas[kind] ** (steps / n)
        return angles.cos()[:, None], angles.sin()[:, None]

    def _within(self, kind: str, texts: Texts) -> Attention:
        longest = int(texts.lengths.max())
        if kind == _WINDOW and longest > self._window + 1:
            return ByLength(texts, self._near(longest))
        return self._attention(texts)

    def _near(self, longest: int) -> Tensor:
        """Return which tokens each token sees, those within the window, (1, m, m) bool."""
        import torch

        everything = torch.ones(longest, longest, dtype=torch.bool, device=self.device)
        return everything.tril_(self._window).triu_(-self._window)[None]


def pack_modern(model: Transformer, dtype: torch.dtype, pooling: Pooling) -> ModernBertModel | None:
    """Return the fast form of a ModernBERT, None for another model or an unusual configuration.

    Args:
        model: as transformers loaded it; its tensors are shared or copied.
        dtype: number format of the products.
        pooling: CLS, MEAN or LAST.
    """
    config: Any = model.config
    if (
        config.model_type != "modernbert"
        or config.hidden_activation != "gelu"
        or not _KINDS.issuperset(config.layer_types)
    ):
        return None
    if any(config.rope_parameters[kind].get("rope_type") != "default" for kind in config.layer_types):
        return None
    try:
        return ModernBertModel(model, dtype, pooling)
    except KeyError:  # a tensor that this model does not name so
        return None


def _layer(state: Mapping[str, Tensor], at: str, norm: Norm | None, dtype: torch.dtype, wide: torch.dtype) -> Layer:
    def linear(name: str) -> Linear:
        bias = state.get(f"{at}{name}.bias")
        return Linear(state[f"{at}{name}.weight"].to(dtype), None if bias is None else bias.to(dtype))

    return Layer(
        # The first layer reads the embeddings, which are normed already.
        before=_norm(state, f"{at}attn_norm", wide) if f"{at}attn_norm.weight" in state else None,
        inputs=linear("attn.Wqkv"),
        attended=linear("attn.Wo"),
        attended_norm=_norm(state, f"{at}mlp_norm", wide),
        up=linear("mlp.Wi"),
        down=linear("mlp.Wo"),
        norm=norm,
    )


def _norm(state: Mapping[str, Tensor], name: str, wide: torch.dtype) -> Norm:
    bias = state.get(f"{name}.bias")
    return Norm(state[f"{name}.weight"].to(wide), None if bias is None else bias.to(wide))
