"""File-system steps that must not be got wrong: names, opening, writing to the last byte, fsync. Stdlib only."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from indexer.errors import IndexCorruptError, StorageError

logger = logging.getLogger(__name__)

DATABASE = "index.db"
LOCK = "writer.lock"
_NETWORK = re.compile(r"nfs4?|cifs|smb\w*|ceph|glusterfs|lustre|gpfs|beegfs|afs|ncpfs|fuse\.(?!fuse-overlayfs).*")
_OWN_NAME = re.compile(r"(vectors|gen)-[0-9a-f]{32}\.(f16|f32|faiss|tmp)")


def new_name(prefix: str, suffix: str) -> str:
    """Return a random file name, never used before, e.g. `vectors-<32 hex>.f16`."""
    return f"{prefix}-{uuid.uuid4().hex}.{suffix}"


def is_own_name(name: str) -> bool:
    """Tell whether a name has the form that this package gives to vector and generation files."""
    return _OWN_NAME.fullmatch(name) is not None


def mend(directory: Path) -> str:
    """Return what to do about damaged data, as error messages end."""
    return f"run: index repair {directory}, or restore a backup"


def own_path(directory: Path, name: str) -> Path:
    """Return the path of a file that the database names; a name of any other form is refused.

    Raises:
        IndexCorruptError: the name could lead out of the directory.
    """
    if not is_own_name(name):
        msg = f"{directory}: the database names a file {name!r}, which is no name of an index file; {mend(directory)}"
        raise IndexCorruptError(msg)
    return directory / name


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file without following a link at its end and return the descriptor.

    Raises:
        IndexCorruptError: the path is no regular file.
        FileNotFoundError: there is nothing at the path.
    """
    msg = f"{path}: not a regular file"
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise IndexCorruptError(msg) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IndexCorruptError(msg)
    return descriptor


def write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write every byte at `offset`; a short write goes on, an error raises OSError."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable, so that a commit may rely on them."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def network_file_system(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the kind of network file system that a directory lies on, None where it is local or nobody can tell.

    Args:
        directory: any that exists.
        mounts: Linux's list, https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html.
    """
    device = directory.stat().st_dev
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        kind = rest.split(" ", 1)[0]
        if fields.split()[2:3] == [f"{os.major(device)}:{os.minor(device)}"] and _NETWORK.fullmatch(kind):
            return kind
    return None


def discard(path: Path) -> None:
    """Remove a file that nothing names any more; one that cannot be removed is left to the next writer."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", path, error.strerror)


def make_directory(directory: Path) -> None:
    """Make a directory and those above it that are missing, each durable with its name; it may exist already.

    Without the name a power cut takes all that was committed in it. The parent is synced even when the directory is
    there: the build that made it may have been killed before it could.
    """
    parent = directory.absolute().parent
    if not parent.is_dir():
        make_directory(parent)
    directory.mkdir(exist_ok=True)
    with suppress(PermissionError):  # who may write below it need not be allowed to list it
        sync_directory(parent)


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return the one-line error for a write that the file system refused."""
    return StorageError(f"{path}: {error.strerror or error}; what was committed before stands, mend it and run again")


def read_all(descriptor: int, n_bytes: int, offset: int) -> bytearray:
    """Read exactly `n_bytes` at `offset`; fewer come back only where the file ends."""
    data = bytearray(n_bytes)
    view, done = memoryview(data), 0
    while done < n_bytes:
        n = os.preadv(descriptor, [view[done:]], offset + done)
        if n == 0:
            view.release()
            return data[:done]
        done += n
    return data


def read_error(path: Path, error: OSError) -> StorageError:
    """Return the one-line error for a read that the file system refused."""
    return StorageError(f"{path} cannot be read: {error.strerror or error}; check the disk, then run: index verify")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one line of ours."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def directory_bytes(directory: Path) -> int:
    """Return the size of the files in a directory, in which others may be at work."""
    n_bytes = 0
    with storage_errors(directory):
        for path in directory.iterdir():
            with suppress(FileNotFoundError):
                found = path.stat()
                n_bytes += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return n_bytes
