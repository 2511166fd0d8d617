"""nDCG, recall and MRR against figures worked out by hand, and an evaluation against brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import fake_vector
from indexes import Oracle, build, records, searching

import search.nearest
from indexer.delete import delete_documents
from indexer.errors import UsageError
from search import Hits
from search.evaluate import evaluate, ndcg, recall, reciprocal_rank
from search.queries import Query

GAINS = {"a": 3, "b": 2, "c": 1}


@pytest.mark.parametrize(
    ("ranked", "k", "expected"),
    [
        ("abc", 10, 1.0),
        ("bxa", 10, 0.735007),  # (2/1 + 3/2) / (3/1 + 2/log2(3) + 1/2) = 3.5 / 4.761860
        ("bxa", 2, 0.469279),  # 2 / (3 + 2/log2(3)) = 2 / 4.261860
        ("xxxa", 10, 0.271329),  # (3/log2(5)) / 4.761860
        ("cba", 10, 0.789998),  # (1 + 2/log2(3) + 3/2) / 4.761860
        ("xyz", 10, 0.0),
        ("", 10, 0.0),
    ],
)
def test_ndcg_is_that_of_jarvelin_and_kekalainen(ranked: str, k: int, expected: float) -> None:
    assert ndcg(list(ranked), GAINS, k) == pytest.approx(expected, abs=1e-6)


def test_ndcg_is_normalised_by_the_best_that_k_hits_could_reach() -> None:
    many = {f"d{i}": 1 for i in range(50)}
    assert ndcg([f"d{i}" for i in range(10)], many, 10) == 1.0


def test_recall_is_the_share_of_the_relevant_found() -> None:
    assert recall(list("axb"), {"a", "b", "c", "d"}, 10) == 0.5
    assert recall(list("axb"), {"a", "b", "c", "d"}, 2) == 0.25
    assert recall([], {"a"}, 10) == 0.0
    assert recall(list("a"), set(), 10) == 0.0


def test_the_reciprocal_rank_is_that_of_the_first_relevant() -> None:
    assert reciprocal_rank(list("xyab"), {"a", "b"}) == pytest.approx(1 / 3)
    assert reciprocal_rank(list("a"), {"a"}) == 1.0
    assert reciprocal_rank(list("xy"), {"a"}) == 0.0


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build(tmp_path, records(150))
    return tmp_path


@pytest.mark.parametrize("way", ["exact", "generation"])
def test_the_figures_are_means_over_the_judged_queries(index: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.nearest, "EXACT_SLOTS", 5 if way == "generation" else 20_000)
    queries = [Query("q0", "text number 7"), Query("q1", "what else"), Query("q2", "not judged"), Query("q3", "none")]
    judged = {"q0": {"d7": 2, "d8": 0}, "q1": {"d1": 1, "d2": 3, "gone": 1}, "q3": {"d1": 0}, "q9": {"d5": 1}}
    delete_documents(index, ["d140"])
    oracle = Oracle().put(records(150))
    oracle.delete(["d140"])
    ranked = [id_ for id_, _ in oracle.nearest(fake_vector("what else"), 100, lambda _: True)]
    relevant = {"d1": 1, "d2": 3, "gone": 1}
    with searching(index) as searcher:
        figures = evaluate(searcher, queries, judged)
    assert (figures.n_queries, figures.n_unjudged, figures.n_unknown) == (2, 2, 1)
    assert figures.ndcg_at_10 == pytest.approx((1.0 + ndcg(ranked, relevant, 10)) / 2)
    assert figures.recall_at_100 == pytest.approx((1.0 + len({"d1", "d2"} & set(ranked)) / 3) / 2)
    assert figures.recall_at_10 == pytest.approx((1.0 + len({"d1", "d2"} & set(ranked[:10])) / 3) / 2)
    first = min(ranked.index(id_) + 1 for id_ in ("d1", "d2") if id_ in ranked)
    assert figures.mrr == pytest.approx((1.0 + 1 / first) / 2)
    assert figures.exact_ndcg_at_10 == figures.ndcg_at_10
    assert figures.ann_recall_at_10 == 1.0
    assert figures.loss_filter == pytest.approx((1.0 - ndcg(["d2", "d1"], relevant, 10)) / 2)  # "gone" is not there
    assert figures.to_json()["ndcg@10"] == figures.ndcg_at_10
    assert {"recall@10", "recall@100", "mrr"} <= figures.to_json().keys()


def test_without_a_judged_query_there_is_nothing_to_measure(index: Path) -> None:
    with searching(index) as searcher:
        for judged in ({}, {"q0": {"d7": 0}}, {"other": {"d7": 1}}):
            with pytest.raises(UsageError, match="do their ids agree"):
                evaluate(searcher, [Query("q0", "text")], judged)


def test_the_loss_is_split_into_filter_encoder_and_index(index: Path) -> None:
    queries = [Query("q0", "text number 7"), Query("q1", "what else")]
    judged = {"q0": {"d7": 1}, "q1": {"d1": 1, "d2": 1}}
    with searching(index) as searcher:
        figures = evaluate(searcher, queries, judged)
        filtered = evaluate(searcher, queries, judged, where={"even": True})
    assert (figures.loss_filter, figures.loss_ann) == (0.0, 0.0)
    assert figures.loss_encoder == pytest.approx(1.0 - figures.ndcg_at_10)
    one_of_two = 1.0 / (1.0 + 1.0 / np.log2(3))
    assert filtered.loss_filter == pytest.approx(1.0 - (0.0 + one_of_two) / 2)
    for found in (figures, filtered):
        lost = found.loss_filter + found.loss_encoder + found.loss_ann
        assert found.ndcg_at_10 == pytest.approx(1.0 - lost)


def test_what_the_index_misses_is_its_own_loss(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, judged = [Query("q0", "text number 7")], {"q0": {"d7": 1}}
    with searching(index) as searcher:
        real = searcher.search_batch

        def missing(texts: list[str], k: int, *, exact: bool, **options: Any) -> list[Hits]:
            if exact:
                return real(texts, k, exact=True, **options)
            return [Hits(hits[1:], plan="half blind", exact=False) for hits in real(texts, k + 1, **options)]

        monkeypatch.setattr(searcher, "search_batch", missing)
        figures = evaluate(searcher, queries, judged)
    assert (figures.loss_filter, figures.loss_encoder, figures.loss_ann) == (0.0, 0.0, 1.0)
    assert figures.ann_recall_at_10 == pytest.approx(0.9)
