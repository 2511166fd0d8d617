"""The kinds of FAISS index that a generation can be."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """AUTO lets the size decide; FLAT compares with every vector and is exact."""

    AUTO = "auto"
    FLAT = "flat"

    @property
    def is_exact(self) -> bool:
        """Whether a search always finds the nearest vectors."""
        return self is Kind.FLAT


def choose_kind(wanted: Kind) -> Kind:
    """Return the kind to build for what was asked for."""
    return Kind.FLAT if wanted is Kind.AUTO else wanted
