"""Reading: the parts of all sources become one stream of documents."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import accumulate
from typing import TypeAlias

from indexer.config import ReadOptions
from indexer.corpus.parts import BadRecordError, Part, stopper
from indexer.corpus.records import DocumentMaker
from indexer.corpus.sources import Source, check_source, source_parts
from indexer.documents import Document, Place
from indexer.errors import CorpusError, UsageError

EMPTY_TEXT = "empty_text"
OnSkip: TypeAlias = Callable[[Place, str, str | None], None]
"""Told of a record that is left out: its place, the reason, and the id that it has of its own, if any."""


def check_sources(sources: Sequence[Source]) -> None:
    """Check sources before anything slow is done; no record is read.

    Args:
        sources: files, directories, "-", "hf:…", "sqlite:…", iterables of mappings, data sets.

    Raises:
        CorpusError: a source is missing, unreadable, empty or of a kind that is not supported.
        UsageError: an object is no source.
    """
    for source in sources:
        check_source(source)


def read_corpus(
    sources: Sequence[Source],
    options: ReadOptions,
    *,
    on_skip: OnSkip | None = None,
    on_reject: Callable[[CorpusError], None] | None = None,
    columns_fit_all: bool = True,
) -> Generator[Document]:
    """Read documents one by one, in memory that does not grow with the corpus.

    Args:
        sources: read one after the other.
        options: which fields are text and id, and the columns of delimited text without a header.
        on_skip: told of every record whose text is empty, white space or null, with the reason "empty_text".
        on_reject: gets the error of every record that cannot be used, and reading goes on with the next.
        columns_fit_all: refuse columns for a source that has none to name; they may come from an index and not from
            who names the source.

    Returns:
        The documents in the order of the sources; ids may repeat. Close it to close the files before its end.

    Raises:
        CorpusError: a source cannot be read (at once or on the way); without `on_reject` also the first bad record.
        UsageError: an object is no source, or columns are given for a source that is not delimited text.
    """
    parts = [part for source in sources for part in source_parts(source, options)]
    if options.columns is not None and columns_fit_all:
        for part in parts:
            if not part.delimited:
                msg = f"--columns names the columns of .csv and .tsv files; {part.name} is another kind of source"
                raise UsageError(msg)
    return _documents(parts, DocumentMaker(options), on_skip, on_reject)


def _documents(
    parts: Sequence[Part],
    maker: DocumentMaker,
    on_skip: OnSkip | None,
    on_reject: Callable[[CorpusError], None] | None,
) -> Generator[Document]:
    sizes = _sizes(parts)
    total = sum(sizes)
    for part, before in zip(parts, accumulate(sizes, initial=0), strict=False):
        name = part.name
        reject = stopper(name, on_reject)
        with closing(part.read(reject)) as records:
            for line, record, position in records:
                place = Place(name, line, min(1.0, (before + position) / total) if total else None)
                try:
                    document = maker.document(record, place)
                except BadRecordError as error:
                    reject(line, str(error))
                    continue
                if document is not None:
                    yield document
                elif on_skip is not None:
                    on_skip(place, EMPTY_TEXT, maker.id_of(record))


def _sizes(parts: Sequence[Part]) -> list[int]:
    """Return the sizes of the parts, all 0 when one is unknown or bytes would be added to records."""
    known = [part.size for part in parts if part.size is not None]
    if len(known) < len(parts) or len({part.unit for part in parts}) > 1:
        return [0] * len(parts)
    return known
