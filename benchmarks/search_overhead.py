"""What a Searcher costs beside its encoder and FAISS: opening an index, and one search with its texts.

    python benchmarks/search_overhead.py my.index

Queries are vectors of the index, so no model is loaded. Each search is followed by the bare FAISS call; the difference
is the overhead, given as wall clock and as processor time of the thread, which other work on the machine disturbs less.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import numpy as np
from numpy.typing import NDArray

from search import Searcher

N = 300


class Ready:
    """Takes the place of the encoder: the query text is the number of a vector that is ready."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors

    def encode_queries(self, texts: list[str]) -> NDArray[np.float32]:
        return self._vectors[[int(text) for text in texts]]

    def close(self) -> None:
        pass


def main() -> None:
    opened = []
    for _ in range(5):
        start = time.perf_counter()
        Searcher.open(sys.argv[1]).close()
        opened.append(time.perf_counter() - start)
    figures: dict[str, object] = {"open_ms": [round(1e3 * t, 1) for t in opened]}
    with Searcher.open(sys.argv[1]) as searcher:
        view = searcher._current()
        generation = view.generation()
        slots = np.sort(np.random.default_rng(1).choice(view.snapshot.n_rows, N, replace=False))
        queries = view.vectors.rows(slots)
        searcher._encoder = Ready(queries)  # type: ignore[assignment]
        plan = searcher.search("0").plan
        for word, clock in (("wall", time.perf_counter), ("processor", time.thread_time)):
            spent = []
            for i in range(N):
                start = clock()
                searcher.search(str(i))
                between = clock()
                if generation is not None:
                    effort = generation.effort
                    generation.index.search(queries[i : i + 1], effort.depth, effort=effort)
                spent.append((between - start, clock() - between))
            figures[f"search_ms_{word}"] = round(1e3 * median(all_ for all_, _ in spent), 3)
            figures[f"faiss_ms_{word}"] = round(1e3 * median(bare for _, bare in spent), 3)
            figures[f"overhead_ms_{word}"] = round(1e3 * median(all_ - bare for all_, bare in spent), 3)
    sys.stdout.write(json.dumps({**figures, "plan": plan}) + "\n")


if __name__ == "__main__":
    main()
