"""An index as a search sees it: one snapshot, its open files, and what filters were found to allow."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.allowed import Allowed
from indexer.ann.generation import Generation
from indexer.ann.gpu import Gpu
from indexer.errors import IndexCorruptError
from indexer.filters import Filter
from indexer.storage.generations import GenerationRow
from indexer.storage.snapshot import Snapshot
from indexer.storage.vectors import VectorReader

if TYPE_CHECKING:
    from indexer.card import Card

logger = logging.getLogger(__name__)

_CACHED_FILTERS = 32
_ROWS_A_LOOKUP = 200  # whose metadata is passed over in the time that it takes to look up one slot


@dataclass(slots=True)
class View:
    """A snapshot with its files opened; the generation is opened when a search first needs it.

    Any number of threads may search it at once. `card` is the GPU that searches, None for the CPU.
    """

    directory: Path
    snapshot: Snapshot
    vectors: VectorReader
    card: Card | None = None
    filtered: dict[Filter, Allowed] = field(default_factory=dict)
    _looked_up: dict[Filter, int] = field(default_factory=dict)
    _live: Allowed | None = None
    _generation: Generation | None = None
    _trouble: str = ""
    _guard: Lock = field(default_factory=Lock)
    _opening: Lock = field(default_factory=Lock)
    _n_users: int = 0
    _is_closed: bool = False

    @classmethod
    def open(cls, directory: Path, snapshot: Snapshot, card: Card | None = None) -> View:
        """Open the files of a snapshot, to be searched by a GPU or else the CPU.

        Raises:
            FileNotFoundError: the vector file is gone; take a newer snapshot.
            IndexCorruptError: the vector file is damaged.
        """
        vectors = VectorReader(directory, snapshot.vector_file, snapshot.layout, snapshot.n_rows)
        return cls(directory, snapshot, vectors, card)

    def take(self) -> None:
        """Keep the files open for one more search, until `let_go`."""
        with self._guard:
            self._n_users += 1

    def let_go(self) -> None:
        """End what `take` began."""
        with self._guard:
            self._n_users -= 1
            self._close_if_unused()

    def close(self) -> None:
        """Let go of the files once no search uses them any more."""
        with self._guard:
            self._is_closed = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_closed and not self._n_users:
            self.vectors.close()
            self._generation = None

    def live(self) -> Allowed:
        """Return the live slots."""
        if self._live is None:
            self._live = Allowed.all_but(self.snapshot.dead, self.snapshot.n_rows)
        return self._live

    def keep(self, wanted: Filter, slots: NDArray[np.int64]) -> Allowed:
        """Remember the slots that meet a filter, int64 ascending, and return them."""
        allowed = Allowed.only(slots, self.snapshot.n_rows)
        with self._guard:
            if len(self.filtered) >= _CACHED_FILTERS:
                self.filtered.pop(next(iter(self.filtered)))
            self.filtered[wanted] = allowed
        return allowed

    def is_searched(self) -> bool:
        """Tell whether a search has opened the generation."""
        return self._generation is not None

    def is_new(self, wanted: Filter) -> bool:
        """Tell whether nothing was looked up for a filter yet, or long ago."""
        return wanted not in self._looked_up

    def lookups_left(self, wanted: Filter) -> int:
        """Return how many slots may still be looked up for a filter; beyond, finding all that meet it costs less."""
        return self.snapshot.n_rows // _ROWS_A_LOOKUP - self._looked_up.get(wanted, 0)

    def count_lookups(self, wanted: Filter, n: int) -> None:
        """Take down that so many slots were looked up for a filter."""
        with self._guard:
            before = self._looked_up.pop(wanted, 0)
            if len(self._looked_up) >= _CACHED_FILTERS:
                self._looked_up.pop(next(iter(self._looked_up)))
            self._looked_up[wanted] = before + n

    def held_by_card(self) -> Card | None:
        """Return the GPU with the vectors, None when there is none or they do not fit."""
        return self.card if self.card is not None and self.card.hold(self.vectors) else None

    def take_generation(self, before: View) -> None:
        """Go on with the generation that an older view has opened, if this snapshot names the same file."""
        row = self.snapshot.generation
        if row is not None and before._generation is not None:
            self._generation = before._generation.as_of(row)

    def generation(self) -> Generation | None:
        """Return the generation, None when there is none that can be used; exact search then takes its place.

        Raises:
            FileNotFoundError: the file is gone; take a newer snapshot.
            MissingExtraError: no FAISS wheel is installed.
        """
        row = self.snapshot.generation
        with self._opening:
            if row is not None and not self._trouble and self._generation is None:
                self._open_generation(row)
            return None if self._trouble else self._generation

    def _open_generation(self, row: GenerationRow) -> None:
        try:
            self._generation = Generation(self.directory, row, self.snapshot.layout.dim)
        except IndexCorruptError as error:
            self.do_without_generation(str(error))
        else:
            gpu = None if self.card is None else Gpu.find(str(self.card.device))
            if gpu is not None:
                self._generation.index.copy_to(gpu)

    def do_without_generation(self, reason: str) -> None:
        """Let exact search take the place of the generation for as long as this view lasts."""
        self._trouble = reason
        logger.warning("exact search takes the place of the FAISS file: %s", reason)
