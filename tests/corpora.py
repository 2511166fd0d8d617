"""Reading of a corpus as tests of it want it."""

from __future__ import annotations

from indexer.config import ReadOptions
from indexer.corpus import read_corpus
from indexer.documents import Document


def read(source: object, **options: object) -> list[Document]:
    """Return all documents of one source."""
    return list(read_corpus([source], ReadOptions(**options)))
