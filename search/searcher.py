"""Searcher: opens an index, embeds queries as the index prescribes, and returns the nearest texts."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from indexer.documents import as_id
from indexer.encoder.contract import Contract
from indexer.encoder.query import QueryEncoder, open_query_encoder
from indexer.errors import IndexCorruptError, UsageError
from indexer.filters import Where, compile_filter, fields_of, parse_filter
from indexer.storage.files import mend
from indexer.storage.snapshot import SnapshotReader, StoredPassage
from search.filtered import nearest_filtered
from search.hits import Hit, Hits
from search.nearest import Nearest, nearest
from search.view import View

if TYPE_CHECKING:
    from indexer.card import Card

_TRIES = 5


class SearchOptions(TypedDict, total=False):
    """The keyword arguments that every search takes."""

    where: Where | None
    passages: bool
    exact: bool
    with_text: bool


@dataclass(frozen=True, slots=True)
class _Ask:
    """What is asked of the index beside the query vectors; `without` is a document that is left out."""

    k: int
    where: Where | None
    passages: bool
    exact: bool
    with_text: bool
    without: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, and take integers of numpy for what they are."""
        try:
            object.__setattr__(self, "k", operator.index(self.k))
        except TypeError as error:
            msg = f"k is {self.k!r}; it must be a whole number"
            raise UsageError(msg) from error
        if self.k < 1:
            msg = f"k is {self.k}; it must be at least 1"
            raise UsageError(msg)


class Searcher:
    """Answers queries from one index. Any number of threads may search at once; each search sees one commit."""

    def __init__(
        self, directory: Path, *, model: str | None = None, allow_download: bool = False, device: str | None = None
    ) -> None:
        self.directory = directory
        self._card = _open_card(device)
        self._reader = SnapshotReader(directory)
        self._model = model
        self._allow_download = allow_download
        self._encoder: QueryEncoder | None = None
        self._n_encoding = self._n_searching = 0
        self._lock = RLock()
        try:
            self.contract = Contract.from_json(self._reader.setting("contract"))
            self.text_fields: tuple[str, ...] = tuple(self._reader.setting("read")["text_fields"])
            self._view: View | None = self._open_view()
        except BaseException:
            self._reader.close()
            raise

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        allow_download: bool = False,
        device: str | None = None,
    ) -> Searcher:
        """Open an index for searching.

        Args:
            path: the index directory.
            model: another place of the same weights: hub id, directory or `package:NAME`.
            allow_download: whether the model may be fetched from the hub; it is looked for in the local cache alone
                otherwise.
            device: a GPU, e.g. cuda:1, that compares with every vector, exactly; those it has no room for go through
                the FAISS index, on the GPU too where FAISS can. The default is the CPU, which also encodes the queries.

        Raises:
            IndexNotFoundError: there is no index at the path.
            IndexFormatError: this version cannot read it.
            IndexCorruptError: its data is damaged.
            UsageError: there is no such device.
        """
        return cls(Path(path), model=model, allow_download=allow_download, device=device)

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files of the index and let go of the model, each once no thread uses it any more."""
        with self._lock:
            if self._view is not None:
                self._view.close()
                self._view = None
            self._let_go_of_model()
            self._card = None
            self._let_go_of_database()

    @property
    def is_complete(self) -> bool:
        """Whether the build of the index has read its source to the end."""
        return self._current().snapshot.is_complete

    def __len__(self) -> int:
        with self._lock:
            self._current()
            return self._reader.totals().documents

    def refresh(self) -> bool:
        """Go to the newest commit of the index, and return whether that is a newer one.

        Each search does this by itself; call it to pay for it at a time of your choice.
        """
        with self._lock:
            old = self._current()
            if old.snapshot.seq == self._reader.seq():
                return False
            self._view = self._open_view()
            self._view.take_generation(old)
            old.close()
            return True

    def search(
        self,
        text: str,
        k: int = 10,
        *,
        where: Where | None = None,
        passages: bool = False,
        exact: bool = False,
        with_text: bool = True,
    ) -> Hits:
        """Return the documents nearest to a text; `search_batch` says more."""
        return self.search_batch([text], k, where=where, passages=passages, exact=exact, with_text=with_text)[0]

    def search_batch(
        self,
        texts: Iterable[str],
        k: int = 10,
        *,
        where: Where | None = None,
        passages: bool = False,
        exact: bool = False,
        with_text: bool = True,
    ) -> list[Hits]:
        """Return for each text the k nearest documents, fewer only when fewer meet the filter.

        In an index that cuts documents into passages a document is as near as its nearest passage, which is the text of
        the hit.

        Args:
            texts: queries, of any iterable; the query prompt of the index is put before each.
            k: how many documents.
            where: metadata filter, a mapping or its JSON, or `field=value`, or a list of these that must all be met.
            passages: return the k nearest passages instead, however many are of one document.
            exact: compare with every vector, even where an index would be faster.
            with_text: whether hits carry their text.

        Raises:
            UsageError: a query that is empty or no text, or k below 1.
            FilterError: the filter cannot be understood, or names a field that no document has.
            ModelNotFoundError: the model of the index cannot be had here.
        """
        ask = _Ask(k, where, passages, exact, with_text)
        if isinstance(texts, str):
            msg = f"texts is one text, {texts!r:.60}; give a list of them, or call search"
            raise UsageError(msg)
        texts = list(texts)
        for position, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                given = "empty" if isinstance(text, str) else f"a value of type {type(text).__name__}"
                msg = f"query {position + 1} of {len(texts)} is {given}; give some text"
                raise UsageError(msg)
        if not texts:
            return []
        with self._query_encoder() as encoder:
            queries = encoder.encode_queries(texts)
        return self._search(queries, ask)

    def more_like(
        self,
        id_: str | int,
        k: int = 10,
        *,
        where: Where | None = None,
        passages: bool = False,
        exact: bool = False,
        with_text: bool = True,
    ) -> Hits:
        """Return the documents nearest to one of the index, without itself; no model is needed.

        A document of several passages stands for the mean of their vectors.

        Raises:
            UsageError: the index does not have the id.
        """
        id_ = as_id(id_)
        with self._newest() as view:  # slots and vectors of one commit
            slots = self._reader.document_slots(id_)
            if not slots:
                msg = f"the index has no document with id {id_!r}"
                raise UsageError(msg)
            query = view.vectors.rows(np.array(slots, np.int64)).mean(axis=0, keepdims=True)
        query /= np.linalg.norm(query)
        return self._search(query, _Ask(k, where, passages, exact, with_text, id_))[0]

    def types_of(self, where: Where) -> dict[str, list[str]]:
        """Return the JSON types of the fields that a filter asks about, as the documents hold them."""
        with self._newest() as view:
            fields = view.snapshot.fields
            wanted = parse_filter(where)
            compile_filter(wanted, fields)  # refuses fields that no document has
            return {name: sorted(fields[name].types) for name in sorted(fields_of(wanted))}

    def known_ids(self, ids: Iterable[str | int], where: Where | None = None) -> set[str]:
        """Return those ids that the index has, with a filter those whose document meets it."""
        with self._newest() as view:
            condition = None if where is None else compile_filter(parse_filter(where), view.snapshot.fields)
            return self._reader.known_ids(sorted(map(as_id, ids)), condition)

    @contextmanager
    def _newest(self) -> Iterator[View]:
        """Hold the newest commit for a block."""
        with self._lock:
            self._current()
            with self._reader.transaction():
                self.refresh()
                yield self._current()

    @contextmanager
    def _held(self) -> Iterator[View]:
        """Give the view for a block, in which its files stay open."""
        with self._lock:
            view = self._current()
            view.take()
            self._n_searching += 1
        try:
            yield view
        finally:
            view.let_go()
            with self._lock:
                self._n_searching -= 1
                self._let_go_of_database()

    @contextmanager
    def _query_encoder(self) -> Iterator[QueryEncoder]:
        """Give the encoder for a block, in which it is not closed."""
        with self._lock:
            self._current()
            if self._encoder is None:
                self._encoder = open_query_encoder(
                    self.contract, model=self._model, allow_download=self._allow_download
                )
            encoder = self._encoder
            self._n_encoding += 1
        try:
            yield encoder
        finally:
            with self._lock:
                self._n_encoding -= 1
                self._let_go_of_model()

    def _let_go_of_database(self) -> None:
        if self._view is None and not self._n_searching:
            self._reader.close()

    def _let_go_of_model(self) -> None:
        if self._view is None and self._encoder is not None and not self._n_encoding:
            self._encoder.close()
            self._encoder = None

    def _current(self) -> View:
        if self._view is None:
            msg = "the searcher is closed"
            raise UsageError(msg)
        return self._view

    def _open_view(self) -> View:
        for _ in range(_TRIES):
            try:
                return View.open(self.directory, self._reader.snapshot(), self._card)
            except FileNotFoundError:
                continue  # a writer replaced the file between the snapshot and the opening
        msg = f"{self.directory}: the vector file that the database names is missing; {mend(self.directory)}"
        raise IndexCorruptError(msg)

    def _search(self, queries: NDArray[np.float32], ask: _Ask) -> list[Hits]:
        """Search outside of any transaction, and again if a commit came in between; at last within one."""
        turn = self._lock if self._card is not None else nullcontext()  # a GPU does one thing at a time
        with turn:
            for _ in range(_TRIES):
                with self._held() as view:
                    hits = self._try_search(view, queries, ask)
                if hits is not None:
                    return hits
                self.refresh()
        with self._newest() as view:
            hits = self._try_search(view, queries, ask)
        if hits is None:
            msg = f"{self.directory}: the files of the index changed under a read transaction; run again"
            raise IndexCorruptError(msg)
        return hits

    def _try_search(self, view: View, queries: NDArray[np.float32], ask: _Ask) -> list[Hits] | None:
        """Return the hits, None when a commit made them stale."""
        n_wanted = ask.k + (ask.without is not None)
        while True:
            try:
                found = _nearest(view, self._reader, queries, n_wanted, ask)
            except FileNotFoundError as error:
                if self._reader.seq() != view.snapshot.seq:
                    return None
                view.do_without_generation(str(error))
                continue
            if found is None:
                return None
            with self._reader.transaction() as seq:
                if seq != view.snapshot.seq:
                    return None
                wanted_slots = {int(slot) for row in found.slots for slot in row}
                passages = self._reader.passages(sorted(wanted_slots))
            if missing := wanted_slots - passages.keys():
                msg = f"{self.directory} is damaged: slot {min(missing)} has no document; {mend(self.directory)}"
                raise IndexCorruptError(msg)
            hits = [_to_hits(ask, found, passages, query) for query in range(len(queries))]
            # Passages of one document may have filled the places of others.
            if all(len(row) == ask.k or len(slots) < n_wanted for row, slots in zip(hits, found.slots, strict=True)):
                return hits
            n_wanted *= 4


def _nearest(view: View, reader: SnapshotReader, queries: NDArray[np.float32], k: int, ask: _Ask) -> Nearest | None:
    """Return the k nearest slots that are wanted, None when a commit came in between."""
    if ask.where is None:
        return nearest(view, queries, k, view.live(), exact=ask.exact)
    return nearest_filtered(view, reader, queries, k, parse_filter(ask.where), exact=ask.exact)


def _open_card(device: str | None) -> Card | None:
    if device is None or device == "cpu":
        return None
    from indexer.card import Card

    return Card(device)


def _to_hits(ask: _Ask, found: Nearest, stored: Mapping[int, StoredPassage], query: int) -> Hits:
    hits: list[Hit] = []
    documents: set[str] = set()
    for score, slot in zip(found.scores[query], found.slots[query], strict=True):
        passage = stored[int(slot)]
        if len(hits) == ask.k:
            break
        if passage.id != ask.without and (ask.passages or passage.id not in documents):
            documents.add(passage.id)
            hits.append(_to_hit(len(hits) + 1, float(score), passage, ask.with_text))
    return Hits(hits, plan=found.plan, exact=found.exact)


def _to_hit(rank: int, score: float, passage: StoredPassage, with_text: bool) -> Hit:
    span = None if passage.start is None or passage.end is None else (passage.start, passage.end)
    text = passage.text if span is None else passage.text[span[0] : span[1]]
    return Hit(rank, passage.id, score, text if with_text else None, passage.metadata, span)
