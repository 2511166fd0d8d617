"""Documents on their way into an index: windows as they are read, groups as they are encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.documents import Document, text_key
from indexer.storage.changes import Changes, PassageRow


class EncodedTexts(Protocol):
    """Some texts encoded: `positions` (b,) int64 in the list given, `vectors` (b, d) float32, (b,) token counts."""

    @property
    def positions(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def vectors(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def n_tokens(self) -> NDArray[np.int32]: ...  # noqa: D102
    @property
    def n_tokens_lost(self) -> NDArray[np.int32]: ...  # noqa: D102


@dataclass(slots=True)
class Pending:
    """A document on its way into the index; it is ready when every passage has its vector.

    `done` has for each passage its row and its vector, (d,) float32, None until it is encoded.
    """

    position: int
    document: Document
    source: int
    replaces: int | None = None
    spans: Sequence[tuple[int, int] | None] = (None,)
    done: list[tuple[PassageRow, NDArray[np.float32]] | None] = field(default_factory=list)
    n_missing: int = 0

    def text(self, passage: int) -> str:
        """Return the text of a passage."""
        span = self.spans[passage]
        return self.document.text if span is None else self.document.text[span[0] : span[1]]

    def put(self, passage: int, vector: NDArray[np.float32], n_tokens: int, n_tokens_lost: int) -> None:
        """Give a passage its vector, (d,) float32."""
        start, end = self.spans[passage] or (None, None)
        row = PassageRow(start, end, text_key(self.text(passage)), n_tokens, n_tokens_lost)
        self.done[passage] = row, vector
        self.n_missing -= 1


@dataclass(slots=True)
class Window:
    """Some documents of one source; `first` are those that stand in it under each id, `n_done` those done with."""

    documents: Sequence[Document]
    on_commit: Callable[[float], None]
    first: dict[str, Document] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)
    n_done: int = 0

    def tell(self) -> None:
        """Tell what share of the documents is done with."""
        self.on_commit(self.n_done / len(self.documents))


@dataclass(slots=True)
class Group:
    """Documents of a window that go through the model together; `batches` come as they are encoded.

    `texts` go through the model; `left` are the documents that are not ready, by position; `began_s` is monotonic time.
    """

    window: Window
    left: dict[int, Pending]
    texts: list[str]
    batches: Iterator[EncodedTexts]
    n_passages: int
    began_s: float

    def take_ready(self) -> list[Pending]:
        """Take out the documents that have all their vectors, in the order of the source, so that it decides ties."""
        ready = [item for item in self.left.values() if item.n_missing == 0]
        for item in ready:
            del self.left[item.position]
        return ready
