"""Sources: what the user names becomes the parts to read, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from indexer.config import ReadOptions
from indexer.corpus import columnar, data_sets, sqlite
from indexer.corpus.delimited import read_delimited
from indexer.corpus.jsonarray import read_json
from indexer.corpus.jsonl import read_jsonl
from indexer.corpus.jsontypes import json_types
from indexer.corpus.parts import Part, RawRecord, Reader, Reject, Unit
from indexer.corpus.plain import read_md, read_txt
from indexer.errors import CorpusError, UsageError

Source: TypeAlias = str | Path | Iterable[Mapping[str, object]]
"""A file, a directory, "-", "hf:…" or "sqlite:…"; from Python also mappings, or a data set of `datasets`."""

STDIN = "-"
SUPPORTED = (
    "supported are .jsonl .json .csv .tsv .txt .md (each also with .gz) .parquet .arrow, a directory of them, "
    "- (JSON lines on stdin), hf:NAME[:CONFIG][@SPLIT] and sqlite:FILE?sql=SELECT…"
)

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_TEXT_SUFFIXES = frozenset({".jsonl", ".json", ".txt", ".md", *_DELIMITERS})
_BINARY_SUFFIXES = frozenset({".parquet", ".arrow"})


def source_name(source: Source) -> str:
    """Return the name that an index records for a source, the same wherever the command is run.

    Args:
        source: any source.

    Returns:
        The absolute path of a file or directory; "-"; "hf:…" and "sqlite:…" as given, with the absolute path of a file
        or folder in them; "python" for all that is not a name.

    Raises:
        UsageError: the object is no source.
    """
    match source:
        case str() if source == STDIN:
            return STDIN
        case str() if source.startswith(data_sets.PREFIX):
            name = data_sets.parse_name(source)
            return source if name.path is None else str(replace(name, name=_absolute(name.path)))
        case str() if source.startswith(sqlite.PREFIX):
            query = sqlite.parse_query(source)
            return f"{sqlite.PREFIX}{_absolute(query.path)}?sql={query.sql}"
        case str() | Path():
            return _absolute(Path(source))
    _check_iterable(source)
    return "python"


def check_source(source: Source) -> None:
    """Check what can be checked within seconds and without reading records.

    Args:
        source: any source.

    Raises:
        CorpusError: it is missing, unreadable, empty or of a kind that is not supported.
        UsageError: the object is no source.
    """
    match source:
        case str() if source.startswith(data_sets.PREFIX):
            data_sets.check_name(data_sets.parse_name(source))
        case str() if source.startswith(sqlite.PREFIX):
            sqlite.check_query(sqlite.parse_query(source))
        case str() | Path() if source != STDIN:
            for _ in _file_parts(Path(source), ReadOptions(), open_saved=False):
                pass
        case _:
            source_name(source)


def source_parts(source: Source, options: ReadOptions) -> list[Part]:
    """Return the parts of a source in the order in which they are read.

    Args:
        source: any source.
        options: how delimited text is read.

    Raises:
        CorpusError: the source cannot be read.
        UsageError: the object is no source.
    """
    match source:
        case str() if source == STDIN:
            return [Part(name=STDIN, read=partial(read_jsonl, None, STDIN))]
        case str() if source.startswith(data_sets.PREFIX):
            return data_sets.named_parts(data_sets.parse_name(source))
        case str() if source.startswith(sqlite.PREFIX):
            query = sqlite.parse_query(source)
            sqlite.check_query(query)
            return [sqlite.query_part(query)]
        case str() | Path():
            return list(_file_parts(Path(source), options, open_saved=True))
    _check_iterable(source)
    if data_sets.is_data_set(source):
        return data_sets.data_set_parts(source, "python")
    size = len(source) if isinstance(source, Sized) else None
    return [Part(name="python", size=size, read=partial(_read_iterable, source))]


def _file_parts(path: Path, options: ReadOptions, *, open_saved: bool) -> Iterator[Part]:
    """Yield the part of a file, or those of a directory; saved data sets are opened only when asked."""
    name = str(path)
    try:
        is_directory = path.is_dir()
        path.stat()
    except FileNotFoundError as error:
        raise CorpusError(name, None, f"no such file or directory; {SUPPORTED}") from error
    except (OSError, ValueError) as error:
        raise CorpusError(name, None, f"cannot be opened ({type(error).__name__}); {SUPPORTED}") from error
    if not is_directory:
        if _format(path) is None:
            kind = f"files that end in {path.suffix}" if path.suffix else "files without a suffix"
            raise CorpusError(name, None, f"{kind} cannot be read; {SUPPORTED}")
        yield _file_part(path, path.name, options)
        return
    n_found = 0
    for found in _walk(path, ()):
        n_found += 1
        if found.is_dir():
            yield from data_sets.saved_parts(found) if open_saved else ()
        else:
            yield _file_part(found, found.relative_to(path).as_posix(), options)
    if not n_found:
        raise CorpusError(name, None, f"the directory has no file that can be read; {SUPPORTED}")


def _walk(directory: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files of known formats and the saved data sets below a directory, sorted; hidden ones are left out."""
    if data_sets.is_saved(directory):
        yield directory
        return
    try:
        entries = [(entry, entry.is_dir()) for entry in sorted(directory.iterdir())]
    except OSError as error:
        raise CorpusError(str(directory), None, f"cannot be listed: {error.strerror}") from error
    here = (*above, directory.resolve())
    for entry, is_directory in entries:
        if entry.name.startswith("."):
            continue
        if is_directory:
            # A link may lead back to a directory above.
            if entry.resolve() not in here:
                yield from _walk(entry, here)
        elif _format(entry) is not None:
            yield entry


def _format(path: Path) -> str | None:
    """Return the suffix that says how a file is read, None when it is not supported."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix in _TEXT_SUFFIXES or (suffix in _BINARY_SUFFIXES and not name.endswith(".gz")):
        return suffix
    return None


def _file_part(path: Path, relative: str, options: ReadOptions) -> Part:
    """Return the part of one file of a known format."""
    name = str(path)
    if not path.is_file():
        there = "not a regular file; take it out of the directory, or pipe it into stdin (-)"
        raise CorpusError(name, None, there if path.exists() else "no such file (a link that leads nowhere)")
    if not os.access(path, os.R_OK):
        raise CorpusError(name, None, "permission denied")
    format_ = _format(path)
    read: Reader
    match format_:
        case ".csv" | ".tsv":
            read = partial(read_delimited, path, name, _DELIMITERS[format_], options.columns)
        case ".md":
            read = partial(read_md, path, name, relative)
        case _:
            readers: dict[str | None, Callable[[Path, str, Reject], Generator[RawRecord]]] = {
                ".jsonl": read_jsonl,
                ".json": read_json,
                ".txt": read_txt,
                ".parquet": columnar.read_parquet,
                ".arrow": columnar.read_arrow,
            }
            read = partial(readers[format_], path, name)
    return Part(name=name, read=read, size=path.stat().st_size, unit=Unit.BYTES, delimited=format_ in _DELIMITERS)


def _read_iterable(records: Iterable[object], _reject: Reject) -> Generator[RawRecord]:
    """Yield the records of the caller; errors that it raises pass through."""
    for number, record in enumerate(records, 1):
        yield number, json_types(record) if isinstance(record, Mapping) else record, number


def _check_iterable(source: object) -> None:
    """Refuse objects that are no source, and a single record, which would be read by its keys."""
    is_record = isinstance(source, Mapping) and not data_sets.is_data_set(source)
    if is_record or isinstance(source, bytes) or not isinstance(source, Iterable):
        what = "a single record" if is_record else f"an object of type {type(source).__name__}"
        msg = f"{what} is not a source; give a path, a data set or an iterable of mappings"
        raise UsageError(msg)


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - takes ".." away without resolving links
