"""Recall and rate under filters that real metadata makes, and for more hits than ten, through the Python API.

    python benchmarks/search_filters.py DIR [--queries 200]

DIR is an index of package summaries with an approximate FAISS index (`index rebuild DIR --kind ivf` makes one from the
cache that search_bench.py keeps). A query is a document of the index, which is left out of its answer; the truth is
what the same call finds with exact=True. Months and version numbers go with what a package is about, so these filters
are not independent of the query; the last one keeps what is least like it. The last column is the median of nine
searchers' first searches with the filter. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from search import Hits, Searcher

FILTERS: dict[str, Any] = {
    "none": None,
    "updated 2024 or later": {"updated": {"$gte": "2024"}},
    "version 0.0.1 or 0.1.0": {"version": {"$in": ["0.0.1", "0.1.0"]}},
    "updated before 2015": {"updated": {"$lt": "2015"}},
    "among the 10,000 most downloaded": {"download_rank": {"$lte": 10_000}},
    "a version with dev in it": {"version": {"$contains": "dev"}},
    "among the 300 most downloaded": {"download_rank": {"$lte": 300}},
    "updated in the query's own month": "same month",
    "not updated within five years of the query": "other years",
}
KS = (10, 50, 100)


def filter_for(wanted: Any, month: str) -> Any:
    """Return a filter, made for a query's month of update, such as 2021-03, where it depends on that."""
    if wanted == "same month":
        return {"updated": month}
    if wanted == "other years":
        year = int(month[:4])
        return {"$or": [{"updated": {"$lt": str(year - 5)}}, {"updated": {"$gte": str(year + 6)}}]}
    return wanted


def recall(found: Hits, truth: Hits) -> float:
    """Return the share of the nearest that was found; a hit as near as the last of them counts."""
    if not truth:
        return 1.0
    return min(sum(hit.score >= truth[-1].score - 1e-6 for hit in found), len(truth)) / len(truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    arguments = parser.parse_args()
    with closing(sqlite3.connect(f"file:{arguments.directory}/index.db?mode=ro", uri=True)) as sql:
        documents = sql.execute(
            "SELECT d.id, json_extract(d.metadata, '$.updated') FROM documents d ORDER BY d.row_id"
        ).fetchall()
    asked = random.Random(20).sample([document for document in documents if document[1]], arguments.queries)
    print("| filter | share | k | recall | all k | ms a query, filter known | ms of the first |")
    print("|---|---|---|---|---|---|---|")
    with Searcher.open(arguments.directory) as searcher:
        for name, wanted in FILTERS.items():
            for k in KS if wanted is None else KS[:1]:
                recalls, full, times, plans = [], [], [], []
                for id_, month in asked:
                    where = filter_for(wanted, month)
                    truth = searcher.more_like(id_, k, where=where, exact=True, with_text=False)
                    start = time.perf_counter()
                    found = searcher.more_like(id_, k, where=where, with_text=False)
                    times.append(time.perf_counter() - start)
                    recalls.append(recall(found, truth))
                    full.append(len(found) == len(truth))
                    plans.append(found.plan)
                share = median(allowed_share(plan, len(documents)) for plan in plans)
                cells = [f"{share:.2%}", k, f"{sum(recalls) / len(recalls):.3f}", f"{sum(full) / len(full):.0%}"]
                firsts = [first_s(arguments.directory, id_, k, filter_for(wanted, month)) for id_, month in asked[:9]]
                cells += [f"{1e3 * median(times):.1f}", f"{1e3 * median(firsts):.0f}"]
                print(f"| {name} |", " | ".join(map(str, cells)), "|", flush=True)


def first_s(directory: Path, id_: str, k: int, where: Any) -> float:
    """Return the seconds of the first search with a filter, by a searcher that has the FAISS index open."""
    with Searcher.open(directory) as searcher:
        searcher.more_like(id_, k)
        start = time.perf_counter()
        searcher.more_like(id_, k, where=where)
        return time.perf_counter() - start


def allowed_share(plan: str, n: int) -> float:
    """Return the share of the documents that a plan says were allowed: 1,234 of 805,292; all where it does not."""
    words = plan.replace(",", "").split()
    return next((int(words[i - 1]) / n for i in range(1, len(words)) if words[i : i + 2] == ["of", str(n)]), 1.0)


if __name__ == "__main__":
    main()
