"""Texts into vectors in stages that overlap: one thread tokenises, one worker for each device or core encodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.encoder.tokens import Tokens
from indexer.errors import EncoderError, NonFiniteVectorError

if TYPE_CHECKING:
    from torch import Tensor

    from indexer.encoder.engine import Forward

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Vectors of b texts.

    `positions` (b,) int64 point into the texts given; `vectors` (b, d) float32 have unit length; `n_tokens` (b,) int32
    count the prompt and the special tokens, before truncation, and `n_tokens_lost` (b,) int32 what truncation took;
    for texts that are very long both may be estimates, as in `Tokens`.
    """

    positions: NDArray[np.int64]
    vectors: NDArray[np.float32]
    n_tokens: NDArray[np.int32]
    n_tokens_lost: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some texts on their way through a worker."""

    positions: NDArray[np.int64]
    landing: Future[Landing]


@dataclass(frozen=True, slots=True)
class Landing:
    """Vectors on their way to the host, (b, d) float32; `began` and `ended` are CUDA events, None on a CPU."""

    vectors: Tensor
    began: Any = None
    ended: Any = None

    def wait(self) -> float:
        """Wait until the vectors are there; return the seconds that the GPU took."""
        if self.ended is None:
            return 0.0
        self.ended.synchronize()
        return float(self.began.elapsed_time(self.ended)) / 1_000


class Pipeline:
    """Runs texts through a tokenizer and a worker for each model given.

    `seconds` accumulates the busy seconds of "tokenize" and "encode", the latter as a mean over the workers.

    Args:
        tokenize: turns texts into tokens; called by one thread.
        models: the forward pass of each worker; the same one may stand there more than once.
        batch_tokens: budget of a forward pass; a device that runs out of memory halves it.
        n_threads: of torch, for all workers on a CPU together.
    """

    def __init__(
        self,
        tokenize: Callable[[Sequence[str]], Tokens],
        models: Sequence[Forward],
        *,
        batch_tokens: int,
        n_threads: int,
        dtype: str,
    ) -> None:
        self.batch_tokens = batch_tokens
        self.seconds = {"tokenize": 0.0, "encode": 0.0}
        self._tokenize = tokenize
        self._models = models
        self._n_threads = n_threads
        self._dtype = dtype
        self._lock = Lock()
        self._idle: SimpleQueue[Forward] = SimpleQueue()
        for model in models:
            self._idle.put(model)
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")
        share = max(n_threads // len(models), 1)
        self._encoding = ThreadPoolExecutor(len(models), "encode", _set_torch_threads, (share,))

    def start(self, texts: Sequence[str], *, normalize: bool = True) -> Iterator[EncodedBatch]:
        """Begin to encode texts at once; what was started before comes first.

        Args:
            texts: any number; they are tokenised together.
            normalize: scale to unit length.

        Returns:
            batches that together cover every text once, longest first; closing it drops what is left.
        """
        planned = self._tokenizing.submit(self._plan, texts, normalize)
        return self._finished(planned)

    def close(self) -> None:
        """Drop what is queued and wait for the threads to end."""
        import torch

        self._tokenizing.shutdown(cancel_futures=True)
        self._encoding.shutdown(cancel_futures=True)
        torch.set_num_threads(self._n_threads)

    def _plan(self, texts: Sequence[str], normalize: bool) -> tuple[Tokens, list[_Batch]]:
        """Tokenise, sort by length, cut into batches and hand these to the workers."""
        started = perf_counter()
        tokens = self._tokenize(texts)
        lengths = tokens.lengths
        if len(lengths) and lengths.min() == 0:
            msg = "the text gives no token at all"
            raise NonFiniteVectorError(msg, int(lengths.argmin()))
        order = np.argsort(-lengths, kind="stable")
        ordered = lengths[order]
        batches = []
        start = 0
        while start < len(order):
            stop = start + self._models[0].n_fit(ordered[start:], self.batch_tokens)
            rows = order[start:stop]
            batches.append(_Batch(rows, self._encoding.submit(self._encode, tokens, rows, normalize)))
            start = stop
        self._count("tokenize", perf_counter() - started)
        return tokens, batches

    def _finished(self, planned: Future[tuple[Tokens, list[_Batch]]]) -> Iterator[EncodedBatch]:
        batches: list[_Batch] = []
        try:
            tokens, batches = planned.result()
            for batch in batches:
                landing = batch.landing.result()
                self._count("encode", landing.wait() / len(self._models))
                yield self._checked(batch.positions, landing.vectors.numpy(), tokens)
        finally:
            planned.cancel()
            for batch in batches:
                batch.landing.cancel()

    def _encode(self, tokens: Tokens, rows: NDArray[np.int64], normalize: bool) -> Landing:
        """Run a batch on whichever model is idle; on a GPU, without waiting for it."""
        import torch

        model = self._idle.get()
        try:
            if model.device.type != "cuda":
                started = perf_counter()
                vectors = self._vectors(model, tokens, rows, normalize).cpu()
                self._count("encode", (perf_counter() - started) / len(self._models))
                return Landing(vectors)
            with torch.cuda.device(model.device):
                event: Any = torch.cuda.Event  # has no types
                began, ended = event(enable_timing=True), event(enable_timing=True)
                began.record()
                vectors = self._vectors(model, tokens, rows, normalize)
                host = torch.empty(vectors.shape, pin_memory=True)
                host.copy_(vectors, non_blocking=True)
                ended.record()
                return Landing(host, began, ended)
        finally:
            self._idle.put(model)

    def _vectors(self, model: Forward, tokens: Tokens, rows: NDArray[np.int64], normalize: bool) -> Tensor:
        """Return (b, d) float32 on the device of the model; in halves where it has no room for all at once."""
        import torch

        lengths = tokens.lengths[rows]
        try:
            with torch.inference_mode():
                vectors = model(tokens.take(rows), lengths)
                # In 16 bits the square of a hidden state can overflow, so they are float32; 0/0 and inf/inf become NaN.
                return vectors / vectors.norm(dim=1, keepdim=True) if normalize else vectors
        except torch.OutOfMemoryError as error:
            self._halve(model, lengths, error)
        half = len(rows) // 2
        parts = [self._vectors(model, tokens, part, normalize) for part in (rows[:half], rows[half:])]
        return torch.cat(parts)

    def _halve(self, model: Forward, lengths: NDArray[np.int32], error: Exception) -> None:
        """Make batches smaller for good; a single text cannot become smaller."""
        import torch

        if len(lengths) == 1:
            msg = f"a text of {lengths[0]} tokens does not fit into the memory of {model.device}"
            raise EncoderError(f"{msg}; pass a --max-length below") from error
        with self._lock:
            self.batch_tokens = min(self.batch_tokens, max(int(lengths.sum()) // 2, 1))
        logger.warning(
            "out of memory on %s: batches of at most %d tokens from here on", model.device, self.batch_tokens
        )
        if model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _checked(self, positions: NDArray[np.int64], vectors: NDArray[np.float32], tokens: Tokens) -> EncodedBatch:
        broken = ~np.isfinite(vectors).all(axis=1)
        if broken.any():
            msg = f"the model gives NaN, Inf or zero for it in {self._dtype}; --dtype float32 or bfloat16 may help"
            raise NonFiniteVectorError(msg, int(positions[broken][0]))
        n_tokens = tokens.n_tokens[positions]
        return EncodedBatch(positions, vectors, n_tokens, n_tokens - tokens.lengths[positions])

    def _count(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] += seconds


def _set_torch_threads(n: int) -> None:
    """Give a worker its share of the cores: torch counts for the thread that calls, and for those that start later."""
    import torch

    torch.set_num_threads(n)
