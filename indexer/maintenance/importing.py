"""Taking in an index directory from elsewhere: everything is checked, and no FAISS file in it is read."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from indexer.ann.index import require_faiss
from indexer.ann.kinds import Kind
from indexer.encoder.contract import Contract
from indexer.errors import IndexCorruptError
from indexer.maintenance.verify import verify_index
from indexer.progress import OnProgress, tell_nobody
from indexer.storage.lock import writer_lock
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store
from indexer.upkeep import asked_before, bring_generation_up_to_date


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What an imported index holds, how many FAISS files of it were thrown away, and lines for the user."""

    documents: int
    passages: int
    dropped_generations: int
    warnings: tuple[str, ...]


def import_index(directory: Path, on_progress: OnProgress = tell_nobody) -> ImportReport:
    """Check an index directory from elsewhere to the last byte, and build its FAISS file anew.

    A FAISS file is the one part that a checksum cannot vouch for: who wrote the file wrote the checksum too, and FAISS
    does not check all that it reads. So those in the directory are removed unread. Who controls the texts of an index
    controls its answers: that they are what they say is for you to know.

    Args:
        directory: of the index.
        on_progress: told after each step.

    Raises:
        IndexNotFoundError: there is no index at the path.
        IndexFormatError: this version cannot read it.
        IndexCorruptError: something in it is not as an index has it; nothing was changed.
        StorageError: the file system refused.
    """
    require_faiss()
    with closing(SnapshotReader(directory)) as reader:
        Contract.from_json(reader.setting("contract"))
    with writer_lock(directory):
        if problems := verify_index(directory, deep=True, generations=False, on_progress=on_progress):
            more = f" (and {len(problems) - 1} more: index verify --deep)" if len(problems) > 1 else ""
            msg = f"{directory} is not taken in: {problems[0]}{more}"
            raise IndexCorruptError(msg)
        with closing(Store.open(directory)) as store:
            asked = asked_before(store)
            if asked.named_kind is Kind.FACTORY:  # FAISS does not check all that it reads there either
                asked = replace(asked, kind=None)
            store.set_asked(asdict(asked))
            dropped = store.drop_generations([row.name for row in store.generations()])
            warnings = bring_generation_up_to_date(store, asked, on_progress)
            counts = store.counts()
    return ImportReport(
        documents=counts["documents"],
        passages=counts["passages"],
        dropped_generations=dropped,
        warnings=tuple(warnings),
    )
