"""Documents into an index, window by window: compare with what is there, encode what is new, commit."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.allowed import are_set
from indexer.config import IfExists
from indexer.documents import Document, Place
from indexer.encoder.contract import Contract
from indexer.errors import CorpusError, NonFiniteVectorError
from indexer.pending import EncodedTexts, Group, Pending, Window
from indexer.progress import BuildReport, Stopwatch
from indexer.storage.changes import Changes, NewDocument
from indexer.storage.store import Store

COMMIT_TEXTS = 2_048
COMMIT_SECONDS = 2.0
# Two windows are held at a time; a character takes up to 4 bytes.
WINDOW_CHARACTERS = 1 << 24
FIRST_GROUP_PASSAGES = 64
# While it is cut into passages, a character takes some 30 bytes.
_CUT_CHARACTERS = 1 << 20


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


class Ingest:
    """Takes windows of documents and makes the index hold them.

    While the model works on one group of documents, the next one is read and compared and the last one is committed;
    groups are committed in the order in which they came.
    """

    def __init__(
        self,
        store: Store,
        encoder: TextEncoder,
        report: BuildReport,
        watch: Stopwatch,
        *,
        if_exists: IfExists,
        on_reject: Callable[[CorpusError], None] | None,
    ) -> None:
        """Prepare one run.

        Args:
            store: the index, open for writing.
            encoder: turns texts into vectors.
            report: is counted up.
            watch: the time of finding and committing goes there.
            if_exists: what becomes of a record whose id is in the index with other content.
            on_reject: gets records that cannot be used; None raises them.
        """
        self._store = store
        self._encoder = encoder
        self._report = report
        self._watch = watch
        self._if_exists = if_exists
        self._on_reject = on_reject
        self._sources: dict[str, int] = {}
        self._seen = SeenRows(store.last_row_id())
        self._emptied: dict[int, tuple[str, Place]] = {}
        self._last_commit_s = self._last_finish_s = time.monotonic()
        self._group_passages = FIRST_GROUP_PASSAGES
        self._running: deque[Group] = deque()
        self._waiting: dict[str, list[tuple[Pending, int]]] = {}

    def take(self, documents: Sequence[Document], source: str, on_commit: Callable[[float], None]) -> None:
        """Bring the index up to date with some documents of one source; `drain` waits for it.

        Args:
            documents: a window of them, at least one.
            source: its name.
            on_commit: called after each commit with the share of the window, in [0, 1], that is done.

        Raises:
            CorpusError: an id that cannot stand as it is; nothing of this window is in the index.
            NonFiniteVectorError: the model gave NaN or Inf for a text.
            StorageError: a commit was refused.
        """
        if source not in self._sources:
            self._sources[source] = self._store.source(source)
        window = Window(documents, on_commit)
        with self._watch.stage("commit"):
            fresh = self._compare(window, self._sources[source])
        window.n_done = len(documents) - len(fresh)
        for group in self._groups(window, fresh):
            self._running.append(group)
            if len(self._running) > 1:
                self._finish()

    def drain(self) -> None:
        """Commit all that was taken.

        Raises:
            NonFiniteVectorError: the model gave NaN or Inf for a text.
            StorageError: a commit was refused.
        """
        while self._running:
            self._finish()

    def note_emptied(self, places: Mapping[str, Place]) -> None:
        """Note records that have an id but no text, by id: what the index has under it is not what the source says."""
        for id_, place in places.items():
            for row in self._store.row_ids([id_]):
                self._emptied[row] = (id_, place)

    def drop_emptied(self) -> None:
        """Drop the documents of emptied records, at the end: another record of the run may have their text.

        More than half of all stay, with a warning: the wrong field may have been taken for the text.

        Raises:
            CorpusError: with `--if-exists error`, of the first that the index has.
            StorageError: a commit was refused.
        """
        rows = self.unseen_rows(np.sort(np.array(list(self._emptied), np.int64)))
        if not len(rows):
            return
        gone = [row for row in rows.tolist() if self._may_update(*self._emptied[row])]
        n_documents = self._store.counts()["documents"]
        if len(gone) > n_documents / 2:
            self._report.warnings.append(
                f"{len(gone):,} of {n_documents:,} documents have no text any more where they come from; they stay, "
                "because that is more than half: look at --text-field, or delete them"
            )
            return
        self._store.delete(np.array(gone, np.int64))
        self._report.deleted += len(gone)
        for row in rows.tolist():
            self._seen.add(row)

    def unseen_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those rows, of documents that stood in the index before, that no record of this run had."""
        return rows[~self._seen.has(rows)]

    def _compare(self, window: Window, source: int) -> list[Pending]:
        """Sort a window into unchanged, metadata to rewrite (into its changes) and texts to append (returned)."""
        fresh: list[Pending] = []
        open_windows = [group.window.first for group in self._running]
        found = self._store.find(window.documents)
        for position, (document, known) in enumerate(zip(window.documents, found, strict=True)):
            earlier = window.first.setdefault(document.id, document)
            # What is not committed yet is not in the store.
            earlier = next((first[document.id] for first in open_windows if document.id in first), earlier)
            if earlier is not document:
                if earlier.content_hash() == document.content_hash():
                    self._report.unchanged += 1
                else:
                    self._reject(document, f"first on line {earlier.place.line} of {earlier.place.source}")
            elif known is None:
                fresh.append(Pending(position, document, source))
            elif known.content_hash == document.content_hash():
                if known.source != source and known.row_id not in self._seen:  # it has moved there
                    window.changes.rewritten.append((known.row_id, document, source))
                self._seen.add(known.row_id)
                self._report.unchanged += 1
            elif known.row_id in self._seen:
                name, line = self._store.place_of(known.row_id)
                self._reject(document, f"first on line {line} of {name}")
            else:
                self._seen.add(known.row_id)
                if self._may_update(document.id, document.place):
                    self._report.updated += 1
                    if known.same_text:
                        window.changes.rewritten.append((known.row_id, document, source))
                    else:
                        fresh.append(Pending(position, document, source, known.row_id))
        return fresh

    def _may_update(self, id_: str, place: Place) -> bool:
        match self._if_exists:
            case IfExists.UPSERT:
                return True
            case IfExists.SKIP:
                self._report.skipped["exists"] += 1
            case IfExists.ERROR:
                self._refuse(place, f"id {id_[:80]!r} is in the index with other content (--if-exists error)")
        return False

    def _reject(self, document: Document, where: str) -> None:
        if self._if_exists is IfExists.SKIP:
            self._report.skipped["exists"] += 1
            return
        reason = f"id {document.id[:80]!r} stands twice with different content, {where}; give each record its own id"
        self._refuse(document.place, reason)

    def _warn(self, warning: str) -> None:
        if warning not in self._report.warnings:
            self._report.warnings.append(warning)

    def _refuse(self, place: Place, reason: str) -> None:
        error = CorpusError(place.source, place.line, reason)
        if self._on_reject is None:
            raise error
        self._on_reject(error)

    def _groups(self, window: Window, fresh: Sequence[Pending]) -> Iterator[Group]:
        """Start the model on documents in groups: all of them, unless documents are cut into passages.

        A document is committed with all its passages. Sorted by length, the last passages of most documents come last,
        so a group must be small for a commit every two seconds: as much as two seconds encoded lately.
        """
        if self._encoder.contract.chunk_tokens is None:
            yield self._start(window, fresh, [(None,)] * len(fresh))
            return
        items: list[Pending] = []
        spans: list[list[tuple[int, int]]] = []
        n_passages = 0
        for item, cut in self._cut(fresh):
            if items and n_passages + len(cut) > self._group_passages:
                yield self._start(window, items, spans)
                items, spans, n_passages = [], [], 0
            items.append(item)
            spans.append(cut)
            n_passages += len(cut)
        yield self._start(window, items, spans)

    def _cut(self, fresh: Sequence[Pending]) -> Iterator[tuple[Pending, list[tuple[int, int]]]]:
        """Yield documents with their passages, cut some at a time."""
        some: list[Pending] = []
        n_characters = 0
        for item in fresh:
            some.append(item)
            n_characters += len(item.document.text)
            if n_characters >= _CUT_CHARACTERS:
                yield from self._with_passages(some)
                some, n_characters = [], 0
        yield from self._with_passages(some)

    def _with_passages(self, items: Sequence[Pending]) -> Iterator[tuple[Pending, list[tuple[int, int]]]]:
        return zip(items, self._encoder.passages([item.document.text for item in items]), strict=True)

    def _start(
        self,
        window: Window,
        items: Sequence[Pending],
        spans: Sequence[Sequence[tuple[int, int] | None]],
    ) -> Group:
        """Copy the vectors that are there and hand all other texts to the model, each once."""
        fresh: dict[str, list[tuple[Pending, int]]] = {}
        for item, cut in zip(items, spans, strict=True):
            item.spans, item.done, item.n_missing = cut, [None] * len(cut), len(cut)
            for passage in range(len(cut)):
                text = item.text(passage)
                waiting = self._waiting if text in self._waiting else fresh
                waiting.setdefault(text, []).append((item, passage))
        self._copy_twins(fresh)
        self._waiting |= fresh
        texts = list(fresh)
        return Group(
            window=window,
            left={item.position: item for item in items},
            texts=texts,
            batches=self._encoder.encode_stream(texts) if texts else iter(()),
            n_passages=sum(map(len, spans)),
            began_s=time.monotonic(),
        )

    def _copy_twins(self, fresh: dict[str, list[tuple[Pending, int]]]) -> None:
        """Take out of `fresh` the texts that the index has a vector of already."""
        with self._watch.stage("commit"):
            twins = list(self._store.twins(list(fresh)).items())
            vectors = self._store.vectors(np.array([twin.slot for _, twin in twins], np.int64))
        for (text, twin), vector in zip(twins, vectors, strict=True):
            if np.isnan(vector[0]):
                self._warn(
                    f"a vector is damaged, its text was encoded anew; run: index verify {self._store.directory} --deep"
                )
                continue
            sharing = fresh.pop(text)
            self._report.duplicates += len(sharing)
            for item, passage in sharing:
                item.put(passage, vector, twin.n_tokens, twin.n_tokens_lost)

    def _finish(self) -> None:
        """Wait for the oldest group and commit it, in parts when it takes long."""
        group = self._running[0]
        n_put = 0  # since the last commit
        try:
            for batch in group.batches:
                self._put(group, batch)
                n_put += len(batch.positions)
                if n_put >= COMMIT_TEXTS or time.monotonic() - self._last_commit_s >= COMMIT_SECONDS:
                    self._commit(group)
                    n_put = 0
        except NonFiniteVectorError as error:
            document = self._waiting[group.texts[error.position]][0][0].document
            msg = f"{document.place.source}:{document.place.line}: document {document.id[:80]!r}: {error}"
            raise NonFiniteVectorError(msg, error.position) from error
        self._commit(group)
        now_s = time.monotonic()
        rate = group.n_passages / max(now_s - max(group.began_s, self._last_finish_s), 1e-6)
        self._last_commit_s = self._last_finish_s = now_s
        self._group_passages = int(min(max(rate * COMMIT_SECONDS, FIRST_GROUP_PASSAGES), COMMIT_TEXTS))
        self._running.popleft()

    def _put(self, group: Group, batch: EncodedTexts) -> None:
        for i, position in enumerate(batch.positions):
            sharing = self._waiting.pop(group.texts[position])
            n_tokens, n_lost = int(batch.n_tokens[i]), int(batch.n_tokens_lost[i])
            self._report.encoded += 1
            self._report.tokens += n_tokens
            self._report.duplicates += len(sharing) - 1
            for item, passage in sharing:
                item.put(passage, batch.vectors[i], n_tokens, n_lost)

    def _commit(self, group: Group) -> None:
        """Commit the documents of a group that are ready, and what else its window changes."""
        ready, window = group.take_ready(), group.window
        changes, window.changes = window.changes, Changes()
        vectors: list[NDArray[np.float32]] = []
        for item in ready:
            rows, item_vectors = zip(*filter(None, item.done), strict=True)
            vectors += item_vectors
            n_lost = sum(row.n_tokens_lost for row in rows)
            self._report.truncated += n_lost > 0
            self._report.tokens_lost += n_lost
            changes.appended.append(NewDocument(item.document, item.source, rows, item.replaces))
        if changes:
            with self._watch.stage("commit"):
                self._store.commit(changes, np.stack(vectors) if vectors else self._store.no_vectors())
            self._last_commit_s = time.monotonic()
        window.n_done += len(ready)
        window.tell()


@contextmanager
def heap_set_aside() -> Iterator[None]:
    """Keep the garbage collector from what is there already, a quarter of a million objects of the libraries.

    Documents come and go by the thousand, which makes it look through all of them again and again while every thread
    waits: 0.1 to 0.3 s each time.
    """
    if gc.get_freeze_count():  # somebody else's
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class SeenRows:
    """Which documents a run has met: a bit for each row that stood before it, and every row that came with it."""

    def __init__(self, last_row_id: int) -> None:
        self._last = last_row_id
        self._bits = bytearray(last_row_id // 8 + 1)

    def add(self, row_id: int) -> None:
        """Note a row."""
        if row_id <= self._last:
            self._bits[row_id >> 3] |= 1 << (row_id & 7)

    def has(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of some rows it has met."""
        is_new = rows > self._last
        return is_new | are_set(np.frombuffer(self._bits, np.uint8), np.where(is_new, 0, rows))

    def __contains__(self, row_id: int) -> bool:
        return row_id > self._last or bool(self._bits[row_id >> 3] >> (row_id & 7) & 1)
