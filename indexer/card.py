"""Exact search on a GPU: the rows of a vector file in its memory, compared with queries by matrix products."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.config import VectorDtype
from indexer.encoder.engine import choose_devices
from indexer.errors import UsageError
from indexer.storage.vectors import BLOCK_ROWS, VectorReader

logger = logging.getLogger(__name__)

_CHUNK_NUMBERS = 1 << 30  # numbers that one product reads: 2 GiB in float16
_SCORES_BYTES = 1 << 30
_ROOM_BYTES = 4 * _SCORES_BYTES  # for scores, their halves, the sort and a chunk that grows
_NEW_ROWS = 20_000  # up to here newer rows are compared on the host, and copied together later


class Card:
    """A GPU that holds the rows of one vector file at a time, as they are stored.

    Args:
        device: e.g. cuda:1; the CPU works too, slowly.

    Raises:
        UsageError: there is no such device.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(choose_devices(device)[0])
        self.n_slots = 0
        self._name = ""
        self._chunks: list[torch.Tensor] = []
        self._refused = ""

    @property
    def rounding(self) -> float:
        """By less than this its scores differ from those of `indexer.exact`.

        Sums are in float32; a process that lets torch multiply float32 matrices in TF32, as some images of containers
        do, loses three of the seven digits of each number.
        """
        return 1e-4 if torch.get_float32_matmul_precision() == "highest" else 2e-3

    def hold(self, vectors: VectorReader) -> bool:
        """Copy what is new in a vector file, or all of another one, and return whether there is room for it.

        Fewer than 20,000 new rows wait until there are more: `n_slots` says how many are held.

        Raises:
            StorageError: the disk cannot be read.
            IndexCorruptError: the file has become shorter.
        """
        if vectors.path.name != self._name:
            self._chunks, self.n_slots = [], 0
            self._name = vectors.path.name
        n_new = vectors.n_rows - self.n_slots
        if self.n_slots and n_new <= _NEW_ROWS:
            return True
        need = n_new * vectors.layout.stride + _ROOM_BYTES
        is_news = self._refused != self._name
        if self._free_bytes() < need and is_news:
            self._give_back()
        if self._free_bytes() >= need:
            with suppress(torch.OutOfMemoryError):  # somebody else took it meanwhile
                self._copy(vectors)
                return True
        if is_news:
            logger.warning("%s has %d bytes free, the vectors need %d there", self.device, self._free_bytes(), need)
        self._refused = self._name
        if self.n_slots:
            self._chunks, self.n_slots = [], 0  # the FAISS index may want the room
            self._give_back()
        return False

    def _free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else sys.maxsize

    def _give_back(self) -> None:
        """Give back what torch keeps for itself, which counts as taken."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _copy(self, vectors: VectorReader) -> None:
        # A multiple of eight, because a byte of the bits that allow slots belongs to one chunk.
        chunk_rows = max(_CHUNK_NUMBERS // vectors.layout.dim // 8 * 8, 8)
        dtype = torch.float16 if vectors.layout.dtype is VectorDtype.F16 else torch.float32
        while self.n_slots < vectors.n_rows:
            number, held = divmod(self.n_slots, chunk_rows)
            first_slot = self.n_slots - held
            n = min(chunk_rows, vectors.n_rows - first_slot)
            chunk = torch.empty((n, vectors.layout.dim), dtype=dtype, device=self.device)
            if held:
                chunk[:held] = self._chunks[number]
            for first in range(held, n, BLOCK_ROWS):
                rows = vectors.stored(first_slot + first, min(BLOCK_ROWS, n - first))
                chunk[first : first + len(rows)] = torch.from_numpy(rows.copy())
            # Only now: rows that cannot be read leave what is held as it was.
            self._chunks[number:] = [chunk]
            self.n_slots = first_slot + n

    def search(
        self, queries: NDArray[np.float32], k: int, *, allowed: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest of the slots that are held, by scores as exact as `rounding`.

        Args:
            queries: (q, d) float32, unit length.
            k: how many at most.
            allowed: a bit for each slot, lowest first, that may be returned; None for all.

        Returns:
            scores, (q, k) float32, descending; slots, (q, k) int64, -1 = none.

        Raises:
            UsageError: the memory of the device does not suffice.
        """
        k = min(k, self.n_slots)
        longest = max(map(len, self._chunks), default=1)
        at_once = max(_SCORES_BYTES // (2 * 4 * longest), 1)
        found_scores, found_slots = [np.empty((0, k), np.float32)], [np.empty((0, k), np.int64)]
        try:
            with torch.inference_mode():
                asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self.device)
                closed = None if allowed is None else self._closed(allowed)
                for part in torch.split(asked, at_once):
                    scores, slots = self._nearest(part, k, closed)
                    found_scores.append(scores.cpu().numpy())
                    found_slots.append(slots.cpu().numpy())
        except torch.OutOfMemoryError as error:
            msg = f"--device {self.device} has too little memory left for a search; free some, or leave it out"
            raise UsageError(msg) from error
        return np.concatenate(found_scores), np.concatenate(found_slots)

    def _closed(self, allowed: NDArray[np.uint8]) -> torch.Tensor:
        """Return for each slot whether it may not be returned, bool."""
        places = torch.arange(8, dtype=torch.uint8, device=self.device)
        octets = torch.from_numpy(allowed).to(self.device)
        return ((octets[:, None] >> places) & 1).view(-1) == 0

    def _nearest(self, queries: torch.Tensor, k: int, closed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        best = torch.empty((len(queries), 0), device=self.device)
        slots = torch.empty((len(queries), 0), dtype=torch.int64, device=self.device)
        first = 0
        for chunk in self._chunks:
            scores = _products(queries, chunk)
            if closed is not None:
                scores.masked_fill_(closed[first : first + len(chunk)], -torch.inf)
            near, at = scores.topk(min(k, len(chunk)), sorted=False)
            best, order = torch.cat((best, near), 1).topk(min(k, best.shape[1] + near.shape[1]))
            slots = torch.cat((slots, at + first), 1).gather(1, order)
            first += len(chunk)
        return best, torch.where(torch.isneginf(best), -1, slots)


def _products(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the products of queries, (q, d) float32, and rows, (b, d) in their own format: (q, b) float32.

    A query in float16 would lose 5e-4; what it loses is a second query, so that the rows are read as they are.
    """
    if rows.dtype is torch.float32:
        return queries @ rows.T
    high = queries.half()
    both = torch.cat((high, (queries - high.float()).half()))
    # The CPU has no product of float16 with sums in float32.
    products = torch.mm(both, rows.T, out_dtype=torch.float32) if rows.is_cuda else both.float() @ rows.float().T
    return products[: len(queries)] + products[len(queries) :]
