"""HiddenState: the vectors of a text column as a new column, for `datasets.Dataset.map`."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from indexer.config import Dtype, EncoderOptions, Pooling, choice
from indexer.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from indexer.encoder.bulk import BulkEncoder

logger = logging.getLogger(__name__)


class HiddenState:
    """Adds the last hidden state of each text to a batch; give it to `Dataset.map(..., batched=True)`.

    Only the recipe, the arguments below, is pickled. Equal recipes therefore have equal fingerprints, and `map` takes
    their result from its cache; it does not notice when the files of a model were exchanged in their place, or another
    device computes. The model is loaded with the first batch, once for each process. Texts are sorted by length inside
    a batch, so a `batch_size` of 1,000 and more is faster than the small one of a forward pass.

    Args:
        model: hub id, directory or `package:NAME`.
        text_field: the column or columns that make the text; several are joined by a space.
        column: the column to add.
        pooling: cls (position 0 of the last layer), mean, last, or auto (what the model declares).
        normalize: scale each vector to unit length, as an index does; otherwise it is the hidden state as it is.
        revision: branch, tag or commit on the hub.
        max_length: tokens after which a text is cut, with the special ones; the default is the model's own.
        doc_prompt: put before every text.
        dtype: auto, float32, float16 or bfloat16: what the model computes in; auto is within 1e-3 of float32.
        device: e.g. cuda:0, cuda:0,cuda:1 or cpu; the default is every GPU, else the CPU.
        batch_tokens: tokens of one forward pass, with padding.

    Raises:
        UsageError: an argument that cannot be used.
    """

    def __init__(
        self,
        model: str,
        *,
        text_field: str | Sequence[str] = "text",
        column: str = "hidden_state",
        pooling: str | Pooling = Pooling.CLS,
        normalize: bool = False,
        revision: str | None = None,
        max_length: int | None = None,
        doc_prompt: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.column = column
        self._text_fields = (text_field,) if isinstance(text_field, str) else tuple(text_field)
        self._normalize = normalize
        self._options = EncoderOptions(
            model=model,
            revision=revision,
            pooling=choice(Pooling, pooling, "pooling"),
            max_length=max_length,
            doc_prompt=doc_prompt,
            dtype=choice(Dtype, dtype, "dtype"),
            device=device,
            batch_tokens=batch_tokens,
        )
        self._encoder: BulkEncoder | None = None
        self._end: weakref.finalize[[], HiddenState] | None = None

    def close(self) -> None:
        """End the threads of the encoder, and give torch back those of the process; the next batch starts anew."""
        if self._end is not None:
            self._end()
        self._encoder = self._end = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_encoder": None, "_end": None}

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, NDArray[np.float32]]:
        """Encode a batch of n rows.

        Args:
            batch: columns by name, as `Dataset.map` gives them with `batched=True`.

        Returns:
            The new column, (n, d) float32 in the order of the rows.

        Raises:
            UsageError: a text column is missing, or a value in it is no string.
            ModelNotFoundError: the model cannot be had here.
            NonFiniteVectorError: a text gives no finite vector; `position` is its row in the batch.
        """
        texts = self._texts(batch)
        if self._encoder is None:
            from indexer.encoder.bulk import BulkEncoder

            self._encoder = BulkEncoder.load(self._options)
            self._end = weakref.finalize(self, self._encoder.close)
            for warning in self._encoder.warnings:
                logger.warning("%s", warning)
        return {self.column: self._encoder.encode(texts, normalize=self._normalize)}

    def _texts(self, batch: Mapping[str, Sequence[str]]) -> list[str]:
        for name in self._text_fields:
            if name not in batch:
                msg = f"no column {name!r} to take the text from; the columns are {', '.join(map(repr, batch))}"
                raise UsageError(msg)
            if isinstance(batch[name], str):
                msg = "a single row was given; pass batched=True to Dataset.map"
                raise UsageError(msg)
            for row, value in enumerate(batch[name]):
                if not isinstance(value, str):
                    msg = f"row {row} of the batch has no string in {name!r} but {value!r}; filter such rows out before"
                    raise UsageError(msg)
        parts = zip(*(batch[name] for name in self._text_fields), strict=True)
        return [row[0] if len(row) == 1 else " ".join(part for part in row if part.strip()) for row in parts]
