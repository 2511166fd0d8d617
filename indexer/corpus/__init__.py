"""Turns sources into documents, streaming. Home of `datasets` and `pyarrow`, which load when a source needs them."""

from indexer.corpus.reading import check_sources, read_corpus
from indexer.corpus.sources import Source, source_name

__all__ = ["Source", "check_sources", "read_corpus", "source_name"]
