"""The first answer: `index query` as a whole process, a second query in the same process, and a peer's script.

    python benchmarks/first_answer.py INDEX CORPUS.jsonl [--peer-python PYTHON]

INDEX is an index of CORPUS (JSONL with text). The peer embeds the query with sentence-transformers and compares it with
vectors that were saved beforehand; PYTHON is an interpreter that has it. The processes take turns; files are cached.
Prints one JSON object with medians and spreads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from search import Searcher

QUERY = "i feel calm and grateful today"
PEER = """
import json, sys, numpy as np
from sentence_transformers import SentenceTransformer
model_path, vectors_path, corpus_path, query = sys.argv[1:]
model = SentenceTransformer(model_path, device="cpu")
scores = np.load(vectors_path, mmap_mode="r") @ model.encode(query, normalize_embeddings=True)
best = np.argsort(-scores)[:10]
texts = [json.loads(line)["text"] for line in open(corpus_path, encoding="utf-8")]
print(*[texts[i] for i in best], sep="\\n")
"""


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    return {"median_s": statistics.median(values), "min_s": min(values), "max_s": max(values), "runs": len(values)}


def model_directory(name: str) -> str:
    spec = find_spec(name.removeprefix("package:"))
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{name} is not installed here")
    return str(next(Path(spec.submodule_search_locations[0]).glob("**/config.json")).parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    ours = [str(Path(sys.executable).parent / "index"), "query", str(arguments.index), QUERY]
    with tempfile.TemporaryDirectory() as folder, Searcher.open(arguments.index) as searcher:
        commands = {"index query": ours}
        if arguments.peer_python:
            n = len(searcher)
            np.save(Path(folder, "v.npy"), np.random.default_rng(0).standard_normal((n, 384)).astype(np.float32))
            model = model_directory(searcher.contract.model)
            rest = [model, str(Path(folder, "v.npy")), str(arguments.corpus), QUERY]
            commands["sentence-transformers script"] = [arguments.peer_python, "-c", PEER, *rest]
        for command in commands.values():
            seconds(command)
        cold: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.runs):
            for name, command in commands.items():
                cold[name].append(seconds(command))
        searcher.search(QUERY)
        warm = []
        for i in range(50):
            start = time.perf_counter()
            searcher.search(f"{QUERY} {i}")
            warm.append(time.perf_counter() - start)
    result: dict[str, object] = {"cold": {name: spread(values) for name, values in cold.items()}}
    result["second query in the same process"] = spread(warm)
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
