"""Names, opening and writing: the steps on the file system that everything else relies on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from indexer.errors import IndexCorruptError, StorageError
from indexer.storage.files import (
    directory_bytes,
    discard,
    is_own_name,
    make_directory,
    new_name,
    open_regular,
    own_path,
    storage_errors,
    write_all,
)

HEX = "0123456789abcdef" * 2


def test_new_names_are_own_and_never_the_same() -> None:
    names = {new_name("gen", "faiss") for _ in range(100)} | {new_name("vectors", "f16") for _ in range(100)}
    assert len(names) == 200
    assert all(is_own_name(name) for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "index.db",
        "notes.txt",
        f"vectors-{HEX}",
        f"vectors-{HEX}.f16.bak",
        f"vectors-{HEX.upper()}.f16",
        f"vectors-{HEX[1:]}.f16",
        f"my-vectors-{HEX}.f16",
        f"../vectors-{HEX}.f16",
        f"vectors-{HEX}.f16\n",
        "",
    ],
)
def test_other_names_are_not_own_and_no_path_is_made_of_them(name: str, tmp_path: Path) -> None:
    assert not is_own_name(name)
    with pytest.raises(IndexCorruptError, match="restore a backup"):
        own_path(tmp_path, name)


def test_a_short_write_goes_on_to_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(200))
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: real(fd, view[:7], offset))
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    write_all(descriptor, memoryview(data), 10)
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == bytes(10) + data


@pytest.mark.parametrize("kind", ["directory", "fifo", "link"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)  # opening it for reading would wait for a writer
        case "link":
            (tmp_path / "target").write_bytes(b"secret")
            path.symlink_to(tmp_path / "target")
    with pytest.raises(IndexCorruptError, match="not a regular file"):
        open_regular(path, os.O_RDONLY)


def test_a_refused_write_is_one_line_with_path_and_reason(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device") as caught, storage_errors(tmp_path / "vectors"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(tmp_path / "vectors") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("there", [0, 1, 2, 3])
def test_a_new_directory_is_durable_with_its_name_and_those_above_it(
    there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "b" / "c"
    made = [tmp_path / "a", tmp_path / "a" / "b", path]
    for each in made[:there]:
        each.mkdir()
    synced: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    make_directory(path)
    assert path.is_dir()
    assert synced == [each.parent for each in made[min(there, 2) :]]


def test_a_file_that_cannot_be_removed_stays_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    for name in ("directory", "file", "nothing"):
        discard(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_a_file_that_goes_while_sizes_are_added_up_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(7))
    (tmp_path / "folder").mkdir()
    there = [*tmp_path.iterdir(), tmp_path / "gone"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(there))
    assert directory_bytes(tmp_path) == 7
