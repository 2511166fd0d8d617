"""What a build costs beside the model: read, compare, commit, with vectors that cost next to nothing.

    python benchmarks/without_model.py FILE [--texts N]

Builds an index of N records of a JSONL file (.gz too), which is gone through again with other ids and texts when it
ends. A vector is a row of a table that a checksum of the text picks. Prints a table in Markdown, a line for each
million records (or for all, when there are fewer) with texts a second and microseconds a text of that stretch, and
below it what reading takes of all, and comparing and committing. No FAISS index is tuned: `--kind flat`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np

from indexer.ann.kinds import AnnOptions
from indexer.build import BuildOptions, run_build
from indexer.config import EncoderOptions, Pooling
from indexer.encoder.contract import Contract
from indexer.encoder.pipeline import EncodedBatch
from indexer.progress import Phase, Progress

DIM = 384
STRETCH = 1_000_000


class NoModel:
    """Stands where a build has its encoder."""

    device = dtype = engine = "none"

    def __init__(self) -> None:
        self.contract = Contract(
            model="none",
            revision=None,
            weights_sha256="0" * 64,
            tokenizer_sha256="0" * 64,
            architecture="none",
            pooling=Pooling.CLS,
            max_length_tokens=512,
            query_prompt="",
            doc_prompt="",
            chunk_tokens=None,
            chunk_overlap=0,
            dim=DIM,
        )
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {"tokenize": 0.0, "encode": 0.0}
        table = np.random.default_rng(0).standard_normal((4_096, DIM)).astype(np.float32)
        self._table = table / np.linalg.norm(table, axis=1, keepdims=True)

    def load(self, _options: EncoderOptions, *, contract: Contract | None) -> NoModel:  # noqa: ARG002 - as a build calls
        return self

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.fromiter((crc32(text.encode()) for text in texts), np.uint32, len(texts))
        return self._table[rows % len(self._table)]

    def encode_stream(self, texts: Sequence[str]) -> Iterator[EncodedBatch]:
        n_tokens = np.full(len(texts), 10, np.int32)
        yield EncodedBatch(np.arange(len(texts)), self.encode(texts), n_tokens, np.zeros_like(n_tokens))

    def passages(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[(0, len(text))] for text in texts]

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--texts", type=int, default=200_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.jsonl"
        write_source(arguments.file, arguments.texts, source)
        encoder, marks = NoModel(), [(0, time.perf_counter())]

        def on_progress(progress: Progress) -> None:
            n_new = progress.n_documents - marks[-1][0]
            if n_new >= (1 if progress.phase is Phase.INDEX else STRETCH):
                marks.append((progress.n_documents, time.perf_counter()))

        options = BuildOptions(ann=AnnOptions(kind="flat"))
        report = run_build(
            [source], Path(folder) / "index", options, load_encoder=encoder.load, on_progress=on_progress
        )
    sys.stdout.write("| texts | texts/s | µs a text |\n|---|---|---|\n")
    for (before, start), (n, end) in pairwise(marks):
        rate = (n - before) / (end - start)
        sys.stdout.write(f"| {before:,} to {n:,} | {rate:,.0f} | {1e6 / rate:.1f} |\n")
    shares = {name: 1e6 * report.seconds[name] / report.documents for name in ("read", "commit")}
    sys.stdout.write(", ".join(f"{name} {share:.1f} µs" for name, share in shares.items()) + " a text in all\n")


def write_source(file: Path, n: int, source: Path) -> None:
    """Write n records, those of a file again and again; those of a later round have other ids and texts."""
    left = n
    with source.open("w", encoding="utf-8") as out:
        for turn in range(n):
            with gzip.open(file, "rt") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
                for line in lines:
                    if not left:
                        return
                    if turn:
                        record = json.loads(line)
                        record |= {"id": f"{record.get('id', '')}#{turn}", "text": f"{record['text']} #{turn}"}
                        line = json.dumps(record, ensure_ascii=False)
                    out.write(line.rstrip("\n") + "\n")
                    left -= 1


if __name__ == "__main__":
    main()
