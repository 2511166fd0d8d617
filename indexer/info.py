"""What an index says of itself."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from indexer.documents import JsonValue
from indexer.storage.files import directory_bytes
from indexer.storage.snapshot import SnapshotReader


def describe(directory: Path) -> dict[str, JsonValue]:
    """Return what is in an index, its encoder contract and its generations, as `index info --json` prints it.

    Raises:
        IndexNotFoundError: there is no index at the path.
        IndexFormatError: this version cannot read it.
    """
    with closing(SnapshotReader(directory)) as reader, reader.transaction():
        snapshot = reader.snapshot()
        generation, totals = snapshot.generation, reader.totals()
        return {
            "documents": totals.documents,
            "passages": snapshot.n_passages,
            "complete": snapshot.is_complete,
            "dim": snapshot.layout.dim,
            "model": reader.setting("contract"),
            "built_with": reader.setting("recorded"),
            "read": reader.setting("read"),
            "vector_file": snapshot.vector_file,
            "vector_dtype": snapshot.layout.dtype.value,
            "generations": [row.to_json() for row in snapshot.generations],
            "tail": snapshot.n_rows - (generation.n_slots if generation else 0),
            "dead": len(snapshot.dead),
            "fields": {name: list(types) for name, types in reader.field_types().items()},
            "truncation": {
                "tokens": totals.tokens,
                "tokens_lost": totals.tokens_lost,
                "truncated": totals.truncated,
            },
            "bytes": directory_bytes(directory),
        }


def generation_text(generation: dict[str, Any]) -> str:
    """Return a generation, as `info` gives it, in one line: what it is, and what was measured of it."""
    details = generation["details"]
    text = f"{generation['kind']} over {generation['n_slots']:,} slots, {generation['created_at']}"
    text += f", {generation['n_bytes'] / 1e6:,.1f} MB"
    if "factory" in details:
        text += f", {details['factory']}"
    match details:
        case {
            "search": {"recall@10": float() as recall, "standard_error": float() as error, "latency_ms": float() as ms},
            "target_recall": float() as target,
            "checked_at": str() as checked_at,
        }:
            missed = ", missed" if details.get("reached") is False else ""
            text += (
                f"; recall@10 {recall:.3f} ± {error:.3f} (target {target}{missed}), {ms:.2f} ms a query, {checked_at}"
            )
    return text
