"""What the tests of the rig share: a place in memory, worker processes, and the figures printed at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import pytest
from inspection import prepare_worker

_FIGURES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_FIGURES]:
        terminalreporter.write_line(f"torture: {line}")


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Lines that are printed after the tests."""
    return pytestconfig.stash[_FIGURES]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a file system in memory where there is one: thousands of indexes come and go in it."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="torture-", dir=shm if os.access(shm, os.W_OK) else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def workers() -> Iterator[Pool]:
    """Processes that inspect images, one for each core."""
    with get_context("spawn").Pool(os.cpu_count(), prepare_worker) as pool:
        yield pool
