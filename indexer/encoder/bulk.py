"""BulkEncoder: many texts into unit vectors, as a contract says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.config import DEFAULT_MODEL, EncoderOptions, Pooling
from indexer.encoder.contract import Contract, check_options, check_same_dim, check_same_model, lint, resolve_options
from indexer.encoder.models import resolve_model
from indexer.encoder.pipeline import EncodedBatch, Pipeline
from indexer.encoder.settle import new_contract
from indexer.encoder.tokens import TextTokenizer, Tokens
from indexer.errors import UsageError

if TYPE_CHECKING:
    from indexer.encoder.engine import Forward


class BulkEncoder:
    """Encodes documents and queries as a contract says, in threads of its own. Made by `load`; `close` ends them.

    `seconds` are the busy seconds of "tokenize" and "encode"; `engine` is torch or openvino; `warnings` are lines
    for the user.
    """

    def __init__(
        self,
        *,
        contract: Contract,
        tokenizer: TextTokenizer,
        models: Sequence[Forward],
        device: str,
        dtype: str,
        batch_tokens: int,
        n_threads: int,
        warnings: list[str],
    ) -> None:
        self.contract = contract
        self.engine = models[0].engine
        self.device = device
        self.dtype = dtype
        self.warnings = warnings
        self._tokenizer = tokenizer
        self._pipeline = Pipeline(self._tokenize, models, batch_tokens=batch_tokens, n_threads=n_threads, dtype=dtype)
        self.seconds = self._pipeline.seconds

    @classmethod
    def load(
        cls, options: EncoderOptions, *, contract: Contract | None = None, allow_download: bool = True
    ) -> BulkEncoder:
        """Load a model: for a new index from the options alone, for an existing one as its contract says.

        Args:
            options: what was asked for.
            contract: of the existing index; whatever the options leave open comes from it.
            allow_download: whether the hub may be asked for a model that is not here.

        Raises:
            ModelNotFoundError: the model cannot be had here.
            ContractError: an option, or the model found, contradicts the contract.
            UsageError: an option cannot be used with this model or machine.
            EncoderError: the model cannot be loaded.
        """
        from indexer.encoder.engine import batch_tokens, choose_devices, choose_dtype, load_workers

        name = options.model or (contract.model if contract else DEFAULT_MODEL)
        revision = options.revision or (contract.revision if contract and not options.model else None)
        files = resolve_model(name, revision, allow_download=allow_download)
        if options.revision is not None and files.revision is None:
            msg = (
                f"--revision {options.revision} names a state of a model of the hub, which {name} is not; leave it out"
            )
            raise UsageError(msg)
        options = resolve_options(options, files.declared)
        if contract is not None:
            check_options(contract, options)
            check_same_model(
                contract,
                model=files.name,
                weights_sha256=files.weights_sha256,
                tokenizer_sha256=files.tokenizer_sha256,
            )
        tokenizer = TextTokenizer.load(files)
        devices = choose_devices(options.device)
        dtype = choose_dtype(options.dtype, devices[0])
        pooling = contract.pooling if contract else options.pooling or Pooling.CLS
        workers = load_workers(files, devices, dtype, pooling)
        model = workers.models[0]
        if contract is None:
            contract = new_contract(files, options, pooling=pooling, config=workers.config, dim=model.dim)
        check_same_dim(contract, model.dim)
        warnings = lint(files.declared, contract)
        if pooling is Pooling.CLS and tokenizer.n_leading == 0:
            warnings.append(
                f"the tokenizer of {contract.model} puts no token such as [CLS] first: cls pooling takes the first "
                "word of each text; --pooling mean or last fits such a model"
            )
        return cls(
            contract=contract,
            tokenizer=tokenizer,
            models=workers.models,
            device=",".join(devices),
            dtype=str(dtype).removeprefix("torch."),
            batch_tokens=options.batch_tokens or batch_tokens(model),
            n_threads=workers.n_threads,
            warnings=warnings,
        )

    def close(self) -> None:
        """Drop what is queued and end the threads."""
        self._pipeline.close()

    def encode_stream(self, texts: Sequence[str]) -> Iterator[EncodedBatch]:
        """Begin to encode documents, behind those of earlier calls; yield each batch when it is done, longest first.

        Args:
            texts: any number; they are tokenised together, so a window of some thousand sorts well and fits in memory.

        Returns:
            batches that together cover every text once.

        Raises:
            NonFiniteVectorError: a text gives no finite vector; `position` says which.
            EncoderError: a single text does not fit into the memory of the device.
        """
        return self._start(texts, self.contract.doc_prompt)

    def passages(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return the passages of each document as the contract cuts them, characters [start, end).

        Raises:
            UsageError: the contract does not cut documents, or its passages have no room for a word.
        """
        size = self.contract.chunk_tokens
        if size is None:
            msg = "this index takes documents whole; --chunk-tokens cuts them"
            raise UsageError(msg)
        started = perf_counter()
        spans = self._tokenizer.windows(texts, size, self.contract.chunk_overlap, self.contract.doc_prompt)
        self.seconds["tokenize"] += perf_counter() - started
        return spans

    def encode(self, texts: Sequence[str], *, normalize: bool = True) -> NDArray[np.float32]:
        """Encode documents in order.

        Args:
            texts: any number; they are tokenised together.
            normalize: scale to unit length; otherwise hidden states come back as the model gives them.

        Returns:
            (n, d) float32, of unit length unless `normalize` is false.

        Raises:
            NonFiniteVectorError: a text gives no finite vector.
        """
        return self._in_order(texts, self.contract.doc_prompt, normalize=normalize)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode queries in order.

        Returns:
            (q, d) float32 of unit length.

        Raises:
            NonFiniteVectorError: a text gives no finite vector.
        """
        return self._in_order(texts, self.contract.query_prompt)

    def _in_order(self, texts: Sequence[str], prompt: str, *, normalize: bool = True) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.contract.dim), np.float32)
        for batch in self._start(texts, prompt, normalize=normalize):
            vectors[batch.positions] = batch.vectors
        return vectors

    def _start(self, texts: Sequence[str], prompt: str, *, normalize: bool = True) -> Iterator[EncodedBatch]:
        prompted = [prompt + text for text in texts] if prompt else texts
        return self._pipeline.start(prompted, normalize=normalize)

    def _tokenize(self, texts: Sequence[str]) -> Tokens:
        return self._tokenizer.encode(texts, self.contract.max_length_tokens)
