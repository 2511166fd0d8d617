"""Tensors that say they are on a GPU, with a device, a number format and a shape, but no numbers.

What a GPU refuses is refused: operands on two devices, shapes that do not fit, products of numbers in two formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

# torch looks at the numbers of these only where they are.
_PRODUCTS = {"matmul", "mm", "__matmul__", "linear", "layer_norm", "scaled_dot_product_attention", "varlen_attn"}


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Let tensors on `cuda` be pretended for a block, and all that is computed from them."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr("torch.cuda.mem_get_info", lambda _: (1 << 40, 1 << 40))
        with _WithoutGuard():
            yield


class _WithoutGuard(TorchFunctionMode):
    """Does without the guard of a device, which a build of torch without CUDA lacks.

    Indexing is put together from single operations, and what changes a tensor in place is done out of place.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = function.__name__
        if name in _PRODUCTS:
            formats = {each.dtype for each in args if isinstance(each, torch.Tensor)}
            if len(formats) > 1:
                raise RuntimeError(f"{name} of numbers in two formats: {formats}")
        if function is torch.Tensor.__getitem__:
            return _part(*args)
        if function is torch.Tensor.__setitem__:
            return _check_fits(_part(*args[:2]), args[2])
        if function is torch.Tensor.copy_:
            return _check_fits(*args)
        if name.endswith("_") and not name.endswith("__") and hasattr(torch.Tensor, name[:-1]):
            function = getattr(torch.Tensor, name[:-1])
        return function(*args, **(kwargs or {}))


def _check_fits(into: torch.Tensor, what: torch.Tensor) -> torch.Tensor:
    """Check the shape of what is copied; it may come from another device and in another format."""
    assert torch.broadcast_shapes(into.shape, what.shape) == into.shape
    return into


def _part(tensor: torch.Tensor, at: Any) -> torch.Tensor:
    aten = torch.ops.aten
    lists: list[torch.Tensor | None] = []
    for item in at if isinstance(at, tuple) else (at,):
        if item is None:
            tensor = tensor.unsqueeze(len(lists))
        elif isinstance(item, int):
            tensor = tensor.select(len(lists), item)
            continue
        elif isinstance(item, slice):
            tensor = aten.slice(tensor, len(lists), item.start, item.stop, item.step or 1)
        lists.append(item if isinstance(item, torch.Tensor) else None)
    return tensor if all(each is None for each in lists) else aten.index(tensor, lists)
