"""Documents into an index, window by window: compare with what is there, encode what is new, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.changes import Changes, NewDocument, PassageRow
from indexer.config import IfExists
from indexer.documents import Document, text_key
from indexer.encoder.contract import Contract
from indexer.errors import CorpusError, NonFiniteVectorError
from indexer.progress import BuildReport, Stopwatch
from indexer.store import Store

COMMIT_TEXTS = 2_048
COMMIT_SECONDS = 2.0
FIRST_GROUP_PASSAGES = 64


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


class TextEncoder(Protocol):
    """What a build needs of an encoder; `BulkEncoder` is the real one."""

    contract: Contract
    device: str
    dtype: str
    engine: str
    warnings: list[str]
    seconds: dict[str, float]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]: ...  # noqa: D102
    def encode_stream(self, texts: Sequence[str]) -> Iterator[EncodedTexts]: ...  # noqa: D102
    def passages(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass(slots=True)
class _Pending:
    """A document on its way into the index; it is ready when every passage has its vector."""

    position: int
    document: Document
    source: int
    replaces: int | None = None
    spans: Sequence[tuple[int, int] | None] = (None,)
    rows: list[PassageRow | None] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    n_missing: int = 0

    def text(self, passage: int) -> str:
        """Return the text of a passage."""
        span = self.spans[passage]
        return self.document.text if span is None else self.document.text[span[0] : span[1]]

    def put(self, passage: int, vector: NDArray[np.float32], n_tokens: int, n_tokens_lost: int) -> None:
        """Give a passage its vector, (d,) float32."""
        start, end = self.spans[passage] or (None, None)
        self.rows[passage] = PassageRow(start, end, text_key(self.text(passage)), n_tokens, n_tokens_lost)
        self.vectors[passage] = vector
        self.n_missing -= 1


class Ingest:
    """Takes windows of documents and makes the index hold them."""

    def __init__(
        self,
        store: Store,
        encoder: TextEncoder,
        report: BuildReport,
        watch: Stopwatch,
        *,
        if_exists: IfExists,
        on_reject: Callable[[CorpusError], None] | None,
        on_commit: Callable[[float], None],
    ) -> None:
        """Prepare one run.

        Args:
            store: the index, open for writing.
            encoder: turns texts into vectors.
            report: is counted up.
            watch: the time of finding and committing goes there.
            if_exists: what becomes of a record whose id is in the index with other content.
            on_reject: gets records that cannot be used; None raises them.
            on_commit: called after each commit with the share of the window, in [0, 1], that is done.
        """
        self._store = store
        self._encoder = encoder
        self._report = report
        self._watch = watch
        self._if_exists = if_exists
        self._on_reject = on_reject
        self._on_commit = on_commit
        self._sources: dict[str, int] = {}
        self._seen = SeenRows(store.last_row_id())
        self._last_commit_s = time.monotonic()
        self._group_passages = FIRST_GROUP_PASSAGES

    def take(self, window: Sequence[Document], source: str) -> None:
        """Bring the index up to date with some documents of one source.

        Raises:
            CorpusError: an id that cannot stand as it is; nothing that was not committed before is in the index.
            NonFiniteVectorError: the model gave NaN or Inf for a text.
            StorageError: a commit was refused.
        """
        if source not in self._sources:
            self._sources[source] = self._store.source(source)
        changes = Changes()
        with self._watch.stage("commit"):
            fresh = self._compare(window, changes, self._sources[source])
        n_done = len(window) - len(fresh)
        ready: list[_Pending] = []
        for group in self._groups(fresh):
            for finished in self._encode(group):
                ready += finished
                n_done += len(finished)
                late = time.monotonic() - self._last_commit_s >= COMMIT_SECONDS
                if ready and (late or sum(len(item.rows) for item in ready) >= COMMIT_TEXTS):
                    self._commit(changes, ready)
                    changes, ready = Changes(), []
                    self._on_commit(n_done / len(window))
            self._commit(changes, ready)  # the next group may copy vectors of this one
            changes, ready = Changes(), []
            self._on_commit(n_done / len(window))
        self._commit(changes, ready)
        self._on_commit(1.0)

    def unseen_rows(self, rows: Sequence[int]) -> list[int]:
        """Return those rows, of documents that stood in the index before, that no record of this run had."""
        return [row for row in rows if row not in self._seen]

    def _compare(self, window: Sequence[Document], changes: Changes, source: int) -> list[_Pending]:
        """Sort a window into unchanged, metadata to rewrite (into `changes`) and texts to append (returned)."""
        fresh: list[_Pending] = []
        first: dict[str, Document] = {}
        for position, (document, known) in enumerate(zip(window, self._store.find(window), strict=True)):
            earlier = first.setdefault(document.id, document)
            if earlier is not document:
                if earlier.content_hash() == document.content_hash():
                    self._report.unchanged += 1
                else:
                    self._reject(document, f"first on line {earlier.place.line} of {earlier.place.source}")
            elif known is None:
                fresh.append(_Pending(position, document, source))
            elif known.content_hash == document.content_hash():
                self._seen.add(known.row_id)
                self._report.unchanged += 1
            elif known.row_id in self._seen:
                name, line = self._store.place_of(known.row_id)
                self._reject(document, f"first on line {line} of {name}")
            else:
                self._seen.add(known.row_id)
                if self._may_update(document):
                    self._report.updated += 1
                    if known.same_text:
                        changes.rewritten.append((known.row_id, document, source))
                    else:
                        fresh.append(_Pending(position, document, source, known.row_id))
        return fresh

    def _may_update(self, document: Document) -> bool:
        match self._if_exists:
            case IfExists.UPSERT:
                return True
            case IfExists.SKIP:
                self._report.skipped["exists"] += 1
            case IfExists.ERROR:
                self._refuse(
                    document, f"id {document.id[:80]!r} is in the index with other content (--if-exists error)"
                )
        return False

    def _reject(self, document: Document, where: str) -> None:
        if self._if_exists is IfExists.SKIP:
            self._report.skipped["exists"] += 1
            return
        reason = f"id {document.id[:80]!r} stands twice with different content, {where}; give each record its own id"
        self._refuse(document, reason)

    def _refuse(self, document: Document, reason: str) -> None:
        error = CorpusError(document.place.source, document.place.line, reason)
        if self._on_reject is None:
            raise error
        self._on_reject(error)

    def _groups(self, fresh: Sequence[_Pending]) -> Iterator[list[_Pending]]:
        """Yield documents in groups that are encoded together: all of them, unless documents are cut into passages.

        A document is committed with all its passages. Sorted by length, the last passages of most documents come last,
        so a group must be small for a commit every two seconds: as much as two seconds encoded lately.
        """
        if self._encoder.contract.chunk_tokens is None:
            yield self._cut(fresh, [(None,)] * len(fresh))
            return
        start = 0
        spans = self._encoder.passages([item.document.text for item in fresh])
        while start < len(fresh):
            stop, n_passages = start + 1, len(spans[start])
            while stop < len(fresh) and n_passages + len(spans[stop]) <= self._group_passages:
                n_passages += len(spans[stop])
                stop += 1
            began_s = time.monotonic()
            yield self._cut(fresh[start:stop], spans[start:stop])
            rate = n_passages / max(time.monotonic() - began_s, 1e-6)
            self._group_passages = int(min(max(rate * COMMIT_SECONDS, FIRST_GROUP_PASSAGES), COMMIT_TEXTS))
            start = stop

    def _cut(self, group: Sequence[_Pending], spans: Sequence[Sequence[tuple[int, int] | None]]) -> list[_Pending]:
        for item, cut in zip(group, spans, strict=True):
            item.spans = cut
            item.rows, item.vectors = [None] * len(cut), [self._store.no_vectors()] * len(cut)
            item.n_missing = len(cut)
        return list(group)

    def _encode(self, group: Sequence[_Pending]) -> Iterator[list[_Pending]]:
        """Yield documents as they get ready; a text that several passages share goes through the model once."""
        waiting: dict[str, list[tuple[_Pending, int]]] = {}
        for item in group:
            for passage in range(len(item.spans)):
                waiting.setdefault(item.text(passage), []).append((item, passage))
        if not waiting:
            return
        yield self._copy_twins(waiting)
        texts = list(waiting)
        try:
            for batch in self._encoder.encode_stream(texts):
                finished = []
                for i, position in enumerate(batch.positions):
                    sharing = waiting[texts[position]]
                    n_tokens, n_lost = int(batch.n_tokens[i]), int(batch.n_tokens_lost[i])
                    self._report.encoded += 1
                    self._report.tokens += n_tokens
                    self._report.duplicates += len(sharing) - 1
                    finished += self._put(sharing, batch.vectors[i], n_tokens, n_lost)
                yield finished
        except NonFiniteVectorError as error:
            document = waiting[texts[error.position]][0][0].document
            msg = f"{document.place.source}:{document.place.line}: document {document.id[:80]!r}: {error}"
            raise NonFiniteVectorError(msg, error.position) from error

    def _copy_twins(self, waiting: dict[str, list[tuple[_Pending, int]]]) -> list[_Pending]:
        """Take out of `waiting` the texts that the index has a vector of already; return what that makes ready."""
        with self._watch.stage("commit"):
            twins = list(self._store.twins(list(waiting)).items())
            vectors = self._store.vectors(np.array([twin.slot for _, twin in twins], np.int64))
        finished = []
        for (text, twin), vector in zip(twins, vectors, strict=True):
            sharing = waiting.pop(text)
            self._report.duplicates += len(sharing)
            finished += self._put(sharing, vector, twin.n_tokens, twin.n_tokens_lost)
        return finished

    def _put(
        self, sharing: Sequence[tuple[_Pending, int]], vector: NDArray[np.float32], n_tokens: int, n_lost: int
    ) -> list[_Pending]:
        for item, passage in sharing:
            item.put(passage, vector, n_tokens, n_lost)
        # A document with a repeated passage stands here more than once.
        ready = {id(item): item for item, _ in sharing if item.n_missing == 0}
        return list(ready.values())

    def _commit(self, changes: Changes, ready: list[_Pending]) -> None:
        # Slots follow the order of the source, so that a tie goes to the document that stands first.
        ready.sort(key=lambda item: item.position)
        for item in ready:
            rows = [row for row in item.rows if row is not None]
            n_lost = sum(row.n_tokens_lost for row in rows)
            self._report.truncated += n_lost > 0
            self._report.tokens_lost += n_lost
            changes.appended.append(NewDocument(item.document, item.source, rows, item.replaces))
        if changes:
            vectors = [vector for item in ready for vector in item.vectors]
            with self._watch.stage("commit"):
                self._store.commit(changes, np.stack(vectors) if vectors else self._store.no_vectors())
        self._last_commit_s = time.monotonic()


class SeenRows:
    """Which documents a run has met: a bit for each row that stood before it, and every row that came with it."""

    def __init__(self, last_row_id: int) -> None:
        self._last = last_row_id
        self._bits = bytearray(last_row_id // 8 + 1)

    def add(self, row_id: int) -> None:
        """Note a row."""
        if row_id <= self._last:
            self._bits[row_id >> 3] |= 1 << (row_id & 7)

    def __contains__(self, row_id: int) -> bool:
        return row_id > self._last or bool(self._bits[row_id >> 3] >> (row_id & 7) & 1)
