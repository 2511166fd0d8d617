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
from indexer.filters import Where
from search.hits import Hits
from search.queries import Query
from search.searcher import Searcher

_DEPTH = 100
_CUT = 10
_BATCH = 256
_EQUAL = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Means over `n_queries` judged queries, each in [0, 1].

    `mrr` looks at a hundred hits. The loss of nDCG@10 against a perfect ranking has three parts: `loss_filter` is what
    no ranking can find because the filter, or the index, leaves it out, `loss_encoder` what exact search misses of the
    rest, `loss_ann` what the index misses of that (below 0 when it missed documents that are not relevant).
    `ann_recall_at_10` is the share of the exact ten nearest that the index found, where equal scores stand for each
    other. `n_unjudged` queries had no relevant document and were left out; `n_unknown` judged documents are not in the
    index.
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
    loss_filter: float
    loss_encoder: float
    loss_ann: float

    def to_json(self) -> dict[str, JsonValue]:
        """Return the figures as `index eval --json` prints them."""
        return {
            "ndcg@10": self.ndcg_at_10,
            "recall@10": self.recall_at_10,
            "recall@100": self.recall_at_100,
            "mrr": self.mrr,
            "exact_ndcg@10": self.exact_ndcg_at_10,
            "ann_recall@10": self.ann_recall_at_10,
            "loss_filter": self.loss_filter,
            "loss_encoder": self.loss_encoder,
            "loss_ann": self.loss_ann,
            "queries": self.n_queries,
            "queries_without_judgement": self.n_unjudged,
            "judged_documents_not_in_index": self.n_unknown,
        }


def evaluate(
    searcher: Searcher,
    queries: Sequence[Query],
    judged: Mapping[str, Mapping[str, int]],
    *,
    where: Where | None = None,
) -> Evaluation:
    """Search every judged query and compare the answers with the judgements.

    Args:
        searcher: the index.
        queries: with ids.
        judged: query id -> document id -> relevance; above 0 is relevant.
        where: metadata filter that every query is asked with.

    Raises:
        UsageError: no query has a relevant document.
        FilterError: the filter cannot be understood.
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
    deep = _batched(searcher, texts, _DEPTH, where, exact=False)
    if all(hits.exact for hits in deep):
        found = exact = deep
    else:  # an index looks harder for 100 hits than for 10
        found = _batched(searcher, texts, _CUT, where, exact=False)
        exact = _batched(searcher, texts, _CUT, where, exact=True)
    gains = [relevant[str(query.id)] for query in asked]
    documents = {doc for gain in gains for doc in gain}
    known = searcher.known_ids(documents)
    allowed = known if where is None else searcher.known_ids(documents, where)
    reached, best = _mean_ndcg(found, gains), _mean_ndcg(exact, gains)
    reachable = fmean(
        ndcg(sorted(allowed.intersection(gain), key=gain.__getitem__, reverse=True), gain, _CUT) for gain in gains
    )
    return Evaluation(
        n_queries=len(asked),
        n_unjudged=len(queries) - len(asked),
        n_unknown=len(documents - known),
        ndcg_at_10=reached,
        recall_at_10=fmean(recall(ids(hits), set(gain), _CUT) for hits, gain in zip(found, gains, strict=True)),
        recall_at_100=fmean(recall(ids(hits), set(gain), _DEPTH) for hits, gain in zip(deep, gains, strict=True)),
        mrr=fmean(reciprocal_rank(ids(hits), set(gain)) for hits, gain in zip(deep, gains, strict=True)),
        exact_ndcg_at_10=best,
        ann_recall_at_10=fmean(_ann_recall(hits, truth) for hits, truth in zip(found, exact, strict=True)),
        loss_filter=1.0 - reachable,
        loss_encoder=reachable - best,
        loss_ann=best - reached,
    )


def _mean_ndcg(answers: Sequence[Hits], gains: Sequence[Mapping[str, int]]) -> float:
    return fmean(ndcg(ids(hits), gain, _CUT) for hits, gain in zip(answers, gains, strict=True))


def _ann_recall(hits: Hits, truth: Hits) -> float:
    """Return the share of the exact ten nearest that was found; a hit as near as the tenth counts."""
    nearest = truth[:_CUT]
    if not nearest:
        return 1.0
    least = nearest[-1].score - _EQUAL
    return min(sum(hit.score >= least for hit in hits[:_CUT]), len(nearest)) / len(nearest)


def _batched(searcher: Searcher, texts: Sequence[str], k: int, where: Where | None, *, exact: bool) -> list[Hits]:
    answers: list[Hits] = []
    for start in range(0, len(texts), _BATCH):
        answers += searcher.search_batch(texts[start : start + _BATCH], k, where=where, exact=exact, with_text=False)
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
