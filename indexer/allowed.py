"""Which slots a search may return: a bitmap, and the slots themselves when they are few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_KEPT_SLOTS = 20_000
_UNPACKED_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Allowed:
    """Slots below `n_rows` that may be returned, `n` of them.

    `bits` holds one bit a slot, (ceil(n_rows / 8),) uint8, the lowest first, as FAISS wants it; None when all are
    allowed.
    """

    n_rows: int
    n: int
    bits: NDArray[np.uint8] | None
    _few: NDArray[np.int64] | None = None

    @classmethod
    def only(cls, slots: NDArray[np.int64], n_rows: int) -> Allowed:
        """Allow some slots, given ascending."""
        mask = np.zeros(n_rows, np.bool_)
        mask[slots] = True
        return cls(n_rows, len(slots), _pack(mask), slots if len(slots) <= _KEPT_SLOTS else None)

    @classmethod
    def all_but(cls, slots: NDArray[np.int64], n_rows: int) -> Allowed:
        """Allow all slots but some."""
        if not len(slots):
            return cls(n_rows, n_rows, None)
        mask = np.ones(n_rows, np.bool_)
        mask[slots] = False
        return cls(n_rows, n_rows - len(slots), _pack(mask))

    def has(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some slots are allowed, in the shape of the slots."""
        return np.ones(slots.shape, np.bool_) if self.bits is None else are_set(self.bits, slots)

    def n_from(self, first: int) -> int:
        """Return how many slots from `first` on are allowed."""
        return self.n_rows - first if self.bits is None else sum(map(len, self.parts(first)))

    def parts(self, first: int = 0) -> Iterator[NDArray[np.int64]]:
        """Yield the allowed slots from `first` on, int64 ascending, of half a million at a time."""
        if self._few is not None:
            yield self._few[np.searchsorted(self._few, first) :]
            return
        for start in range(first // 8, -(-self.n_rows // 8), _UNPACKED_BYTES):
            slots = 8 * start + np.arange(min(8 * _UNPACKED_BYTES, self.n_rows - 8 * start))
            if self.bits is not None:
                octets = self.bits[start : start + _UNPACKED_BYTES]
                slots = slots[np.unpackbits(octets, count=len(slots), bitorder="little").view(np.bool_)]
            yield slots[np.searchsorted(slots, first) :]


def are_set(bits: NDArray[np.uint8], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which numbers have their bit set, the lowest bit of a byte first, in the shape of the numbers."""
    return np.asarray(bits[numbers >> 3] >> (numbers & 7) & 1, np.bool_)


def _pack(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(mask, bitorder="little")
