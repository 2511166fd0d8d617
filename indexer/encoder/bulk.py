"""BulkEncoder: many texts into unit vectors with torch, batches of similar length under a token budget."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.config import DEFAULT_MODEL, EncoderOptions, Pooling
from indexer.encoder.contract import Contract, check_options, check_same_dim, check_same_model, lint, resolve_options
from indexer.encoder.models import ModelFiles, resolve_model
from indexer.encoder.settle import new_contract
from indexer.encoder.tokens import TextTokenizer, Tokens
from indexer.errors import EncoderError, NonFiniteVectorError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from indexer.encoder.engine import Transformer

logger = logging.getLogger(__name__)

# Tokens with padding of one forward pass. On 2 cores (Zen 4, MiniLM) 2,048 to 4,096 is best in bfloat16, 512 to 2,048
# in float32; a GPU needs far more to be busy.
CPU_BATCH_TOKENS = 2_048
GPU_BATCH_TOKENS = 65_536
_MAX_ROWS = 4_096
_EXACT_LENGTHS = 64
_LENGTH_STEP = 8


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Vectors of b texts.

    `positions` (b,) int64 point into the texts given; `vectors` (b, d) float32 have unit length; `n_tokens` (b,) int32
    count the prompt and the special tokens, before truncation, and `n_tokens_lost` (b,) int32 what truncation took.
    """

    positions: NDArray[np.int64]
    vectors: NDArray[np.float32]
    n_tokens: NDArray[np.int32]
    n_tokens_lost: NDArray[np.int32]


class BulkEncoder:
    """Encodes documents and queries as a contract says. Made by `load`; not for use by several threads at once.

    `seconds` accumulates the busy seconds of "tokenize" and "encode"; `warnings` are lines for the user.
    """

    engine = "torch"

    def __init__(
        self,
        *,
        contract: Contract,
        tokenizer: TextTokenizer,
        model: Transformer,
        device: str,
        dtype: str,
        pad_id: int,
        batch_tokens: int,
        warnings: list[str],
    ) -> None:
        self.contract = contract
        self.device = device
        self.dtype = dtype
        self.warnings = warnings
        self.seconds = {"tokenize": 0.0, "encode": 0.0}
        self.batch_tokens = batch_tokens
        self._tokenizer = tokenizer
        self._model = model
        self._pad_id = pad_id

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
        from indexer.encoder.engine import choose_device, choose_dtype, load_model

        name = options.model or (contract.model if contract else DEFAULT_MODEL)
        revision = options.revision or (contract.revision if contract and not options.model else None)
        files = resolve_model(name, revision, allow_download=allow_download)
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
        device = choose_device(options.device)
        dtype = choose_dtype(options.dtype, device)
        model = load_model(files, device, dtype)
        dim = _dim(model, files)
        if contract is None:
            contract = new_contract(files, options, config=model.config.to_dict(), dim=dim)
        check_same_dim(contract, dim)
        warnings = lint(files.declared, contract)
        if contract.pooling is Pooling.CLS and tokenizer.n_leading == 0:
            warnings.append(
                f"the tokenizer of {contract.model} puts no token such as [CLS] first: cls pooling takes the first "
                "word of each text; --pooling mean or last fits such a model"
            )
        return cls(
            contract=contract,
            tokenizer=tokenizer,
            model=model,
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            pad_id=getattr(model.config, "pad_token_id", None) or 0,
            batch_tokens=options.batch_tokens or (CPU_BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS),
            warnings=warnings,
        )

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.contract.dim

    def encode_stream(self, texts: Sequence[str]) -> Iterator[EncodedBatch]:
        """Encode documents, longest first; yield each batch as it is done.

        Args:
            texts: any number; they are tokenised together, so a window of some thousand sorts well and fits in memory.

        Yields:
            batches that together cover every text once.

        Raises:
            NonFiniteVectorError: a text gives no finite vector; `position` says which.
            EncoderError: a single text does not fit into the memory of the device.
        """
        return self._stream(texts, self.contract.doc_prompt)

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
        for batch in self._stream(texts, prompt, normalize=normalize):
            vectors[batch.positions] = batch.vectors
        return vectors

    def _stream(self, texts: Sequence[str], prompt: str, *, normalize: bool = True) -> Iterator[EncodedBatch]:
        import torch

        started = perf_counter()
        tokens = self._tokenizer.encode([prompt + text for text in texts], self.contract.max_length_tokens)
        lengths = tokens.lengths
        if len(lengths) and lengths.min() == 0:
            msg = "the text gives no token at all"
            raise NonFiniteVectorError(msg, int(lengths.argmin()))
        order = np.argsort(-lengths, kind="stable")
        self.seconds["tokenize"] += perf_counter() - started

        # A GPU works ahead of its results: the next batch starts before the last one is copied back.
        depth = 0 if self.device == "cpu" else 1
        running: deque[tuple[NDArray[np.int64], Tensor]] = deque()
        start = 0
        while start < len(order):
            rows = order[start : start + self._n_rows(_padded_length(int(lengths[order[start]])))]
            try:
                running.append((rows, self._forward([tokens.ids[row] for row in rows], normalize=normalize)))
            except torch.OutOfMemoryError as error:
                self._halve(len(rows), int(lengths[rows[0]]), error)
                continue
            start += len(rows)
            if len(running) > depth:
                yield self._finish(*running.popleft(), tokens)
        while running:
            yield self._finish(*running.popleft(), tokens)

    def _n_rows(self, longest: int) -> int:
        return min(max(self.batch_tokens // longest, 1), _MAX_ROWS)

    def _halve(self, n_rows: int, longest: int, error: Exception) -> None:
        """Make batches smaller for good; a single text cannot become smaller."""
        import torch

        if n_rows == 1:
            msg = f"a text of {longest} tokens does not fit into the memory of {self.device}; pass a --max-length below"
            raise EncoderError(msg) from error
        self.batch_tokens = n_rows * longest // 2
        logger.warning("out of memory on %s: batches of at most %d tokens from here on", self.device, self.batch_tokens)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _forward(self, ids: list[NDArray[np.int32]], *, normalize: bool) -> Tensor:
        """Return (b, d) float32 vectors on the device, not waited for."""
        import torch

        from indexer.encoder.pooling import pool

        started = perf_counter()
        lengths = np.array([len(row) for row in ids])
        inside = np.arange(_padded_length(int(lengths.max()))) < lengths[:, None]
        padded = np.full(inside.shape, self._pad_id, np.int64)
        padded[inside] = np.concatenate(ids)
        with torch.inference_mode():
            mask = torch.from_numpy(inside).to(self.device)
            output = self._model(input_ids=torch.from_numpy(padded).to(self.device), attention_mask=mask.long())
            vectors = pool(output.last_hidden_state, mask, self.contract.pooling, normalize=normalize)
        self.seconds["encode"] += perf_counter() - started
        return vectors

    def _finish(self, rows: NDArray[np.int64], vectors: Tensor, tokens: Tokens) -> EncodedBatch:
        started = perf_counter()
        found = vectors.cpu().numpy()
        self.seconds["encode"] += perf_counter() - started
        broken = ~np.isfinite(found).all(axis=1)
        if broken.any():
            msg = f"the model gives NaN, Inf or zero for it in {self.dtype}; --dtype float32 or bfloat16 may help"
            raise NonFiniteVectorError(msg, int(rows[broken][0]))
        n_tokens = tokens.n_tokens[rows]
        return EncodedBatch(rows, found, n_tokens, n_tokens - tokens.lengths[rows])


def _padded_length(longest: int) -> int:
    """Return the length that a batch is padded to.

    oneDNN keeps a program for every shape it meets, some 100 kB each; long lengths in steps of eight keep their number,
    and the memory of a build, bounded.
    """
    return longest if longest <= _EXACT_LENGTHS else -(-longest // _LENGTH_STEP) * _LENGTH_STEP


def _dim(model: Transformer, files: ModelFiles) -> int:
    """Return the length of the model's vectors, from a pass over three tokens."""
    import torch

    with torch.inference_mode():
        ids = torch.zeros((1, 3), dtype=torch.long, device=model.device)
        try:
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            msg = f"{files.name} ({files.architecture}) cannot be used as a text encoder: {error}"
            raise EncoderError(msg) from error
    return int(hidden.shape[2])
