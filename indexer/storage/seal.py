"""The seal: a checksum of the settings that no other checksum covers and that every answer depends on. Stdlib only."""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path

from indexer.errors import IndexCorruptError

_KEY = "seal"
_SEALED = ("complete", "contract", "read", "recorded")


def seal(connection: sqlite3.Connection) -> None:
    """Store the checksum of the settings as they are now; the caller holds the transaction that changes them."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_KEY, _checksum(connection)))


def check_seal(connection: sqlite3.Connection, path: Path) -> None:
    """Check the settings against their checksum; an index from before there was one passes.

    Raises:
        IndexCorruptError: a setting or a canary is not what was stored.
    """
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_KEY,)).fetchone()
    if row is not None and row[0] != _checksum(connection):
        msg = f"{path} is damaged: its settings are not those that were stored; restore a backup"
        raise IndexCorruptError(msg)


def _checksum(connection: sqlite3.Connection) -> int:
    """Return the CRC-32 of the sealed settings in the order of their keys, then the canaries, each part NUL-ended."""
    settings = connection.execute(
        f"SELECT key, value FROM meta WHERE key IN ({', '.join('?' * len(_SEALED))}) ORDER BY key", _SEALED
    )
    canaries = connection.execute("SELECT text, vector FROM canaries ORDER BY position")
    crc = 0
    for row in (*settings, *canaries):
        for part in row:
            crc = zlib.crc32((part if isinstance(part, bytes) else str(part).encode()) + b"\0", crc)
    return crc
