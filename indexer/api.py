"""The Python interface: `build_index` makes an index, `Index` changes one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from indexer.ann.kinds import AnnOptions
from indexer.ann.tuning import Tuning
from indexer.build import BuildOptions, run_build
from indexer.config import Dtype, EncoderOptions, IfExists, OnError, Pooling, ReadOptions, VectorDtype, choice
from indexer.corpus import Source
from indexer.delete import DeleteReport, delete_documents
from indexer.documents import JsonValue
from indexer.errors import UsageError
from indexer.filters import Where
from indexer.info import describe
from indexer.maintenance.backup import BackupReport, backup_index
from indexer.maintenance.compact import CompactReport, compact_index
from indexer.maintenance.importing import ImportReport, import_index
from indexer.maintenance.repair import RepairReport, repair_index
from indexer.maintenance.verify import verify_index
from indexer.progress import BuildReport, OnProgress, Progress, tell_nobody
from indexer.storage.snapshot import SnapshotReader
from indexer.upkeep import RebuildReport, rebuild_generation, tune_generation

logger = logging.getLogger(__name__)


def build_index(
    source: Source | Sequence[str | Path],
    out: str | Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    pooling: str | Pooling | None = None,
    max_length: int | None = None,
    query_prompt: str | None = None,
    doc_prompt: str | None = None,
    chunk_tokens: int | None = None,
    chunk_overlap: int | None = None,
    dtype: str = "auto",
    device: str | None = None,
    batch_tokens: int | None = None,
    vector_dtype: str | VectorDtype | None = None,
    text_field: str | Sequence[str] | None = None,
    id_field: str | None = None,
    columns: Sequence[str] | None = None,
    kind: str | None = None,
    target_recall: float | None = None,
    max_index_memory: int | str | None = None,
    index_field: str | Sequence[str] = (),
    on_error: str | OnError = OnError.STOP,
    max_errors: int | None = None,
    if_exists: str | IfExists = IfExists.UPSERT,
    source_name: str | None = None,
    prune: bool = False,
    yes: bool = False,
    on_progress: OnProgress | None = None,
) -> BuildReport:
    """Build an index, resume one that was cut off, or bring one up to date.

    Records that the index has already are found by id and content and are not encoded again. At least every 2,048 texts
    or 2 seconds what is encoded is committed, and can be searched at once.

    Args:
        source: a file, a directory, `hf:…`, `sqlite:…`, `-` (JSONL on stdin), several of these, any iterable of
            mappings, or a `datasets` data set.
        out: the index directory; new, or an index.
        model: hub id, directory or `package:NAME`; the default is that of the index, else BAAI/bge-small-en-v1.5.
        revision: branch, tag or commit on the hub.
        pooling: cls (position 0 of the last layer, the default), mean, last, or auto (what the model declares).
        max_length: tokens after which a text is cut, with the special ones; the default is the model's own.
        query_prompt: put before every query.
        doc_prompt: put before every text.
        chunk_tokens: cut documents into passages of so many tokens, with special tokens and the prompt; the default is
            to keep them whole.
        chunk_overlap: tokens that neighbouring passages share.
        dtype: auto, float32, float16 or bfloat16: what the model computes in.
        device: e.g. cuda:0, cuda:0,cuda:1 or cpu; the default is every GPU, else the CPU.
        batch_tokens: tokens of one forward pass, with padding.
        vector_dtype: f16 (default) or f32: how vectors are stored.
        text_field: the field or fields that make the text; several are joined by a space.
        id_field: the field that is the id; the default is the first of id, _id, doc_id, else a hash of the record.
        columns: names of the columns of CSV or TSV without a header.
        kind: auto, flat, ivf, hnsw, cagra, or a FAISS factory string, e.g. `IVF256,PQ32`; the default is what was asked
            for before, else auto.
        target_recall: recall@10 that the search parameters are tuned for; the default is the one asked for before, else
            0.95.
        max_index_memory: what the FAISS index may take, in bytes or as text, e.g. 4G; auto and ivf choose smaller codes
            to stay below. The default is what was asked for before, else no limit.
        index_field: metadata field or fields to give an SQL index, for filters that few documents meet.
        on_error: stop raises on the first record that cannot be used, skip lists it in `rejects.jsonl`.
        max_errors: with skip, how many may be rejected before the build stops.
        if_exists: upsert, skip or error: what becomes of a record whose id is there with other content.
        source_name: what the documents are recorded to come from; the default is the absolute path of a file or
            directory, the name of a data set of the hub, `-`, or for all iterables and data sets "python".
        prune: drop documents that were recorded to come from these sources, by name, and are there no longer.
        yes: let `prune` drop more than half of a source.
        on_progress: called after each commit; without it, warnings such as another pooling than the model declares are
            logged.

    Returns:
        Counts, seconds and bytes.

    Raises:
        CorpusError: a source or record that cannot be used.
        UsageError: an option that cannot be used, or that contradicts the index.
        ModelNotFoundError: the model cannot be had here.
        IndexLockedError: another writer holds the index.
        StorageError: the file system refused a write.
    """
    options = BuildOptions(
        encoder=EncoderOptions(
            model=model,
            revision=revision,
            pooling=None if pooling is None else choice(Pooling, pooling, "pooling"),
            max_length=max_length,
            query_prompt=query_prompt,
            doc_prompt=doc_prompt,
            chunk_tokens=chunk_tokens,
            chunk_overlap=chunk_overlap,
            dtype=choice(Dtype, dtype, "dtype"),
            device=device,
            batch_tokens=batch_tokens,
        ),
        read=_read_options(text_field, id_field, columns),
        vector_dtype=None if vector_dtype is None else choice(VectorDtype, vector_dtype, "vector-dtype"),
        ann=AnnOptions.of(kind, target_recall, max_index_memory),
        index_fields=(index_field,) if isinstance(index_field, str) else tuple(index_field),
        on_error=choice(OnError, on_error, "on-error"),
        max_errors=max_errors,
        if_exists=choice(IfExists, if_exists, "if-exists"),
        source_name=source_name,
        prune=prune,
        prune_most=yes,
    )
    return run_build(_as_sources(source), Path(out), options, on_progress=on_progress or _log_warnings)


def _log_warnings(progress: Progress) -> None:
    for warning in progress.warnings:
        logger.warning("%s", warning)


def _read_options(
    text_field: str | Sequence[str] | None, id_field: str | None, columns: Sequence[str] | None
) -> ReadOptions | None:
    fields = (text_field,) if isinstance(text_field, str) else tuple(text_field or ())
    if isinstance(columns, str):
        msg = f"columns is one text, {columns!r:.60}; give a list of names"
        raise UsageError(msg)
    if not (fields or id_field or columns):
        return None
    return ReadOptions(
        text_fields=fields or ReadOptions().text_fields,
        id_field=id_field,
        columns=tuple(columns) if columns else None,
    )


def _as_sources(source: Source | Sequence[str | Path]) -> list[Source]:
    """Return a list of sources for one source or several; a list of mappings is one source."""
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, (str, Path)) for item in source):
        return list(source)
    return [source]  # type: ignore[list-item]


class Index:
    """Changes an index that exists; each call takes the writer's lock for itself."""

    def __init__(self, directory: str | Path) -> None:
        """Name an index.

        Raises:
            IndexNotFoundError: there is no index at the path.
        """
        self.directory = Path(directory)
        SnapshotReader(self.directory).close()

    def add(
        self,
        source: Source | Sequence[str | Path],
        *,
        text_field: str | Sequence[str] | None = None,
        id_field: str | None = None,
        columns: Sequence[str] | None = None,
        model: str | None = None,
        device: str | None = None,
        on_error: str | OnError = OnError.STOP,
        max_errors: int | None = None,
        if_exists: str | IfExists = IfExists.UPSERT,
        source_name: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> BuildReport:
        """Add or update documents by id; arguments and errors are those of `build_index`.

        `model` is another place of the same weights.
        """
        options = BuildOptions(
            encoder=EncoderOptions(model=model, device=device),
            read=_read_options(text_field, id_field, columns),
            on_error=choice(OnError, on_error, "on-error"),
            max_errors=max_errors,
            if_exists=choice(IfExists, if_exists, "if-exists"),
            source_name=source_name,
            adds=True,
        )
        return run_build(_as_sources(source), self.directory, options, on_progress=on_progress or _log_warnings)

    def delete(self, ids: Sequence[str | int] = (), *, where: Where | None = None) -> DeleteReport:
        """Delete documents by id, and those that meet a filter; their bytes stay until the index is compacted.

        Many are deleted in several commits, oldest first: call it again when it was cut off.

        Returns:
            How many were deleted, and how many ids the index did not have.

        Raises:
            FilterError: the filter cannot be understood.
            IndexLockedError: another writer holds the index.
            UsageError: `ids` is one text, whose characters would be deleted as ids, or one of them is no id.
        """
        return delete_documents(self.directory, ids, where)

    @classmethod
    def take_in(cls, directory: str | Path, *, on_progress: OnProgress | None = None) -> tuple[Index, ImportReport]:
        """Check an index directory from elsewhere to the last byte, and build its FAISS file anew.

        FAISS files in it are removed unread: no checksum can vouch for them. Do this before anything else with it.

        Args:
            directory: of the index.
            on_progress: told after each step.

        Raises:
            IndexCorruptError: something in it is not as an index has it; nothing was changed.
            IndexFormatError: this version cannot read it.
            IndexNotFoundError: there is no index at the path.
            StorageError: the file system refused.
        """
        report = import_index(Path(directory), on_progress or tell_nobody)
        return cls(directory), report

    def repair(
        self,
        *,
        encode_damaged: bool = False,
        model: str | None = None,
        device: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> RepairReport:
        """Mend what is derived, and name what cannot be mended.

        SQL indexes, derived metadata, the catalogue of fields and the FAISS file are made again where they are wrong. A
        vector is never invented: with `encode_damaged` the texts of damaged vectors are encoded again, as the index
        prescribes, after its canary texts have been; without, they are named.

        Args:
            encode_damaged: encode the texts of damaged vectors again.
            model: another place of the same weights.
            device: where to encode, e.g. cuda:0, cuda:0,cuda:1 or cpu; the default is every GPU, else the CPU.
            on_progress: told after each step.

        Raises:
            EncoderError: the model cannot be used, or no longer gives the vectors that it gave.
            IndexLockedError: another writer holds the index.
            ModelNotFoundError: the model cannot be had here.
        """
        return repair_index(
            self.directory,
            encode_damaged=encode_damaged,
            model=model,
            device=device,
            on_progress=on_progress or tell_nobody,
        )

    def compact(self, *, on_progress: OnProgress | None = None) -> CompactReport:
        """Give back the space of deleted and replaced documents, and bring the FAISS file up to date.

        Readers go on meanwhile. The live vectors are copied, each checked, so there must be room for them.

        Args:
            on_progress: told after each step.

        Raises:
            IndexCorruptError: a vector is damaged; nothing was changed.
            IndexLockedError: another writer holds the index.
            StorageError: the file system refused; no document is lost.
        """
        return compact_index(self.directory, on_progress or tell_nobody)

    def backup(self, target: str | Path, *, on_progress: OnProgress | None = None) -> BackupReport:
        """Copy the index, as it is at one commit, to a directory that is new or empty, and check every byte.

        Others may write the index meanwhile. The copy is an index; move it back to restore it. A copy that was cut off
        is no index, and the next backup to the same place removes it.

        Args:
            target: where the copy goes.
            on_progress: told after each step.

        Raises:
            IndexCorruptError: the index is damaged.
            StorageError: the file system refused.
            UsageError: `target` holds something else.
            IndexLockedError: another backup goes there.
        """
        return backup_index(self.directory, Path(target), on_progress or tell_nobody)

    def rebuild(
        self,
        *,
        kind: str | None = None,
        target_recall: float | None = None,
        max_index_memory: int | str | None = None,
        device: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> RebuildReport:
        """Make another FAISS index of the vectors that are there; nothing is encoded.

        Args:
            kind: auto, flat, ivf, hnsw, cagra, or a FAISS factory string; the default is what was asked for before.
            target_recall: recall@10 in (0, 1] that an approximate index is tuned for; the default as for `kind`.
            max_index_memory: what the index may take, in bytes or as text, e.g. 4G; the default as for `kind`.
            device: whose GPU FAISS may use, e.g. cuda:1 or cpu; the default is the first GPU, if FAISS can use one.
            on_progress: told after each step.

        Raises:
            IndexLockedError: another writer holds the index.
            MissingExtraError: FAISS is not installed.
            StorageError: the file system refused; the index keeps what it had.
            UsageError: the index is empty, or FAISS cannot make what is asked for.
        """
        asked = AnnOptions.of(kind, target_recall, max_index_memory)
        return RebuildReport.of(*rebuild_generation(self.directory, asked, on_progress or tell_nobody, device))

    def tune(self, *, target_recall: float | None = None, on_progress: OnProgress | None = None) -> Tuning:
        """Measure recall against latency on vectors of the index, and keep the fastest setting that reaches the target.

        Args:
            target_recall: recall@10 in (0, 1]; the default is the one asked for before.
            on_progress: told after each step.

        Raises:
            IndexCorruptError: the FAISS index is damaged or missing; `rebuild` makes it anew.
            IndexLockedError: another writer holds the index.
            MissingExtraError: FAISS is not installed.
            UsageError: there is no FAISS index, or one that is exact.
        """
        return tune_generation(self.directory, target_recall, on_progress or tell_nobody)

    def info(self) -> dict[str, JsonValue]:
        """Return what is in the index, its encoder contract and its generations, as `index info --json` prints it."""
        return describe(self.directory)

    def verify(self, *, deep: bool = False, on_progress: OnProgress | None = None) -> list[str]:
        """Check the index and change nothing.

        Args:
            deep: check every checksum, every text and all that is derived.
            on_progress: told after each step.

        Returns:
            The problems, one line each; none when the index is sound.

        Raises:
            IndexFormatError: this version cannot read it.
            IndexNotFoundError: there is no index.
        """
        return verify_index(self.directory, deep=deep, on_progress=on_progress or tell_nobody)
