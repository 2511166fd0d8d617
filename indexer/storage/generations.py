"""Which FAISS files the database vouches for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from indexer.documents import JsonValue
from indexer.storage.database import stored_json


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRow:
    """A generation file as the database records it."""

    name: str
    vector_file: str
    kind: str
    n_slots: int
    n_bytes: int
    sha256: str
    details: Mapping[str, JsonValue]
    created_at: str

    def to_json(self) -> dict[str, JsonValue]:
        """Return the row as `index info --json` prints it."""
        return {**asdict(self), "details": dict(self.details)}


def read_generations(connection: sqlite3.Connection, path: Path) -> list[GenerationRow]:
    """Return the rows of the table generations in the database at `path`, newest first."""
    rows = connection.execute(
        """SELECT name, vector_file, kind, n_slots, n_bytes, sha256, details, created_at FROM generations
        ORDER BY created_at DESC, name"""
    )
    return [
        GenerationRow(
            name=name,
            vector_file=vector_file,
            kind=kind,
            n_slots=n_slots,
            n_bytes=n_bytes,
            sha256=sha256,
            details=stored_json(details, path),
            created_at=created_at,
        )
        for name, vector_file, kind, n_slots, n_bytes, sha256, details, created_at in rows
    ]


def insert_generation(connection: sqlite3.Connection, row: GenerationRow) -> None:
    """Add a row to the table generations; the caller holds the transaction."""
    connection.execute(
        "INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.name,
            row.vector_file,
            row.kind,
            row.n_slots,
            row.n_bytes,
            row.sha256,
            json.dumps(row.details),
            row.created_at,
        ),
    )
    keep_asked(connection, row.details.get("asked"))


def keep_asked(connection: sqlite3.Connection, asked: JsonValue | Mapping[str, JsonValue]) -> None:
    """Keep what was asked of a generation beside its row, which goes with the vector file that it belongs to."""
    if asked is not None:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('asked', ?)", (json.dumps(asked),))
