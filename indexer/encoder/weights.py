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

from indexer.encoder.families import WORDS, Family
from indexer.errors import EncoderError

# numpy has no bfloat16: its bits are kept, which are the upper half of a float32.
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class Weights:
    """The tensors of one or several safetensors files by name, those of the types F32, F16 and BF16 alone.

    Args:
        paths: the files.

    Raises:
        EncoderError: a file is damaged.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        for path in paths:
            try:
                self._arrays |= _map_file(path)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                msg = f"{path} is no safetensors file, or a damaged one ({error}); fetch the model again"
                raise EncoderError(msg) from error

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def array(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as float32: a view of the file, or a copy where it holds 16 bits."""
        return as_float32(self._arrays[name])

    def table(self, name: str) -> NDArray[Any]:
        """Return a tensor as it is stored, a view of the file: only the rows that are taken from it are read.

        `as_float32` says what they mean.
        """
        return self._arrays[name]


class FamilyWeights:
    """The tensors of a model under the names that its family gives them; KeyError for one that is not there.

    Args:
        weights: of the model.
        family: the names.
    """

    def __init__(self, weights: Weights, family: Family) -> None:
        self._weights = weights
        # A checkpoint of a model with a head keeps the encoder under a prefix.
        self._prefix = "" if WORDS in weights else family.prefix

    def table(self, name: str) -> NDArray[Any]:
        """Return a tensor as it is stored, a view of the file."""
        return self._weights.table(self._prefix + name)

    def array(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as float32, a view of the file where it holds that."""
        return self._weights.array(self._prefix + name)

    def linear(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return weight (o, i) and bias (o,) of a product."""
        return self.array(f"{name}.weight"), self.array(f"{name}.bias")

    def norm(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return weight and bias of a layer norm, (d,) each."""
        # Checkpoints of 2018 and 2019 say gamma and beta.
        old = self._prefix + f"{name}.gamma" in self._weights
        weight, bias = ("gamma", "beta") if old else ("weight", "bias")
        return self.array(f"{name}.{weight}"), self.array(f"{name}.{bias}")


def as_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return numbers as they are stored as float32, exactly: themselves if they are that, else a copy."""
    if stored.dtype.kind == "u":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _map_file(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file:
        # OpenVINO shares only memory that could be written; what is written would stay in this process.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
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
