"""Deleting documents by id or by filter: SQL alone, no file is touched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.documents import as_id
from indexer.errors import UsageError
from indexer.filters import Where, compile_filter, parse_filter
from indexer.storage.lock import writer_lock
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class DeleteReport:
    """How many documents were deleted, how many ids the index did not have, and how many documents are left."""

    deleted: int
    unknown: int
    documents: int


def delete_documents(directory: Path, ids: Sequence[str | int], where: Where | None = None) -> DeleteReport:
    """Delete documents by id, and those that meet a filter; `Index.delete` says more."""
    if isinstance(ids, str):
        msg = f"ids is one text, {ids!r:.60}; give a list of ids"
        raise UsageError(msg)
    if not isinstance(ids, Iterable):
        msg = f"ids is {ids!r:.60}; give a list of ids"
        raise UsageError(msg)
    with closing(SnapshotReader(directory)) as reader, writer_lock(directory):
        rows = np.empty(0, np.int64)
        if where is not None:
            condition = compile_filter(parse_filter(where), reader.snapshot().fields)
            rows = reader.matching_rows(condition)
        with closing(Store.open(directory)) as store:
            wanted = list(dict.fromkeys(map(as_id, ids)))
            known = store.row_ids(wanted)
            rows = np.union1d(rows, np.asarray(known, np.int64))
            store.delete(rows)
            return DeleteReport(
                deleted=len(rows), unknown=len(wanted) - len(known), documents=store.counts()["documents"]
            )
