"""Model snapshots of the Hugging Face hub: the local cache, and the download. The home of huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from indexer.errors import ModelNotFoundError

# What follows answers from the layout of the cache, which its documentation describes, instead of snapshot_download:
# that import alone costs 0.4 s of a query's 0.3 s (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
# With it, a hub that accepts a connection and never answers ends after 7 s (3 go to the client's own first request),
# without it never.
_TIMEOUT_S = 4.0
_WANTED = re.compile(r"^[^/]+\.(json|txt|model)$|^[^/]*[Pp]ooling[^/]*/config\.json$")


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the directory of a cached snapshot, or None; it may lack files.

    Args:
        model: hub id.
        revision: commit hash, branch or tag; None means main.
    """
    folder = _cache() / f"models--{model.replace('/', '--')}"
    commit = revision or "main"
    reference = folder / "refs" / commit
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    snapshot = folder / "snapshots" / commit
    return snapshot if _COMMIT.match(commit) and snapshot.is_dir() else None


def cached_models() -> Iterator[tuple[str, Path]]:
    """Yield the id and the snapshot directory of every model whose main revision is cached."""
    for folder in sorted(_cache().glob("models--*")):
        model = folder.name.removeprefix("models--").replace("--", "/")
        snapshot = cached_snapshot(model, None)
        if snapshot is not None:
            yield model, snapshot


def download_snapshot(model: str, revision: str | None) -> Path:
    """Fetch what is needed of a model, safetensors alone, and return its directory.

    Raises:
        ModelNotFoundError: the hub does not answer, or has nothing that can be used; the reason alone.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    # huggingface_hub 1 raises errors of httpx, 2 of httpx2: the base of its own error is the right one of the two.
    transport_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        info = HfApi().model_info(model, revision=revision, timeout=_TIMEOUT_S)
        names = _wanted([sibling.rfilename for sibling in info.siblings or ()], model)
        return Path(snapshot_download(model, revision=info.sha, allow_patterns=names, etag_timeout=_TIMEOUT_S))
    except OfflineModeIsEnabled as error:
        msg = "HF_HUB_OFFLINE is set"
        raise ModelNotFoundError(msg) from error
    except (transport_error, HFValidationError, OSError) as error:
        reason = (str(error).strip() or "no answer").splitlines()[0]
        msg = f"the hub did not give it ({type(error).__name__}: {reason})"
        raise ModelNotFoundError(msg) from error
    finally:
        if had_bars:
            enable_progress_bars()


def _wanted(names: list[str], model: str) -> list[str]:
    """Return which files of a repository to fetch."""
    weights = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if "model.safetensors" in weights:
        weights = ["model.safetensors"]
    if not weights:
        msg = f"{model} has no *.safetensors on the hub; no other format of weights is read"
        raise ModelNotFoundError(msg)
    return weights + [name for name in names if _WANTED.match(name)]


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).expanduser()
