"""The only place that knows the order of work: from sources to a searchable index."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from indexer.ann.index import require_faiss
from indexer.ann.kinds import AnnOptions
from indexer.config import EncoderOptions, IfExists, OnError, ReadOptions, VectorDtype, whole_number
from indexer.corpus import Source, check_sources, read_corpus, source_name
from indexer.documents import Document, Place, is_storable
from indexer.errors import ContractError, CorpusError, IndexNotFoundError, UsageError
from indexer.ingest import COMMIT_SECONDS, COMMIT_TEXTS, WINDOW_CHARACTERS, Ingest, TextEncoder, heap_set_aside
from indexer.opening import (
    REJECTS,
    TextEncoderLoader,
    check_target,
    discard_empty,
    load_bulk_encoder,
    open_store,
    read_recorded,
    settle,
)
from indexer.progress import BuildReport, OnProgress, Phase, Progress, Stopwatch, tell_nobody
from indexer.storage.files import directory_bytes, make_directory, storage_errors
from indexer.storage.lock import writer_lock
from indexer.storage.store import Store
from indexer.upkeep import bring_generation_up_to_date, check_recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How a build goes about its work; None leaves a value to the index, then to the default.

    `max_errors` counts rejected records, with `on_error` skip; None is no limit. `source_name` is what documents are
    recorded to come from, for `prune`; the default is the path, or what else the source is given as. `prune_most` lets
    `prune` drop more than half of a source. `adds` is for sources that add to an index that exists; they may be read in
    their own way.
    """

    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    read: ReadOptions | None = None
    vector_dtype: VectorDtype | None = None
    ann: AnnOptions = field(default_factory=AnnOptions)
    index_fields: tuple[str, ...] = ()
    on_error: OnError = OnError.STOP
    max_errors: int | None = None
    if_exists: IfExists = IfExists.UPSERT
    source_name: str | None = None
    prune: bool = False
    prune_most: bool = False
    adds: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.max_errors is not None:
            whole_number(self.max_errors, "max-errors", 0)
        name = self.source_name
        if name is not None and not (isinstance(name, str) and name.strip() and is_storable(name)):
            msg = f"--source-name is {name!r:.60}; give a name that can be read"
            raise UsageError(msg)


def run_build(
    sources: Sequence[Source],
    directory: Path,
    options: BuildOptions,
    *,
    load_encoder: TextEncoderLoader | None = None,
    on_progress: OnProgress | None = None,
) -> BuildReport:
    """Build an index, resume one that was cut off, or bring one up to date; `build_index` says more.

    Args:
        sources: what to read, in this order.
        directory: of the index.
        options: how.
        load_encoder: makes the encoder; the default loads the model with torch.
        on_progress: called after each commit.
    """
    watch, report = Stopwatch(), BuildReport()
    tell = on_progress or tell_nobody
    check_sources(sources)
    require_faiss()
    recorded = read_recorded(directory)
    if recorded is None and options.adds:
        msg = f"{directory} is not an index; build one with: index build SOURCE --out {directory}"
        raise IndexNotFoundError(msg)
    if recorded is None:
        check_target(directory)
    read = settle(options.read, options.vector_dtype, recorded, adds=options.adds)
    if recorded is not None:
        with writer_lock(directory):  # says at once that another writer is at work, not after the model is loaded
            pass
    tell(Progress(phase=Phase.LOAD))
    load = load_encoder or load_bulk_encoder
    with watch.stage("load"):
        try:
            encoder = load(options.encoder, contract=recorded.contract if recorded else None)
        except ContractError:
            if recorded is None or options.adds or not discard_empty(directory):
                raise
            recorded = None
            encoder = load(options.encoder, contract=None)
    check_recipe(options.ann, encoder.contract.dim, options.encoder.device)
    report.warnings += encoder.warnings
    tell(Progress(phase=Phase.ENCODE, warnings=tuple(encoder.warnings)))
    if recorded is None:
        with storage_errors(directory):
            make_directory(directory)
    with (
        closing(encoder),
        writer_lock(directory),
        closing(open_store(directory, encoder, options.vector_dtype or VectorDtype.F16, read, recorded)) as store,
        heap_set_aside(),
    ):
        run = _Run(store, encoder, options, read, report, watch, tell)
        run.read_all(sources)
        refusal = run.prune(sources) if options.prune else ""
        tell(Progress(phase=Phase.INDEX, n_documents=run.n_documents))
        with watch.stage("index"):
            report.warnings += _index_fields(store, options.index_fields)
            report.warnings += bring_generation_up_to_date(store, options.ann, tell, options.encoder.device)
        if refusal:
            raise UsageError(refusal)
        counts = store.counts()
    report.documents, report.passages = counts["documents"], counts["passages"]
    stages = ("load", "read", "tokenize", "encode", "commit", "index")
    watch.seconds.update(encoder.seconds)
    report.seconds = {name: watch.seconds[name] for name in stages} | {"total": watch.total_s()}
    report.bytes = directory_bytes(directory)
    tell(Progress(phase=Phase.DONE, n_documents=run.n_documents, n_encoded=report.encoded, fraction=1.0))
    return report


def _index_fields(store: Store, names: Sequence[str]) -> list[str]:
    unknown = store.index_fields(names)
    return [f"--index-field {name}: no scalar field of this name has a column; it was not indexed" for name in unknown]


class _Run:
    """One pass over the sources."""

    def __init__(
        self,
        store: Store,
        encoder: TextEncoder,
        options: BuildOptions,
        read: ReadOptions,
        report: BuildReport,
        watch: Stopwatch,
        tell: OnProgress,
    ) -> None:
        self._store = store
        self._options = options
        self._read = read
        self._report = report
        self._watch = watch
        self._tell = tell
        self._emptied: dict[str, Place] = {}
        self.n_documents = 0
        skips = options.on_error is OnError.SKIP
        self._ingest = Ingest(
            store,
            encoder,
            report,
            watch,
            if_exists=options.if_exists,
            on_reject=self._on_reject if skips else None,
        )
        self._on_reject_or_none = self._on_reject if skips else None
        with storage_errors(store.directory / REJECTS):
            (store.directory / REJECTS).unlink(missing_ok=True)

    def read_all(self, sources: Sequence[Source]) -> None:
        """Read the sources to their end; the index is marked incomplete until then."""
        streams = [
            read_corpus(
                [source],
                self._read,
                on_skip=self._on_skip,
                on_reject=self._on_reject_or_none,
                columns_fit_all=self._options.read is not None,
            )
            for source in sources
        ]
        if not self._options.adds:
            self._store.set_complete(False)
        try:
            for number, (source, documents) in enumerate(zip(sources, streams, strict=True)):
                with closing(documents):
                    self._take_all(documents, self._name(source), (number / len(sources), 1 / len(sources)))
            self._note_emptied()
            self._ingest.drop_emptied()
        except CorpusError:
            self._ingest.drain()  # what was read before stands
            raise
        if not self._options.adds:
            self._store.set_complete(True)

    def prune(self, sources: Sequence[Source]) -> str:
        """Drop what the sources had before this run and have no longer, nothing where a record was rejected.

        A rejected record may be of a document that has moved from one source to another.

        Returns:
            Why it is refused for one of them, and those after it; empty when it is not.
        """
        if self._report.rejected:
            self._report.warnings.append(f"nothing was pruned, because {self._report.rejected} records were rejected")
            return ""
        for name in dict.fromkeys(map(self._name, sources)):
            rows = self._store.rows_of_source(name)
            gone = self._ingest.unseen_rows(rows)
            if len(gone) > len(rows) / 2 and not self._options.prune_most:
                return f"--prune would drop {len(gone)} of {len(rows)} documents of {name}; add --yes if that is meant"
            self._store.delete(gone)
            self._report.deleted += len(gone)
        return ""

    def _take_all(self, documents: Iterator[Document], source: str, part: tuple[float, float]) -> None:
        """Index a source to its end; `part` is where it begins in all sources, and its share of them."""
        end: float | None = part[0]
        for window, is_full in self._windows(documents):
            start, place = end, window[-1].place.fraction
            end = None if place is None else part[0] + place * part[1]
            self._ingest.take(window, source, self._teller(len(window), start, end))
            self.n_documents += len(window)
            if not is_full:  # a source that is slow, or at its end
                self._ingest.drain()
        self._ingest.drain()

    def _windows(self, documents: Iterator[Document]) -> Iterator[tuple[list[Document], bool]]:
        """Yield windows, each with whether it is full; one that is not was due, or is the last."""
        while True:
            window: list[Document] = []
            n_characters, is_full = 0, False
            deadline_s = time.monotonic() + COMMIT_SECONDS
            with self._watch.stage("read"):
                for document in documents:
                    window.append(document)
                    n_characters += len(document.text)
                    is_full = len(window) >= COMMIT_TEXTS or n_characters >= WINDOW_CHARACTERS
                    if is_full or time.monotonic() >= deadline_s:
                        break
            if not window:
                return
            yield window, is_full

    def _teller(self, size: int, start: float | None, end: float | None) -> Callable[[float], None]:
        """Return what tells how far a window of so many documents is, which covers [start, end] of the sources."""
        n_before = self.n_documents

        def on_commit(share: float) -> None:
            fraction = None if end is None else (start or 0.0) + (end - (start or 0.0)) * share
            self._tell(
                Progress(
                    phase=Phase.ENCODE,
                    n_documents=n_before + round(share * size),
                    n_encoded=self._report.encoded,
                    n_tokens=self._report.tokens,
                    fraction=fraction,
                )
            )

        return on_commit

    def _name(self, source: Source) -> str:
        return self._options.source_name or source_name(source)

    def _on_skip(self, place: Place, reason: str, id_: str | None) -> None:
        self._report.skipped[reason] += 1
        if id_ is not None:
            self._emptied[id_] = place
            if len(self._emptied) >= COMMIT_TEXTS:
                self._note_emptied()

    def _note_emptied(self) -> None:
        emptied, self._emptied = self._emptied, {}
        self._ingest.note_emptied(emptied)

    def _on_reject(self, error: CorpusError) -> None:
        self._report.rejected += 1
        path = self._store.directory / REJECTS
        record = {"source": error.source, "line": error.line, "reason": error.reason}
        with storage_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if self._options.max_errors is not None and self._report.rejected > self._options.max_errors:
            reason = f"{error.reason}; this is one more than --max-errors {self._options.max_errors}"
            raise CorpusError(error.source, error.line, reason) from error
