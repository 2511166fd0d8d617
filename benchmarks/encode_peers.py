"""Encoders side by side: each is a process of its own that encodes the texts it is given and says what that took.

    python benchmarks/encode_peers.py NAME MODEL_DIRECTORY

Reads JSON lines {"texts": [...], "save": PATH or null} and answers each with {"wall_s", "cpu_s", "peak_mb"}. Each peer
is set up as its own documentation shows it; texts are cut at 256 tokens. Imports are inside, because each peer has an
interpreter that holds it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

MAX_LENGTH = 256
BATCH = 32  # the default of sentence-transformers and of txtai

Encode = Callable[[list[str]], np.ndarray]


def clsindex(model: str, pooling: str, *, openvino: bool = True) -> Encode:
    if not openvino:
        sys.modules["openvino"] = None  # type: ignore[assignment]  # as if it were not installed
    from indexer.config import EncoderOptions, Pooling
    from indexer.encoder.bulk import BulkEncoder

    return BulkEncoder.load(EncoderOptions(model=model, max_length=MAX_LENGTH, pooling=Pooling(pooling))).encode


def sentence_transformers(model: str, dtype: str, batch: int = BATCH) -> Encode:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, model_kwargs={"dtype": dtype})
    encoder.max_seq_length = MAX_LENGTH
    return lambda texts: encoder.encode(texts, batch_size=batch, normalize_embeddings=True)


def transformers_loop(model: str) -> Encode:
    forward = _cls(model)
    return lambda texts: np.concatenate([forward(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)])


def dataset_map(model: str) -> Encode:
    from datasets import Dataset, disable_caching, disable_progress_bars

    forward = _cls(model)
    disable_caching()
    disable_progress_bars()

    def encode(texts: list[str]) -> np.ndarray:
        rows = Dataset.from_dict({"text": texts})
        rows = rows.map(lambda batch: {"vector": forward(batch["text"])}, batched=True, batch_size=BATCH)
        return rows.with_format("numpy")["vector"][:]

    return encode


def _cls(model: str) -> Callable[[list[str]], np.ndarray]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()

    def forward(texts: list[str]) -> np.ndarray:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**tokens).last_hidden_state[:, 0]
        return torch.nn.functional.normalize(hidden, dim=1).numpy()

    return forward


def txtai(model: str) -> Encode:
    from txtai import Embeddings

    embeddings = Embeddings(path=model, maxlength=MAX_LENGTH)
    return lambda texts: np.asarray(embeddings.batchtransform(texts))


PEERS: dict[str, Callable[[str], Encode]] = {
    "clsindex": lambda model: clsindex(model, "cls"),
    "clsindex, mean": lambda model: clsindex(model, "mean"),
    "clsindex, without OpenVINO": lambda model: clsindex(model, "cls", openvino=False),
    "sentence-transformers": lambda model: sentence_transformers(model, "float32"),
    "sentence-transformers, bfloat16": lambda model: sentence_transformers(model, "bfloat16"),
    "sentence-transformers, float16": lambda model: sentence_transformers(model, "float16", 256),
    "transformers loop": transformers_loop,
    "Dataset.map": dataset_map,
    "txtai": txtai,
}


def main() -> None:
    name, model = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr
    encode = PEERS[name](model)
    for line in sys.stdin:
        job = json.loads(line)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        vectors = encode(job["texts"])
        spent = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
        if job["save"]:
            np.save(job["save"], vectors)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answers.write(json.dumps({**spent, "peak_mb": round(peak)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
