"""Texts into token ids, cut as the tokenizer itself would cut them, with what was lost counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.chunking import cut_windows
from indexer.encoder.declared import read_json
from indexer.encoder.prefix import first_words, reads_words_alone
from indexer.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from indexer.encoder.models import ModelFiles


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of n texts, with special tokens, cut to the maximum.

    `ids` (t,) int32 are those of all texts, one behind the other, text i at [starts[i], starts[i + 1]); `starts` is
    (n + 1,) int64; `n_tokens` (n,) int32 is each text's count with special tokens before the cut, an estimate for
    some texts longer than 32 characters a token of the maximum; whether it is above the maximum is always exact.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    n_tokens: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each text after the cut, (n,) int32."""
        return np.diff(self.starts).astype(np.int32)

    def row(self, number: int) -> NDArray[np.int32]:
        """Return the ids of a text."""
        return self.ids[self.starts[number] : self.starts[number + 1]]

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the ids of some texts, one behind the other."""
        return np.concatenate([self.row(number) for number in numbers])


class TextTokenizer:
    """A fast tokenizer without padding, the same for documents and queries.

    Args:
        backend: the tokenizer; its own truncation and padding are switched off.
        vocab_size: for how many tokens the model has embeddings, None when that is not known.
    """

    def __init__(self, backend: Tokenizer, vocab_size: int | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._vocab_size = vocab_size
        special = np.array(backend.encode("a").special_tokens_mask, bool)
        content = np.flatnonzero(~special)
        # A tokenizer that has no token for "a" gives special tokens alone; they then count as leading.
        self.n_leading = int(content[0]) if len(content) else len(special)
        self.n_trailing = len(special) - 1 - int(content[-1]) if len(content) else 0
        self._cuts_texts = reads_words_alone(backend)

    @classmethod
    def load(cls, files: ModelFiles) -> TextTokenizer:
        """Load the tokenizer of a model.

        tokenizer.json is taken as it stands, because queries read it without transformers, which builds some tokenizers
        anew from their vocabulary. What tokenizer_config.json says about case and accents goes before it, as there.

        Raises:
            EncoderError: there is no fast tokenizer.
        """
        vocab_size = files.config.get("vocab_size")
        vocab_size = vocab_size if isinstance(vocab_size, int) else None
        path = files.directory / "tokenizer.json"
        if not path.is_file():
            return cls(_converted(files), vocab_size)
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            msg = f"{path} cannot be read ({error}); fetch the model again"
            raise EncoderError(msg) from error
        _apply_config(backend, files)
        return cls(backend, vocab_size)

    def encode(self, texts: Sequence[str], max_length: int) -> Tokens:
        """Return the tokens of each text, at most `max_length` with special tokens; trailing special tokens stay.

        Of a text longer than 32 characters a token of the maximum the first words alone are read, where they give more
        tokens than that: the ids are those of the whole text, `n_tokens` is what it would have at the same rate.

        Raises:
            EncoderError: what is read of a text is not valid Unicode, or gives a token that the model does not know.
        """
        parts = [first_words(text, max_length) for text in texts] if self._cuts_texts else list(texts)
        encodings = self._encode(parts)
        too_few = [
            number
            for number, (text, part) in enumerate(zip(texts, parts, strict=True))
            if len(part) < len(text) and len(encodings[number]) <= max_length
        ]
        for number, encoding in zip(too_few, self._encode([texts[number] for number in too_few]), strict=True):
            parts[number], encodings[number] = texts[number], encoding
        counts = (
            len(encoding) if len(part) == len(text) else round(len(encoding) * len(text) / len(part))
            for text, part, encoding in zip(texts, parts, encodings, strict=True)
        )
        n_tokens = np.fromiter(counts, np.int32, len(encodings))
        rows = [self._cut(encoding.ids, max_length) for encoding in encodings]
        starts = np.concatenate(([0], np.cumsum(np.minimum(n_tokens, max_length), dtype=np.int64)))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, int(starts[-1]))
        if self._vocab_size is not None and len(ids) and ids.max() >= self._vocab_size:
            msg = (
                f"the tokenizer gives token {ids.max()}, but the model has embeddings for {self._vocab_size} tokens: "
                "they do not belong together, or tokens were added without resize_token_embeddings"
            )
            raise EncoderError(msg)
        return Tokens(ids, starts, n_tokens)

    def windows(self, texts: Sequence[str], size: int, overlap: int, prompt: str) -> list[list[tuple[int, int]]]:
        """Cut texts into passages that have at most about `size` tokens, with special tokens and the prompt.

        Args:
            texts: documents.
            size: tokens of a passage; one that starts or ends within a long word may have a token or two more.
            overlap: tokens that two neighbours share.
            prompt: what goes before each passage when it is encoded.

        Returns:
            For each text characters [start, end) of its passages, at least one.

        Raises:
            UsageError: prompt and special tokens leave no room.
        """
        room = size - self.n_leading - self.n_trailing - len(self._backend.encode(prompt, add_special_tokens=False))
        if room <= overlap:
            msg = f"--chunk-tokens {size} leaves {room} tokens beside prompt and special tokens, overlap {overlap}"
            raise UsageError(f"{msg}; make it larger")
        spans = []
        for text, encoding in zip(
            texts, self._backend.encode_batch(list(texts), add_special_tokens=False), strict=True
        ):
            windows = cut_windows(encoding.offsets, encoding.word_ids, room, overlap)
            inner = [_without_space(text, *window) for window in windows]
            spans.append([(start, end) for start, end in inner if start < end] or [(0, len(text))])
        return spans

    def _encode(self, texts: list[str]) -> list[Encoding]:
        try:
            return self._backend.encode_batch_fast(texts)
        except (TypeError, UnicodeEncodeError) as error:
            msg = "a text holds a lone surrogate, which no tokenizer can read; decode its source with errors='replace'"
            raise EncoderError(msg) from error

    def _cut(self, ids: list[int], max_length: int) -> list[int]:
        if len(ids) <= max_length:
            return ids
        return ids[: max_length - self.n_trailing] + ids[len(ids) - self.n_trailing :]


def _without_space(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the white space at its ends, which some tokenizers count to a token."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, start + len(part.strip())


def _apply_config(backend: Tokenizer, files: ModelFiles) -> None:
    """Let tokenizer_config.json decide about case, accents and Chinese characters of BERT's normalizer."""
    from tokenizers.normalizers import BertNormalizer

    config = read_json(files.directory / "tokenizer_config.json")
    normalizer = backend.normalizer
    if not isinstance(normalizer, BertNormalizer):
        return
    for key, attribute in (
        ("do_lower_case", "lowercase"),
        ("strip_accents", "strip_accents"),
        ("tokenize_chinese_chars", "handle_chinese_chars"),
    ):
        if isinstance(value := config.get(key), bool):
            setattr(normalizer, attribute, value)
    backend.normalizer = normalizer


def _converted(files: ModelFiles) -> Tokenizer:
    """Return the tokenizer that transformers makes from vocabulary files."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(files.directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        msg = f"the tokenizer of {files.name} cannot be loaded: {str(error).strip().splitlines()[0]}"
        raise EncoderError(msg) from error
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        msg = f"{files.name} has no fast tokenizer (tokenizer.json)"
        raise EncoderError(msg)
    return backend
