"""What a model's own files say about how it wants to be used. Stdlib only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.config import Pooling
from indexer.errors import EncoderError

_AVAILABLE = {
    "cls_token": Pooling.CLS,
    "cls": Pooling.CLS,
    "mean_tokens": Pooling.MEAN,
    "mean": Pooling.MEAN,
    "lasttoken": Pooling.LAST,
}
# Modules that change nothing here: the model itself, its pooling, and the normalisation that every vector gets anyway.
_APPLIED = frozenset({"Transformer", "Pooling", "Normalize"})
_NO_LIMIT = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """How a model was trained to be used, in the files of sentence-transformers and of its tokenizer.

    `pooling` is None when nothing, or nothing available here, is declared; `pooling_name` is the declaration in the
    file's own words. `prompts` are texts by name, `modules` the modules after the model that are not applied here,
    `max_length_tokens` the declared maximum with special tokens.
    """

    pooling: Pooling | None = None
    pooling_name: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    max_length_tokens: int | None = None
    lower_cases: bool = False


def read_declared(directory: Path) -> Declared:
    """Read what the files of a model directory declare; a file that is missing declares nothing.

    Raises:
        EncoderError: a file is no JSON.
    """
    kinds = {
        str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", ""))
        for module in _parsed(directory / "modules.json") or []
    }
    pooling_name = _pooling_name(read_json(directory / kinds.get("Pooling", "1_Pooling") / "config.json"))
    transformer = read_json(directory / "sentence_bert_config.json")
    prompts = read_json(directory / "config_sentence_transformers.json").get("prompts") or {}
    return Declared(
        pooling=_AVAILABLE.get(pooling_name),
        pooling_name=pooling_name,
        prompts={str(name): str(text) for name, text in prompts.items()},
        modules=tuple(kind for kind in kinds if kind not in _APPLIED),
        max_length_tokens=_max_length(transformer, read_json(directory / "tokenizer_config.json")),
        lower_cases=bool(transformer.get("do_lower_case")),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty when there is no such file.

    Raises:
        EncoderError: the file is no JSON object.
    """
    found = _parsed(path)
    if found is not None and not isinstance(found, dict):
        msg = f"{path}: no JSON object; the model directory is damaged, fetch it again"
        raise EncoderError(msg)
    return found or {}


def _parsed(path: Path) -> Any:  # noqa: ANN401 - what JSON holds
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        msg = f"{path}: not JSON ({error}); the model directory is damaged, fetch it again"
        raise EncoderError(msg) from error


def _pooling_name(config: Mapping[str, Any]) -> str:
    """Return e.g. `mean_tokens`, or several joined by + where the vectors would be concatenated, or nothing."""
    if isinstance(mode := config.get("pooling_mode"), str):
        return mode
    prefix = "pooling_mode_"
    return "+".join(name.removeprefix(prefix) for name, on in config.items() if name.startswith(prefix) and on is True)


def _max_length(transformer: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int | None:
    for value in (transformer.get("max_seq_length"), tokenizer.get("model_max_length")):
        # Tokenizers without a limit write 1e30.
        if isinstance(value, int) and 0 < value < _NO_LIMIT:
            return value
    return None
