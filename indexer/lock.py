"""One writer at a time: flock on writer.lock, held for a whole command; the kernel releases it with the process."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.errors import IndexCorruptError, IndexLockedError
from indexer.files import LOCK, network_file_system, open_regular, storage_errors

logger = logging.getLogger(__name__)


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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "an unknown process"
            msg = f"{directory} is being written by {holder}; wait until it ends and run again"
            raise IndexLockedError(msg) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        if kind := network_file_system(directory):
            logger.warning(
                "%s lies on a network file system (%s): never write it from two machines, and keep backups",
                directory,
                kind,
            )
        yield
    finally:
        os.close(descriptor)
