"""What an index says of itself."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from indexer.documents import JsonValue
from indexer.snapshot import SnapshotReader


def describe(directory: Path) -> dict[str, JsonValue]:
    """Return what is in an index, its encoder contract and its generations, as `index info --json` prints it.

    Raises:
        IndexNotFoundError: there is no index at the path.
        IndexFormatError: this version cannot read it.
    """
    with closing(SnapshotReader(directory)) as reader, reader.transaction():
        snapshot = reader.snapshot()
        generation = snapshot.generation
        return {
            "documents": snapshot.n_documents,
            "passages": snapshot.n_passages,
            "complete": snapshot.is_complete,
            "dim": snapshot.layout.dim,
            "model": reader.setting("contract"),
            "built_with": reader.setting("recorded"),
            "read": reader.setting("read"),
            "vector_file": snapshot.vector_file,
            "vector_dtype": snapshot.layout.dtype.value,
            "generations": [{**asdict(row), "details": dict(row.details)} for row in snapshot.generations],
            "tail": snapshot.n_rows - (generation.n_slots if generation else 0),
            "dead": len(snapshot.dead),
            "fields": {name: list(types) for name, types in reader.field_types().items()},
            "truncation": dict(reader.truncation()),
            "bytes": sum(path.stat().st_size for path in directory.iterdir() if path.is_file()),
        }
