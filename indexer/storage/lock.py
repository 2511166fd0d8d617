"""One writer at a time: flock on writer.lock, held for a whole command; the kernel releases it with the process."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from indexer.errors import IndexCorruptError, IndexLockedError
from indexer.storage.files import LOCK, network_file_system, open_regular, storage_error, storage_errors

logger = logging.getLogger(__name__)

_TRIES = 20
_PAUSE_S = 0.005


@contextmanager
def writer_lock(directory: Path) -> Iterator[None]:
    """Hold the writer's lock of an index directory.

    Raises:
        IndexLockedError: another process or thread holds it; the message names the holder.
        IndexCorruptError: the file is a link, or no file.
        StorageError: the directory cannot be written to.
    """
    path = directory / LOCK
    with storage_errors(path):
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        if os.fstat(descriptor).st_nlink > 1:
            msg = f"{path} has other names (hard links), and what they name would be written to; remove it"
            raise IndexCorruptError(msg)
        _take(descriptor, directory)
        name = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        with storage_errors(path):
            os.pwrite(descriptor, name, 0)
            os.ftruncate(descriptor, len(name))  # what a killed holder left may be longer
        if kind := network_file_system(directory):
            logger.warning(
                "%s lies on a network file system (%s): never write it from two machines, and keep backups",
                directory,
                kind,
            )
        try:
            yield
        finally:
            with suppress(OSError):  # it is a courtesy: the kernel lets go of the lock
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int, directory: Path) -> None:
    """Take the lock, or say who has it.

    A holder writes its name a moment after it has the lock and wipes it a moment before it lets go: while there is
    none, it is worth another try.
    """
    for last in range(_TRIES - 1, -1, -1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").partition("\n")[0].strip()
            if holder or not last:
                who = holder or "a process that has not given its name"
                msg = f"{directory} is being written by {who}; wait until it ends and run again"
                raise IndexLockedError(msg) from error
            time.sleep(_PAUSE_S)
        except OSError as error:  # a file system without locks
            raise storage_error(directory / LOCK, error) from error
        else:
            return
