"""Where a model is: a directory, an installed package, or the hub; and what its files are."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from indexer.encoder.declared import Declared, read_declared, read_json
from indexer.errors import EncoderError, ModelNotFoundError

PACKAGE = "package:"
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$", re.ASCII)
_TOKENIZER_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_OTHER_WEIGHTS = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.onnx")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model on disk.

    `name` is what the contract records: a hub id, an absolute directory or package:NAME. Hashes are computed when first
    asked for and then kept.
    """

    directory: Path
    name: str
    revision: str | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of config.json."""
        return read_json(self.directory / "config.json")

    @cached_property
    def declared(self) -> Declared:
        """What the model's own files say about how to use it."""
        return read_declared(self.directory)

    @property
    def architecture(self) -> str:
        """The model type, e.g. bert.

        Raises:
            EncoderError: config.json names none.
        """
        if not isinstance(kind := self.config.get("model_type"), str):
            msg = f"{self.directory / 'config.json'} names no model_type; it is no model that transformers can load"
            raise EncoderError(msg)
        return kind

    @cached_property
    def weights(self) -> tuple[Path, ...]:
        """The safetensors files that hold the weights, sorted."""
        return _weights(self.directory)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights: of the file itself, or of the lines `digest  name` of several."""
        return _digest(self.weights)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of tokenizer.json, or of the vocabulary files where there is none."""
        fast = self.directory / "tokenizer.json"
        if fast.is_file():
            return _digest((fast,))
        found = tuple(path for name in _TOKENIZER_FILES if (path := self.directory / name).is_file())
        if not found:
            msg = f"{self.name} has no tokenizer.json and no vocabulary; fetch it again"
            raise EncoderError(msg)
        return _digest(tuple(sorted(found)))


def resolve_model(model: str, revision: str | None = None, *, allow_download: bool) -> ModelFiles:
    """Find a model; no other one is ever taken instead.

    Args:
        model: an existing directory, package:NAME, or a hub id (looked for in the local cache first).
        revision: commit hash, branch or tag of the hub; None means main.
        allow_download: whether the hub may be asked.

    Raises:
        ModelNotFoundError: it is not here and cannot be fetched; names models that are here.
        EncoderError: files are missing, or the weights are in another format than safetensors.
    """
    if model.startswith(PACKAGE):
        files = ModelFiles(directory=_in_package(model.removeprefix(PACKAGE)), name=model, revision=None)
    elif (path := Path(model).expanduser()).is_dir():
        files = ModelFiles(directory=path.resolve(), name=str(path.resolve()), revision=None)
    else:
        files = _on_hub(model, revision, allow_download=allow_download)
    if not _is_complete(files.directory):
        raise _incomplete(files)
    return files


def offers() -> list[str]:
    """Return what --model could name on this machine without a download: cached models and installed packages."""
    from indexer.encoder.hub import cached_models

    return [name for name, directory in cached_models() if _is_complete(directory)] + sorted(set(_packages()))


def _on_hub(model: str, revision: str | None, *, allow_download: bool) -> ModelFiles:
    from indexer.encoder.hub import cached_snapshot, download_snapshot

    if not _HUB_ID.match(model):
        raise _not_found(model, "there is no such directory")
    directory = cached_snapshot(model, revision)
    if directory is None or not _is_complete(directory):
        if not allow_download:
            raise _not_found(model, "it is not in the local cache, and downloads are not allowed here")
        try:
            directory = download_snapshot(model, revision)
        except ModelNotFoundError as error:
            raise _not_found(model, f"it is not in the local cache, and {error}") from error
    return ModelFiles(directory=directory, name=model, revision=directory.name)


def _not_found(model: str, reason: str) -> ModelNotFoundError:
    found = offers()
    # The one that the user most likely means comes first.
    found.sort(key=lambda offer: _key(model) not in _key(offer))
    here = " or ".join(f"--model {offer}" for offer in found[:3])
    advice = f"on this machine this would work: {here}" if here else "--model also takes a directory with a model"
    return ModelNotFoundError(f"model {model} cannot be had: {reason}; {advice}")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower())


def _in_package(name: str) -> Path:
    """Return the model directory of an installed package, without importing the package."""
    if not name.isidentifier():
        raise _not_found(PACKAGE + name, "that is no name of a top-level Python package")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _not_found(PACKAGE + name, "no such package is installed")
    found = [directory for root in spec.submodule_search_locations for directory in _model_directories(Path(root))]
    if not found:
        raise _not_found(PACKAGE + name, "the package carries no config.json beside a *.safetensors")
    return min(found, key=lambda directory: (len(directory.parts), str(directory)))


def _model_directories(root: Path) -> Iterator[Path]:
    yield from (path.parent for path in root.rglob("config.json") if _is_complete(path.parent))


def _packages() -> Iterator[str]:
    """Yield package:NAME for installed packages that carry a model."""
    from importlib.metadata import distributions

    for distribution in distributions():
        record = distribution.read_text("RECORD") or ""
        if ".safetensors" not in record:
            continue
        paths = {line.split(",", 1)[0] for line in record.splitlines()}
        for path in sorted(paths):
            folder, _, name = path.rpartition("/")
            if name.endswith(".safetensors") and f"{folder}/config.json" in paths:
                yield PACKAGE + folder.split("/", 1)[0]


def _is_complete(directory: Path) -> bool:
    weights = _weights(directory)
    return bool(weights) and (directory / "config.json").is_file() and all(path.is_file() for path in weights)


def _weights(directory: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, existing or not: the single one, else the shards of the index."""
    single = directory / "model.safetensors"
    if single.is_file():
        return (single,)
    shards = read_json(directory / "model.safetensors.index.json").get("weight_map", {}).values()
    return tuple(directory / Path(str(name)).name for name in sorted(set(shards)))


def _incomplete(files: ModelFiles) -> EncoderError:
    if not (files.directory / "config.json").is_file():
        return EncoderError(f"{files.name} has no config.json; give the directory that holds the model itself")
    if missing := [path.name for path in files.weights if not path.is_file()]:
        return EncoderError(f"{files.name} lacks {', '.join(missing[:3])}; fetch it again")
    other = [name for name in _OTHER_WEIGHTS if (files.directory / name).exists()]
    held = f"only {', '.join(other)}" if other else "no weights"
    return EncoderError(f"{files.name} has {held}; model.safetensors is needed, no other format of weights is read")


def _digest(paths: tuple[Path, ...]) -> str:
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    listing = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()
