"""Options, a model and defaults settled into the contract of a new index."""

from __future__ import annotations

from typing import Any

from indexer.config import EncoderOptions, Pooling
from indexer.encoder.contract import Contract
from indexer.encoder.models import ModelFiles
from indexer.errors import UsageError

_FALLBACK_MAX_LENGTH = 512
# Models of these types start counting positions behind the padding id.
_OFFSET_POSITIONS = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "xmod", "ibert"}
    | {"roberta-prelayernorm", "esm", "luke"}
)


def new_contract(
    files: ModelFiles, options: EncoderOptions, *, pooling: Pooling, config: dict[str, Any], dim: int
) -> Contract:
    """Make the contract of a new index.

    Args:
        files: the model.
        options: with prompts resolved; what is None comes from the model, then from the defaults.
        pooling: CLS, MEAN or LAST.
        config: the model's configuration with the defaults of its architecture filled in.
        dim: length of its vectors.

    Raises:
        UsageError: more tokens are asked for than the model can take.
    """
    max_length = _max_length(files, config, options.max_length)
    if options.chunk_tokens and options.chunk_tokens > max_length:
        msg = f"--chunk-tokens {options.chunk_tokens} is more than the {max_length} tokens that the model is given"
        raise UsageError(msg)
    return Contract(
        model=files.name,
        revision=files.revision,
        weights_sha256=files.weights_sha256,
        tokenizer_sha256=files.tokenizer_sha256,
        architecture=files.architecture,
        pooling=pooling,
        max_length_tokens=max_length,
        query_prompt=options.query_prompt or "",
        doc_prompt=options.doc_prompt or "",
        chunk_tokens=options.chunk_tokens,
        chunk_overlap=options.chunk_overlap or 0,
        dim=dim,
    )


def _max_length(files: ModelFiles, config: dict[str, Any], asked: int | None) -> int:
    positions = max_positions(config)
    if asked is None:
        declared = files.declared.max_length_tokens or positions or _FALLBACK_MAX_LENGTH
        return min(declared, positions or declared)
    if positions is not None and asked > positions:
        msg = f"--max-length {asked} is more than the {positions} tokens that {files.name} can take"
        raise UsageError(msg)
    return asked


def max_positions(config: dict[str, Any]) -> int | None:
    """Return how many tokens a model of this configuration has positions for, None when it has no limit."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(positions, int) or positions <= 0:
        return None
    if config.get("model_type") in _OFFSET_POSITIONS:
        padding = config.get("pad_token_id")
        return positions - (1 if padding is None else int(padding)) - 1
    return positions
