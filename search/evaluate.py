"""How good the answers are: nDCG@10, recall and MRR against judgements.

nDCG uses the relevance itself as gain and log2(rank + 1) as discount (Järvelin and Kekäläinen 2002, as trec_eval's
ndcg_cut does); all figures are means over the queries that have a relevant document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from indexer.documents import JsonValue
from indexer.errors import UsageError
from search.hits import Hits
from search.queries import Query
from search.searcher import Searcher

_DEPTH = 100
_CUT = 10
_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Means over `n_queries` judged queries, each in [0, 1].

    `ann_recall_at_10` is the share of the exact ten nearest that the index found; `exact_ndcg_at_10` is what exact
    search reaches, so the rest of the loss is the encoder's. `n_unjudged` queries had no relevant document and were
    left out; `n_unknown` judged documents are not in the index.
    """

    n_queries: int
    n_unjudged: int
    n_unknown: int
    ndcg_at_10: float
    recall_at_10: float
    recall_at_100: float
    mrr: float
    exact_ndcg_at_10: float
    ann_recall_at_10: float

    def to_json(self) -> dict[str, JsonValue]:
        """Return the figures as `index eval --json` prints them."""
        return {
            "ndcg@10": self.ndcg_at_10,
            "recall@10": self.recall_at_10,
            "recall@100": self.recall_at_100,
            "mrr": self.mrr,
            "exact_ndcg@10": self.exact_ndcg_at_10,
            "ann_recall@10": self.ann_recall_at_10,
            "queries": self.n_queries,
            "queries_without_judgement": self.n_unjudged,
            "judged_documents_not_in_index": self.n_unknown,
        }


def evaluate(searcher: Searcher, queries: Sequence[Query], judged: Mapping[str, Mapping[str, int]]) -> Evaluation:
    """Search every judged query and compare the answers with the judgements.

    Args:
        searcher: the index.
        queries: with ids.
        judged: query id -> document id -> relevance; above 0 is relevant.

    Raises:
        UsageError: no query has a relevant document.
    """
    relevant = {
        query.id: {doc: gain for doc, gain in judged.get(query.id, {}).items() if gain > 0}
        for query in queries
        if query.id is not None
    }
    asked = [query for query in queries if query.id is not None and relevant[query.id]]
    if not asked:
        msg = "none of the queries has a relevant document in the judgements; do their ids agree?"
        raise UsageError(msg)
    texts = [query.text for query in asked]
    found = _batched(searcher, texts, exact=False)
    exact = found if all(hits.exact for hits in found) else _batched(searcher, texts, exact=True)
    gains = [relevant[str(query.id)] for query in asked]
    known = searcher.known_ids({doc for gain in gains for doc in gain})
    return Evaluation(
        n_queries=len(asked),
        n_unjudged=len(queries) - len(asked),
        n_unknown=len({doc for gain in gains for doc in gain} - known),
        ndcg_at_10=fmean(ndcg(ids(hits), gain, _CUT) for hits, gain in zip(found, gains, strict=True)),
        recall_at_10=fmean(recall(ids(hits), set(gain), _CUT) for hits, gain in zip(found, gains, strict=True)),
        recall_at_100=fmean(recall(ids(hits), set(gain), _DEPTH) for hits, gain in zip(found, gains, strict=True)),
        mrr=fmean(reciprocal_rank(ids(hits), set(gain)) for hits, gain in zip(found, gains, strict=True)),
        exact_ndcg_at_10=fmean(ndcg(ids(hits), gain, _CUT) for hits, gain in zip(exact, gains, strict=True)),
        ann_recall_at_10=fmean(
            recall(ids(hits), set(ids(truth)[:_CUT]), _CUT) for hits, truth in zip(found, exact, strict=True)
        ),
    )


def _batched(searcher: Searcher, texts: Sequence[str], *, exact: bool) -> list[Hits]:
    answers: list[Hits] = []
    for start in range(0, len(texts), _BATCH):
        answers += searcher.search_batch(texts[start : start + _BATCH], _DEPTH, exact=exact, with_text=False)
    return answers


def ids(hits: Hits) -> list[str]:
    """Return the document ids of some hits, nearest first."""
    return [hit.id for hit in hits]


def ndcg(ranked: Sequence[str], gains: Mapping[str, int], k: int) -> float:
    """Return the normalised discounted cumulative gain of the first k documents, in [0, 1]."""
    best = sorted(gains.values(), reverse=True)[:k]
    ideal = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, 1))
    reached = sum(gains.get(doc, 0) / math.log2(rank + 1) for rank, doc in enumerate(ranked[:k], 1))
    return reached / ideal if ideal else 0.0


def recall(ranked: Sequence[str], relevant: set[str], k: int) -> float:
    """Return the share of the relevant documents among the first k, in [0, 1]."""
    return len(relevant.intersection(ranked[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranked: Sequence[str], relevant: set[str]) -> float:
    """Return one over the rank of the first relevant document, 0 when there is none."""
    return next((1 / rank for rank, doc in enumerate(ranked, 1) if doc in relevant), 0.0)
