"""Queries into vectors on the CPU: numpy for the families it knows, torch for all others."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.config import Dtype, EncoderOptions
from indexer.encoder.contract import Contract, check_same_dim, check_same_model
from indexer.encoder.forward import NumpyEncoder, open_numpy_encoder
from indexer.encoder.models import ModelFiles, resolve_model
from indexer.encoder.tokens import TextTokenizer
from indexer.encoder.weights import Weights
from indexer.errors import NonFiniteVectorError


class QueryEncoder(Protocol):
    """Turns queries into vectors of the same space as an index's documents."""

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (q, d) float32 of unit length, in order."""

    def close(self) -> None:
        """End what the encoder has running."""


def open_query_encoder(contract: Contract, *, model: str | None = None, allow_download: bool = False) -> QueryEncoder:
    """Open the encoder that a contract asks for and check that the model found is the contract's.

    Args:
        contract: of the index.
        model: another place of the same weights; None means where the contract says.
        allow_download: whether the hub may be asked for a model that is not here.

    Raises:
        ModelNotFoundError: the model cannot be had here.
        ContractError: the model found is another one.
        EncoderError: the model cannot be loaded.
    """
    files = resolve_model(model or contract.model, None if model else contract.revision, allow_download=allow_download)
    # Hashing 90 MB takes as long as all the rest; it runs beside it, and the answer is awaited before any vector.
    with ThreadPoolExecutor(max_workers=1) as pool:
        checked = pool.submit(_check, contract, files)
        encoder = _open_numpy(contract, files)
        checked.result()
    if encoder is not None:
        return encoder
    from indexer.encoder.bulk import BulkEncoder

    options = EncoderOptions(model=str(files.directory), dtype=Dtype.FLOAT32, device="cpu")
    return BulkEncoder.load(options, contract=contract, allow_download=False)


class NumpyQueryEncoder:
    """Encodes queries without torch; made by `open_query_encoder`. Any number of threads may use it."""

    def __init__(self, contract: Contract, tokenizer: TextTokenizer, model: NumpyEncoder) -> None:
        self._contract = contract
        self._tokenizer = tokenizer
        self._model = model

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode queries in order, with the prompt and the maximum length of the contract.

        Returns:
            (q, d) float32 of unit length.

        Raises:
            NonFiniteVectorError: a text gives no token, or no finite vector.
        """
        contract = self._contract
        tokens = self._tokenizer.encode([contract.query_prompt + text for text in texts], contract.max_length_tokens)
        vectors = np.empty((len(texts), contract.dim), np.float32)
        for position in range(len(texts)):
            ids = tokens.row(position)
            if len(ids) == 0:
                msg = "the text gives no token at all"
                raise NonFiniteVectorError(msg, position)
            vectors[position] = self._model.encode(ids, contract.pooling)
            if not np.isfinite(vectors[position]).all():
                msg = "the model gives NaN, Inf or zero for it"
                raise NonFiniteVectorError(msg, position)
        return vectors

    def close(self) -> None:
        """Do nothing: there is nothing that runs."""


def _check(contract: Contract, files: ModelFiles) -> None:
    check_same_model(
        contract, model=files.name, weights_sha256=files.weights_sha256, tokenizer_sha256=files.tokenizer_sha256
    )


def _open_numpy(contract: Contract, files: ModelFiles) -> NumpyQueryEncoder | None:
    """Return None for a model that needs torch."""
    if not (files.directory / "tokenizer.json").is_file():
        return None
    model = open_numpy_encoder(files.config, Weights(files.weights))
    if model is None:
        return None
    check_same_dim(contract, model.dim)
    return NumpyQueryEncoder(contract, TextTokenizer.load(files), model)
