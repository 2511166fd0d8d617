"""Peak memory of reading, encoding and committing, by corpus size: a tiny random BERT, d = 16.

    python benchmarks/memory.py 100000 800000

Each size is built by a process of its own under /usr/bin/time -v; prints one JSON object a size.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

INDEX = str(Path(sys.executable).with_name("index"))
_PEAK = re.compile(r"Maximum resident set size \(kbytes\): (\d+)")


def write_corpus(path: Path, n: int) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(5_000)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            text = " ".join(rng.choices(words, k=rng.randint(5, 15)))
            file.write(json.dumps({"id": f"d{i}", "text": text, "year": 2000 + i % 26, "label": words[i % 40]}) + "\n")


def main() -> None:
    from models import build_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="+")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(Path(folder, "model"), hidden_size=16, num_attention_heads=2, intermediate_size=32)
        for n in arguments.sizes:
            corpus, out = Path(folder, f"{n}.jsonl"), Path(folder, f"{n}.index")
            write_corpus(corpus, n)
            build = [INDEX, "build", str(corpus), "--out", str(out), "--model", str(model), "--json"]
            done = subprocess.run(["/usr/bin/time", "-v", *build], capture_output=True, text=True, check=True)
            peak = _PEAK.search(done.stderr)
            if peak is None:
                sys.exit("/usr/bin/time -v printed no maximum resident set size")
            report = json.loads(done.stdout)
            row = {"texts": n, "peak_mb": round(int(peak[1]) / 1024, 1), "seconds": report["seconds"]}
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
