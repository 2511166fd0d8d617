"""The transformer itself: device, number format, and weights that are all there. Home of torch and transformers."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, assert_never

from indexer.config import Dtype
from indexer.errors import EncoderError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from indexer.encoder.models import ModelFiles


def choose_device(asked: str | None) -> str:
    """Return the device that was asked for, else cuda where there is one, else cpu.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        msg = f"--device {asked} cannot be used here ({reason}); leave it out, or pass --device cpu"
        raise UsageError(msg) from error
    return "cpu" if device.type == "cpu" else str(device)


def choose_dtype(asked: Dtype, device: str) -> torch.dtype:
    """Return the number format to compute in; AUTO is float16 on CUDA, bfloat16 on a CPU that computes in it."""
    import torch

    match asked:
        case Dtype.FLOAT32:
            return torch.float32
        case Dtype.FLOAT16:
            return torch.float16
        case Dtype.BFLOAT16:
            return torch.bfloat16
        case Dtype.AUTO:
            if device.startswith("cuda"):
                return torch.float16
            return torch.bfloat16 if device == "cpu" and _cpu_computes_bfloat16() else torch.float32
        case _:
            assert_never(asked)


class HiddenStates(Protocol):
    """What a transformer returns; `last_hidden_state` is (b, t, d)."""

    last_hidden_state: torch.Tensor


class Transformer(Protocol):
    """A bare encoder of transformers, in evaluation mode."""

    config: PretrainedConfig
    dtype: torch.dtype
    device: torch.device

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> HiddenStates:
        """Run over token ids and mask, (b, t) int64 each."""


def load_model(files: ModelFiles, device: str, dtype: torch.dtype) -> Transformer:
    """Load the bare encoder, in evaluation mode, on the device; on a CPU, bfloat16 is for the linear layers alone.

    Raises:
        EncoderError: transformers cannot load it, weights are missing, or it is no encoder.
    """
    import torch
    from transformers import AutoModel

    mixed = device == "cpu" and dtype is torch.bfloat16
    if files.config.get("is_encoder_decoder"):
        msg = f"{files.name} is an encoder-decoder ({files.architecture}), which cannot be used; choose an encoder"
        raise EncoderError(msg)
    arguments: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "dtype": torch.float32 if mixed else dtype,
    }
    with _quiet():
        try:
            try:
                model, report = AutoModel.from_pretrained(files.directory, add_pooling_layer=False, **arguments)
            except TypeError:  # this architecture has no such layer
                model, report = AutoModel.from_pretrained(files.directory, **arguments)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError) as error:
            msg = f"{files.name} cannot be loaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            raise EncoderError(msg) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler"))
    if missing or report["mismatched_keys"]:
        # transformers would go on with random numbers in their place.
        shown = ", ".join(map(str, missing[:3])) or str(next(iter(report["mismatched_keys"])))
        msg = f"the weights of {files.name} do not fit its config.json ({shown}); fetch the model again"
        raise EncoderError(msg)
    transformer: Transformer = model.to(device).eval()
    if mixed:
        _multiply_in_bfloat16(model)
    return transformer


def _multiply_in_bfloat16(model: torch.nn.Module) -> None:
    """Let the linear layers alone compute in bfloat16, and all that is between them in float32.

    As fast as a model wholly in bfloat16 (MiniLM: 50 texts/s each, 31 in float32), four times nearer to float32, and
    padding changes a vector by less than 1e-3, where bfloat16 attention changes it by 3e-3.
    """
    import torch

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.to(torch.bfloat16)
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(torch.bfloat16), *inputs[1:]))
            layer.register_forward_hook(lambda _, __, output: output.float())


def _cpu_computes_bfloat16() -> bool:
    """Tell whether the processor multiplies bfloat16 matrices itself; emulated, it is slower than float32."""
    import torch

    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return False
    # New in torch 2.10; older ones fall back to float32.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the load report and progress bars of transformers off stderr, then put both back."""
    from transformers.utils import logging

    switches: Any = logging  # its functions have no types
    level, bars = switches.get_verbosity(), switches.is_progress_bar_enabled()
    switches.set_verbosity_error()
    switches.disable_progress_bar()
    try:
        yield
    finally:
        switches.set_verbosity(level)
        if bars:
            switches.enable_progress_bar()
