"""Weights of a model as numpy arrays over memory-mapped safetensors files, without torch.

The format is a length (8 bytes, little-endian), a JSON header of that length, and the raw tensors:
https://huggingface.co/docs/safetensors/index#format. It is read here because safetensors' own numpy reader copies.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import EncoderError

_DTYPES: dict[str, np.dtype[np.floating[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


class Weights:
    """The tensors of one or several safetensors files by name; those of other types than F32 and F16 are left out.

    Args:
        paths: the files.

    Raises:
        EncoderError: a file is damaged.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._arrays: dict[str, NDArray[np.floating[Any]]] = {}
        for path in paths:
            try:
                self._arrays |= _map_file(path)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                msg = f"{path} is no safetensors file, or a damaged one ({error}); fetch the model again"
                raise EncoderError(msg) from error

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def array(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as float32: a read-only view of the file, or a copy where it holds float16."""
        return self._arrays[name].astype(np.float32, copy=False)

    def table(self, name: str) -> NDArray[np.floating[Any]]:
        """Return a tensor as it is stored, a view of the file: only the rows that are taken from it are read."""
        return self._arrays[name]


def _map_file(path: Path) -> dict[str, NDArray[np.floating[Any]]]:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:start])
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _DTYPES:
            continue
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        begin, end = entry["data_offsets"]
        count = math.prod(shape)
        if begin < 0 or end - begin != count * dtype.itemsize or start + end > len(mapped):
            msg = f"the place of {name} does not fit the file"
            raise ValueError(msg)
        arrays[name] = np.frombuffer(mapped, dtype, count, start + begin).reshape(shape)
    return arrays
