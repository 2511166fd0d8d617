"""An encoder without a model: each text gets a fixed unit vector of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from indexer.config import EncoderOptions, Pooling
from indexer.encoder.contract import Contract, check_options

DIM = 16


def fake_vector(text: str, dim: int = DIM) -> NDArray[np.float32]:
    """Return the unit vector of a text, (d,) float32; equal texts have equal vectors."""
    seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


@dataclass
class FakeBatch:
    positions: NDArray[np.int64]
    vectors: NDArray[np.float32]
    n_tokens: NDArray[np.int32]
    n_tokens_lost: NDArray[np.int32]


class FakeEncoder:
    """Counts what it encodes; a word is a token, and what is over ten words is lost."""

    device = "cpu"
    dtype = "float32"
    engine = "fake"
    max_length = 10

    def __init__(self, contract: Contract | None = None, batch: int = 7, chunk_tokens: int | None = None) -> None:
        self.contract = contract or Contract(
            model="fake",
            revision=None,
            weights_sha256="0" * 64,
            tokenizer_sha256="0" * 64,
            architecture="fake",
            pooling=Pooling.CLS,
            max_length_tokens=self.max_length,
            query_prompt="",
            doc_prompt="",
            chunk_tokens=chunk_tokens,
            chunk_overlap=0,
            dim=DIM,
        )
        self.warnings: list[str] = []
        self.seconds = {"tokenize": 0.0, "encode": 0.0}
        self.texts: list[str] = []
        self.batch = batch
        self.is_closed = False

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([fake_vector(text) for text in texts])

    def encode_stream(self, texts: Sequence[str]) -> Iterator[FakeBatch]:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for start in range(0, len(order), self.batch):
            part = order[start : start + self.batch]
            chosen = [texts[i] for i in part]
            self.texts += chosen
            n_words = np.array([len(text.split()) for text in chosen], np.int32)
            lost = np.maximum(n_words - self.max_length, 0).astype(np.int32)
            yield FakeBatch(np.array(part, np.int64), self.encode(chosen), n_words, lost)

    encode_queries = encode

    def close(self) -> None:
        """Note it; nothing is kept open."""
        self.is_closed = True

    def passages(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Cut a text into passages of `chunk_tokens` words."""
        size = self.contract.chunk_tokens or 1
        spans = []
        for text in texts:
            words = [match.span() for match in re.finditer(r"\S+", text)]
            groups = [words[i : i + size] for i in range(0, len(words), size)]
            spans.append([(group[0][0], group[-1][1]) for group in groups])
        return spans

    def load(self, options: EncoderOptions, *, contract: Contract | None) -> FakeEncoder:
        """Stand in for loading a model."""
        if contract is not None:
            check_options(contract, options)
            self.contract = contract
        else:
            pooling = options.pooling or self.contract.pooling
            self.contract = replace(self.contract, pooling=pooling)
        return self
