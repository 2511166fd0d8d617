"""Reads an index and answers queries from it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.hits import Hit, Hits
    from search.searcher import Searcher

__all__ = ["Hit", "Hits", "Searcher"]

_HOMES = {"Hit": "search.hits", "Hits": "search.hits", "Searcher": "search.searcher"}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that the command line starts without numpy."""
    if name not in _HOMES:
        msg = f"module 'search' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name]), name)
