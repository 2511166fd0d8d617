"""Where models are found, and what is said when one is not."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import build_model

from indexer.encoder.models import offers, resolve_model
from indexer.errors import EncoderError, ModelNotFoundError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, model: str, source: Path) -> Path:
    """Lay a model into a hub cache as the hub's client does."""
    folder = cache / f"models--{model.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    shutil.copytree(source, folder / "snapshots" / COMMIT)
    return folder / "snapshots" / COMMIT


@pytest.fixture
def package(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that carries a model and must not be imported."""
    site = tmp_path / "site"
    shutil.copytree(tiny_bert, site / "carrier" / "data" / "model")
    shutil.copytree(tiny_bert, site / "carrier" / "data" / "model" / "deeper" / "other")
    (site / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')")
    info = site / "carrier-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    rows = [f"carrier/data/model/{path.name},," for path in tiny_bert.iterdir()]
    (info / "RECORD").write_text("\n".join(["carrier/__init__.py,,", *rows]))
    monkeypatch.syspath_prepend(str(site))
    return "package:carrier"


def test_a_directory_is_made_absolute_and_hashed(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_bert.parent)
    files = resolve_model(tiny_bert.name, allow_download=False)
    assert (files.name, files.revision) == (str(tiny_bert), None)
    weights = (tiny_bert / "model.safetensors").read_bytes()
    assert files.weights_sha256 == hashlib.sha256(weights).hexdigest()
    tokenizer = (tiny_bert / "tokenizer.json").read_bytes()
    assert files.tokenizer_sha256 == hashlib.sha256(tokenizer).hexdigest()


def test_a_package_is_found_without_importing_it(package: str) -> None:
    files = resolve_model(package, allow_download=False)
    assert files.name == package
    assert files.directory.parts[-3:] == ("carrier", "data", "model")
    assert "carrier" not in sys.modules


def test_the_published_weights_have_the_published_hash(minilm: str) -> None:
    files = resolve_model(minilm, allow_download=False)
    assert files.weights_sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_a_cached_hub_model_is_found_by_branch_and_by_commit(cache: Path, tiny_bert: Path) -> None:
    snapshot = put(cache, "org/tiny", tiny_bert)
    for revision in (None, "main", COMMIT):
        files = resolve_model("org/tiny", revision, allow_download=False)
        assert (files.directory, files.name, files.revision) == (snapshot, "org/tiny", COMMIT)
    with pytest.raises(ModelNotFoundError, match="org/tiny"):
        resolve_model("org/tiny", "v2", allow_download=False)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_half_a_download_is_not_taken(missing: str, cache: Path, tiny_bert: Path) -> None:
    (put(cache, "org/tiny", tiny_bert) / missing).unlink()
    with pytest.raises(ModelNotFoundError, match="not in the local cache"):
        resolve_model("org/tiny", allow_download=False)


def test_a_model_that_is_not_here_is_named_with_one_that_would_work(cache: Path, tiny_bert: Path, package: str) -> None:
    put(cache, "org/tiny", tiny_bert)
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model("org/absent", allow_download=False)
    message = str(caught.value)
    assert "\n" not in message
    assert "org/absent" in message
    assert "--model org/tiny" in message
    assert package in offers()
    assert "carrier" not in sys.modules


def test_the_offer_that_resembles_the_name_comes_first(cache: Path, tiny_bert: Path, package: str) -> None:
    put(cache, "aaa/first", tiny_bert)
    with pytest.raises(ModelNotFoundError, match=r"would work: --model package:carrier"):
        resolve_model("org/Carrier", allow_download=False)


@pytest.mark.parametrize("model", ["package:no_such_thing", "package:json", "package:os.path", "/no/such/dir", "a b"])
def test_nothing_at_all_is_taken_for_a_wrong_name(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be had"):
        resolve_model(model, allow_download=True)


def test_weights_in_another_format_are_refused_by_name(tmp_path: Path) -> None:
    directory = build_model(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"only pytorch_model\.bin"):
        resolve_model(str(directory), allow_download=False)


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    import json

    from indexer.config import EncoderOptions
    from indexer.encoder.bulk import BulkEncoder

    directory = build_model(tmp_path / "m")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        BulkEncoder.load(EncoderOptions(model=str(directory), device="cpu"))
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []
        server.settimeout(0.1)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    kept.append(server.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()
        thread.join()
        for connection in kept:
            connection.close()


def test_a_hub_that_does_not_answer_ends_within_ten_seconds(silent_hub: str, tmp_path: Path) -> None:
    code = "from indexer.encoder.models import resolve_model; resolve_model('org/absent', allow_download=True)"
    environment = {"HF_ENDPOINT": silent_hub, "HF_HOME": str(tmp_path), "PATH": ""}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2]
    )
    assert time.monotonic() - started < 10
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("indexer.errors.ModelNotFoundError: model org/absent cannot be had")
    assert "the hub did not give it" in last
