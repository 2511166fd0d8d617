"""Data sets of the Hugging Face hub, saved ones, and those a caller holds. Home of `datasets`, which loads on use."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from indexer.corpus.columnar import BATCH_ROWS
from indexer.corpus.jsontypes import json_types
from indexer.corpus.parts import Part, RawRecord, Reject
from indexer.errors import CorpusError

PREFIX = "hf:"
TIMEOUT_S = 5.0

_DATA_SETS = ("Dataset", "IterableDataset", "DatasetDict", "IterableDatasetDict")
_PATH_STARTS = ("/", "./", "../", "~")


class _Table(Protocol):
    """The part of `datasets.Dataset` that is used here; an `IterableDataset` has no length."""

    def __len__(self) -> int: ...

    def iter(self, batch_size: int) -> Iterator[dict[str, list[object]]]: ...


class _DataSet(Protocol):
    """The part that every data set has."""

    def __iter__(self) -> Iterator[dict[str, object]]: ...

    def with_format(self, type: None, /) -> _DataSet: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSetName:
    """What `hf:NAME[:CONFIG][@SPLIT]` says; `path` is the folder when NAME is one."""

    name: str
    config: str | None = None
    split: str | None = None

    @property
    def path(self) -> Path | None:
        """The local folder, None for a data set of the hub."""
        is_path = _is_folder(self.name) or self.name.startswith(_PATH_STARTS)
        return Path(self.name).expanduser() if is_path else None

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"{PREFIX}{self.name}{config}" + (f"@{self.split}" if self.split else "")


def parse_name(source: str) -> DataSetName:
    """Take a source apart; a folder that exists may have a colon or an at sign in its name.

    Args:
        source: `hf:NAME[:CONFIG][@SPLIT]`.

    Raises:
        CorpusError: there is no name.
    """
    whole = source.removeprefix(PREFIX)
    if _is_folder(whole):
        return DataSetName(name=whole)
    rest, _, split = whole.rpartition("@") if "@" in whole else (whole, "", "")
    if _is_folder(rest):
        return DataSetName(name=rest, split=split or None)
    name, _, config = rest.partition(":")
    if not name:
        raise CorpusError(source, None, "give the name of a data set or a folder: hf:NAME[:CONFIG][@SPLIT]")
    return DataSetName(name=name, config=config or None, split=split or None)


def is_saved(path: Path) -> bool:
    """Tell whether a folder was written by `save_to_disk` of a Dataset or a DatasetDict.

    Args:
        path: any folder.
    """
    if (path / "dataset_dict.json").is_file():
        return True
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def is_data_set(source: object) -> bool:
    """Tell whether an object is a data set, without loading the library: when it is one, the library is loaded.

    Args:
        source: any object.
    """
    library = sys.modules.get("datasets")
    if library is None:
        return False
    # The caller may have a module of that name, in which these are missing.
    kinds = (getattr(library, name, None) for name in _DATA_SETS)
    return any(isinstance(kind, type) and isinstance(source, kind) for kind in kinds)


def check_name(name: DataSetName) -> None:
    """Find out within seconds whether a data set can be had.

    Args:
        name: a local folder, or a data set of the hub, which is asked for it.

    Raises:
        CorpusError: the folder is missing or empty, or the hub cannot be reached or has no such data set.
    """
    path = name.path
    if path is None:
        _check_hub(name)
    elif not path.is_dir():
        raise CorpusError(str(name), None, "no such folder")
    elif not any(path.iterdir()):
        raise CorpusError(str(name), None, "the folder is empty")


def named_parts(name: DataSetName) -> list[Part]:
    """Open a data set that was named, its splits in their order.

    Args:
        name: as `parse_name` gives it.

    Returns:
        A part for each split.

    Raises:
        CorpusError: the data set cannot be had.
    """
    check_name(name)
    import datasets

    path = name.path
    saved = path is not None and is_saved(path)
    try:
        if saved:
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path or name.name), name.config, split=name.split, streaming=True)
    except _open_errors() as error:
        raise CorpusError(str(name), None, f"cannot be opened: {_first_line(error)}") from error
    if saved and name.split is not None:
        if not isinstance(found, Mapping) or name.split not in found:
            has = ", ".join(found) if isinstance(found, Mapping) else "none"
            raise CorpusError(str(name), None, f"no split {name.split!r}; the folder has {has}")
        found = found[name.split]
    return data_set_parts(found, str(name), guard=True)


def saved_parts(path: Path) -> list[Part]:
    """Open a folder that `save_to_disk` wrote.

    Args:
        path: the folder as the user named it.

    Raises:
        CorpusError: it cannot be read.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except _open_errors() as error:
        raise CorpusError(str(path), None, f"cannot be opened: {_first_line(error)}") from error
    return data_set_parts(found, str(path), guard=True)


def data_set_parts(source: object, name: str, *, guard: bool = False) -> list[Part]:
    """Return a data set as parts of a corpus.

    Args:
        source: a Dataset or IterableDataset, or a dict of them, each split of which becomes a part.
        name: how places call it.
        guard: errors while reading become CorpusError; else they reach the caller, whose data set it is, unchanged.
    """
    if isinstance(source, Mapping):
        return [_part(data_set, f"{name}@{split}", guard=guard) for split, data_set in source.items()]
    return [_part(cast("_DataSet", source), name, guard=guard)]


def _part(data_set: _DataSet, name: str, *, guard: bool) -> Part:
    # A format of numpy or torch would give arrays in place of JSON types.
    plain = data_set.with_format(None)
    size = None if _is_stream(plain) else len(cast("_Table", plain))
    return Part(name=name, size=size, read=partial(_read, plain, name, guard))


def _read(data_set: _DataSet, name: str, guard: bool, _reject: Reject) -> Generator[RawRecord]:
    """Yield the records of one split."""
    rows = _rows(data_set)
    number = 0
    while True:
        try:
            row = next(rows, None)
        except _read_errors(guard=guard) as error:
            # Messages of the readers behind `datasets` can quote values, so only the type is given.
            reason = f"the data set cannot be read after record {number} ({type(error).__name__})"
            raise CorpusError(name, number + 1, reason) from error
        if row is None:
            return
        number += 1
        yield number, json_types(row), number


def _rows(data_set: _DataSet) -> Iterator[dict[str, object]]:
    """Yield the rows, of a table by columns, which is several times faster."""
    if _is_stream(data_set):
        yield from data_set
        return
    for batch in cast("_Table", data_set).iter(batch_size=BATCH_ROWS):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _is_stream(data_set: object) -> bool:
    import datasets

    return isinstance(data_set, datasets.IterableDataset)


def _check_hub(name: DataSetName) -> None:
    """Ask the hub once: `datasets` would try again for minutes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name.name, timeout=TIMEOUT_S)
    except HFValidationError as error:
        raise CorpusError(str(name), None, "neither a folder here nor a name that the hub allows") from error
    except RepositoryNotFoundError as error:
        reason = "neither a folder here nor a data set of the hub that you may read; check the name, or log in"
        raise CorpusError(str(name), None, reason) from error
    except _load_errors() as error:
        reason = (
            f"not a folder here, and the hub cannot be reached ({type(error).__name__}); where it can be, download the "
            f"data set first: datasets.load_dataset({name.name!r}).save_to_disk('FOLDER'), then name hf:FOLDER"
        )
        raise CorpusError(str(name), None, reason) from error


def _open_errors() -> tuple[type[Exception], ...]:
    """Return what opening a data set raises when it cannot be had, or would need a script to be run."""
    return (*_load_errors(), RuntimeError)


def _load_errors() -> tuple[type[Exception], ...]:
    """Return what opening a data set raises when it cannot be had."""
    # huggingface_hub 1 lets errors of httpx through, version 2 those of httpx2; neither is an OSError.
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    transport = [cast("type[Exception]", client.HTTPError) for client in clients]
    return (OSError, ValueError, ImportError, NotImplementedError, *transport)


def _read_errors(*, guard: bool) -> tuple[type[Exception], ...]:
    """Return what reading a data set raises when it is damaged or the line breaks; nothing without the guard."""
    if not guard:
        return ()
    import datasets
    import pyarrow

    return (*_load_errors(), datasets.exceptions.DatasetsError, pyarrow.ArrowException, TypeError, KeyError, EOFError)


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().is_dir()
    except OSError:
        return False


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
