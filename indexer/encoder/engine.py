"""The transformer itself: device, number format, and weights that are all there. Home of torch and transformers."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from indexer.config import Dtype, Pooling
from indexer.errors import EncoderError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from indexer.encoder.models import ModelFiles

GPU_BATCH_TOKENS = 65_536
# Beyond that the interpreter's lock is the limit, which each worker holds for some percent of a pass.
MOST_CPU_WORKERS = 8

# What a token needs in a forward pass, in bytes for each number of a hidden state: some sixteen of them in 32 bits.
_BYTES_A_NUMBER = 64


def choose_devices(asked: str | None) -> tuple[str, ...]:
    """Return the devices that were asked for, `cuda:0,cuda:1`, else every GPU, else the CPU.

    Raises:
        UsageError: there is no such device here, or CPU and GPU are mixed.
    """
    import torch

    if asked is None:
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(f"cuda:{number}" for number in range(n_gpus)) if n_gpus > 1 else ("cuda" if n_gpus else "cpu",)
    devices = tuple(_device(name.strip()) for name in asked.split(","))
    if len({device.partition(":")[0] for device in devices}) > 1:
        msg = f"--device {asked} mixes kinds of devices, whose vectors would differ; name devices of one kind"
        raise UsageError(msg)
    return devices


def _device(name: str) -> str:
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        msg = f"--device {name} cannot be used here ({reason}); leave it out, or pass --device cpu"
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


def batch_tokens(model: Forward) -> int:
    """Return the budget of tokens for one forward pass that suits its device, and the memory that is free there."""
    import torch

    if model.device.type != "cuda":
        return model.cpu_batch_tokens
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(min(free // 2 // (_BYTES_A_NUMBER * model.dim), GPU_BATCH_TOKENS), 1)


class Forward(Protocol):
    """A forward pass over texts on one device, with one pooling."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def cpu_batch_tokens(self) -> int:
        """Tokens of one pass that suit a CPU."""

    @property
    def engine(self) -> str:
        """What runs it: torch or openvino."""

    @property
    def any_thread(self) -> bool:
        """Whether several threads may use it at the same time."""

    def n_fit(self, lengths: NDArray[np.int32], budget: int) -> int:
        """Return how many of the first texts fit into a budget of tokens, at least one; longest first, (b,)."""

    def __call__(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> torch.Tensor:
        """Return vectors, (b, d) float32 on the device, not normalised and not waited for.

        Args:
            ids: token ids of the texts, one behind the other, (t,).
            lengths: tokens of each text, (b,), at least 1, longest first.
        """


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

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The forward pass of each worker; `n_threads` is what they share on a CPU, `config` the model's configuration."""

    models: tuple[Forward, ...]
    n_threads: int
    config: dict[str, Any]


def load_workers(files: ModelFiles, devices: Sequence[str], dtype: torch.dtype, pooling: Pooling) -> Workers:
    """Load a model for one worker on each device; one CPU stands for as many workers as it has cores.

    Several workers with a thread of torch each are faster than one worker with several: they never wait for one another
    within a forward pass.

    Raises:
        EncoderError: it cannot be loaded, weights are missing, or it is no encoder.
    """
    import torch

    n_threads = torch.get_num_threads()
    n_workers = len(devices)
    if tuple(devices) == ("cpu",):
        n_workers = min(n_threads, MOST_CPU_WORKERS)
    loaded = {device: load_forward(files, device, dtype, pooling, n_workers) for device in dict.fromkeys(devices)}
    models = tuple(loaded[device][0] for device in devices)
    if devices[0] == "cpu":
        models = models[:1] * n_workers
    if not models[0].any_thread:
        models = tuple(dict.fromkeys(models))
    return Workers(models, n_threads, loaded[devices[0]][1])


def load_forward(
    files: ModelFiles, device: str, dtype: torch.dtype, pooling: Pooling, n_workers: int = 1
) -> tuple[Forward, dict[str, Any]]:
    """Load a model in the form that is fastest for it, and its configuration with all defaults filled in.

    Args:
        files: of the model.
        device: where it runs.
        dtype: number format of its products.
        pooling: CLS, MEAN or LAST.
        n_workers: how many threads will call it on a CPU.

    Raises:
        EncoderError: it cannot be loaded, weights are missing, or it is no encoder.
    """
    import torch

    from indexer.encoder.compiled import compile_graph
    from indexer.encoder.modern import pack_modern
    from indexer.encoder.packed import pack
    from indexer.encoder.plain import PlainModel

    if device == "cpu" and (compiled := compile_graph(files.config, files.weights, dtype, pooling, n_workers)):
        config = load_config(files)
        # A model that is at odds with itself is left to transformers, which says so.
        if compiled.fits(config):
            return compiled, config
    if device.startswith("cuda"):
        # On Hopper torch asks cuDNN first, which makes a plan for every number and length of texts that it meets, half
        # a second each: https://github.com/pytorch/pytorch/pull/155958
        torch.backends.cuda.enable_cudnn_sdp(False)
    mixed = device == "cpu" and dtype is torch.bfloat16
    model = load_model(files, device, torch.float32 if mixed else dtype)
    config = model.config.to_dict()
    with torch.inference_mode():
        packed = pack(model, files.config, dtype, pooling) or pack_modern(model, dtype, pooling)
        if packed is not None:
            return packed, config
        if mixed:
            _multiply_in_bfloat16(model)
        return PlainModel(model, files.name, pooling), config


def load_config(files: ModelFiles) -> dict[str, Any]:
    """Load the configuration of a model with all defaults filled in.

    Raises:
        EncoderError: transformers cannot load it.
    """
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(
            files.directory, local_files_only=True, trust_remote_code=False
        ).to_dict()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_loaded(files, error) from error
    return config


def load_model(files: ModelFiles, device: str, dtype: torch.dtype) -> Transformer:
    """Load the bare encoder, in evaluation mode, on the device.

    Raises:
        EncoderError: transformers cannot load it, weights are missing, or it is no encoder.
    """
    from transformers import AutoModel

    if files.config.get("is_encoder_decoder"):
        msg = f"{files.name} is an encoder-decoder ({files.architecture}), which cannot be used; choose an encoder"
        raise EncoderError(msg)
    arguments: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are refused below, by name
        "dtype": dtype,
    }
    with _quiet():
        try:
            try:
                model, report = AutoModel.from_pretrained(files.directory, add_pooling_layer=False, **arguments)
            except TypeError:  # this architecture has no such layer
                model, report = AutoModel.from_pretrained(files.directory, **arguments)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError) as error:
            raise _not_loaded(files, error) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler"))
    if missing or report["mismatched_keys"]:
        # transformers would go on with random numbers in their place.
        shown = ", ".join(map(str, missing[:3])) or str(next(iter(report["mismatched_keys"])))
        msg = f"the weights of {files.name} do not fit its config.json ({shown}); fetch the model again"
        raise EncoderError(msg)
    transformer: Transformer = model.to(device).eval()
    return transformer


def _not_loaded(files: ModelFiles, error: Exception) -> EncoderError:
    return EncoderError(
        f"{files.name} cannot be loaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    )


def _multiply_in_bfloat16(model: Any) -> None:  # noqa: ANN401 - a module of transformers
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
