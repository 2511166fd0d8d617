"""Writes an index and owns its format."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.ann.index import Effort
    from indexer.ann.tuning import Point, Tuning
    from indexer.api import Index, build_index
    from indexer.delete import DeleteReport
    from indexer.errors import IndexerError
    from indexer.features import HiddenState
    from indexer.maintenance.backup import BackupReport
    from indexer.maintenance.compact import CompactReport
    from indexer.maintenance.importing import ImportReport
    from indexer.maintenance.repair import RepairReport
    from indexer.progress import BuildReport, Phase, Progress
    from indexer.upkeep import RebuildReport

__all__ = [
    "BackupReport",
    "BuildReport",
    "CompactReport",
    "DeleteReport",
    "Effort",
    "HiddenState",
    "ImportReport",
    "Index",
    "IndexerError",
    "Phase",
    "Point",
    "Progress",
    "RebuildReport",
    "RepairReport",
    "Tuning",
    "build_index",
]

_HOMES = {
    "BackupReport": "indexer.maintenance.backup",
    "BuildReport": "indexer.progress",
    "CompactReport": "indexer.maintenance.compact",
    "DeleteReport": "indexer.delete",
    "Effort": "indexer.ann.index",
    "HiddenState": "indexer.features",
    "ImportReport": "indexer.maintenance.importing",
    "Index": "indexer.api",
    "IndexerError": "indexer.errors",
    "Phase": "indexer.progress",
    "Point": "indexer.ann.tuning",
    "Progress": "indexer.progress",
    "RebuildReport": "indexer.upkeep",
    "RepairReport": "indexer.maintenance.repair",
    "Tuning": "indexer.ann.tuning",
    "build_index": "indexer.api",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that the command line starts without numpy."""
    if name not in _HOMES:
        msg = f"module 'indexer' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)
