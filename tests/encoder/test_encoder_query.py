"""The query encoder against BulkEncoder, and that it loads no torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import build_model, stored_as

from indexer.config import Dtype, EncoderOptions, Pooling
from indexer.encoder.bulk import BulkEncoder
from indexer.encoder.contract import CANARY_TEXTS
from indexer.encoder.forward import gelu
from indexer.encoder.plain import PlainModel
from indexer.encoder.query import NumpyQueryEncoder, open_query_encoder
from indexer.encoder.weights import Weights, as_float32
from indexer.errors import ContractError, EncoderError, ModelNotFoundError, NonFiniteVectorError

QUERIES = ["which card works abroad", "", "[PAD] the [PAD] cat", "pressure of the boundary layer " * 30, *CANARY_TEXTS]
POOLINGS = [Pooling.CLS, Pooling.MEAN, Pooling.LAST]


def bulk(model: Path | str, **more: object) -> BulkEncoder:
    return BulkEncoder.load(EncoderOptions(**{"model": str(model), "dtype": Dtype.FLOAT32, "device": "cpu", **more}))


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"])
def test_numpy_equals_torch_for_every_family_it_claims(family: str, tmp_path: Path) -> None:
    # The hidden sizes leave MPNet's logarithmic buckets to texts of more than 16 tokens, which the queries have.
    directory = build_model(tmp_path / family, family)
    for pooling in POOLINGS:
        reference = bulk(directory, pooling=pooling, query_prompt="the query: ", max_length=60)
        encoder = open_query_encoder(reference.contract)
        assert isinstance(encoder, NumpyQueryEncoder)
        np.testing.assert_allclose(encoder.encode_queries(QUERIES), reference.encode_queries(QUERIES), atol=1e-5)


def test_numpy_equals_torch_on_mpnet_beyond_the_exact_buckets(tmp_path: Path) -> None:
    directory = build_model(tmp_path / "m", "mpnet", max_position_embeddings=402)
    reference = bulk(directory, pooling=Pooling.MEAN, max_length=400)
    texts = ["heat flow " * n for n in (5, 30, 90, 199, 300)]
    np.testing.assert_allclose(
        open_query_encoder(reference.contract).encode_queries(texts), reference.encode_queries(texts), atol=1e-5
    )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_numpy_equals_torch_on_a_real_model_and_real_texts(
    pooling: Pooling, minilm: str, cranfield_texts: list[str]
) -> None:
    reference = bulk(minilm, pooling=pooling)
    encoder = open_query_encoder(reference.contract)
    texts = [*cranfield_texts[:5], *QUERIES]
    vectors = encoder.encode_queries(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape[1] == 384
    np.testing.assert_allclose(vectors, reference.encode_queries(texts), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("electra", {}),
        ("modernbert", {}),
        ("bert", {"hidden_act": "relu"}),
        ("distilbert", {"activation": "relu"}),
    ],
)
def test_what_numpy_does_not_claim_goes_through_torch(family: str, changes: dict[str, object], tmp_path: Path) -> None:
    reference = bulk(build_model(tmp_path / "m", family, **changes))
    encoder = open_query_encoder(reference.contract)
    assert isinstance(encoder, BulkEncoder)
    assert (encoder.device, encoder.dtype) == ("cpu", "float32")
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), reference.encode_queries(QUERIES), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("dtype", "kind"), [("float16", NumpyQueryEncoder), ("bfloat16", NumpyQueryEncoder), ("float64", BulkEncoder)]
)
def test_stored_weights_are_read_as_transformers_reads_them(
    dtype: str, kind: type, pooling: Pooling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = stored_as(dtype, build_model(tmp_path / "m"))
    for module in ("compiled.compile_graph", "packed.pack"):
        monkeypatch.setattr(f"indexer.encoder.{module}", lambda *_: None)
    reference = bulk(directory, pooling=pooling)
    assert isinstance(reference._pipeline._models[0], PlainModel)
    encoder = open_query_encoder(reference.contract)
    assert isinstance(encoder, kind)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), reference.encode_queries(QUERIES), atol=1e-5)


def test_stored_numbers_are_widened_exactly(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    bits = torch.arange(0, 1 << 16, dtype=torch.int32).to(torch.uint16)
    stored = {str(dtype): bits.view(dtype).reshape(256, 256).clone() for dtype in (torch.bfloat16, torch.float16)}
    save_file(stored, tmp_path / "model.safetensors")
    weights = Weights([tmp_path / "model.safetensors"])
    for name, values in stored.items():
        expected = values.float().numpy()
        np.testing.assert_array_equal(weights.array(name), expected)
        assert weights.array(name).dtype == np.float32
        np.testing.assert_array_equal(as_float32(weights.table(name)[[7, 250, 7]]), expected[[7, 250, 7]])
        assert weights.table(name).itemsize == 2


def test_names_of_old_checkpoints_and_of_models_with_a_head_are_known(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    directory = build_model(tmp_path / "m")
    expected = bulk(directory).encode_queries(QUERIES)
    weights = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(directory / "model.safetensors").items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    reference = bulk(directory)
    encoder = open_query_encoder(reference.contract)
    assert isinstance(encoder, NumpyQueryEncoder)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), expected, atol=1e-5)
    np.testing.assert_allclose(reference.encode_queries(QUERIES), expected, atol=1e-5)


def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    directory = build_model(tmp_path / "m")
    expected = bulk(directory).encode_queries(QUERIES)
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, directory / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    reference = bulk(directory)
    np.testing.assert_allclose(reference.encode_queries(QUERIES), expected, atol=1e-6)
    np.testing.assert_allclose(open_query_encoder(reference.contract).encode_queries(QUERIES), expected, atol=1e-5)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EncoderError, match="lacks model-00002-of-00002"):
        open_query_encoder(reference.contract)


def test_another_model_is_refused_and_another_place_accepted(tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    reference = bulk(tiny_bert)
    other = build_model(tmp_path / "other", seed=3)
    with pytest.raises(ContractError, match=reference.contract.weights_sha256[:12]):
        open_query_encoder(reference.contract, model=str(other))
    moved = tmp_path / "moved"
    shutil.copytree(tiny_bert, moved)
    encoder = open_query_encoder(reference.contract, model=str(moved))
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), reference.encode_queries(QUERIES), atol=1e-5)


def test_files_changed_in_place_are_noticed(tmp_path: Path) -> None:
    directory = build_model(tmp_path / "m")
    contract = bulk(directory).contract
    tokenizer = directory / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(ContractError, match=r"tokenizer .* changed since"):
        open_query_encoder(contract)


def test_a_model_that_is_gone_says_which_one_would_work(tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_bert, tmp_path / "m")
    contract = bulk(tmp_path / "m").contract
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(ModelNotFoundError, match="no such directory"):
        open_query_encoder(contract)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_query_process_loads_neither_torch_nor_transformers(dtype: str, tmp_path: Path) -> None:
    contract = json.dumps(bulk(stored_as(dtype, build_model(tmp_path / "m"))).contract.to_json())
    code = (
        "import json, sys\n"
        "from indexer.encoder.contract import Contract\n"
        "from indexer.encoder.query import open_query_encoder\n"
        "encoder = open_query_encoder(Contract.from_json(json.loads(sys.argv[1])))\n"
        "assert encoder.encode_queries(['the cat']).shape == (1, 32)\n"
        "heavy = {'torch', 'transformers', 'safetensors', 'huggingface_hub', 'httpx', 'httpx2', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, contract], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_gelu_is_exact_to_float32() -> None:
    x = np.linspace(-8, 8, 100_001, dtype=np.float32)
    exact = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.astype(float)])
    assert np.abs(gelu(x) - exact).max() < 3e-7
    assert np.abs(gelu(x) - exact)[np.abs(x) < 1].max() < 1e-7


def test_a_query_without_tokens_names_its_position(tmp_path: Path) -> None:
    contract = bulk(build_model(tmp_path / "m", special_first=False)).contract
    with pytest.raises(NonFiniteVectorError) as caught:
        open_query_encoder(contract).encode_queries(["the cat", " "])
    assert caught.value.position == 1


def test_a_lone_surrogate_is_an_error_of_ours(tiny_bert: Path) -> None:
    with pytest.raises(EncoderError, match="surrogate"):
        open_query_encoder(bulk(tiny_bert).contract).encode_queries(["a \udc80 b"])


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (60).to_bytes(8, "little") + b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(60),
        (60).to_bytes(8, "little") + b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[-8,8]}}'.ljust(60) + bytes(16),
    ],
)
def test_a_damaged_weights_file_is_refused(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage)
    with pytest.raises(EncoderError, match="damaged"):
        Weights([path])
