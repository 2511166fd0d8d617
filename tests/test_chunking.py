"""Long documents: where they are cut, what is stored, what a search returns."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEncoder, fake_vector
from hypothesis import given
from hypothesis import strategies as st

from indexer.build import BuildOptions, run_build
from indexer.chunking import cut_windows
from indexer.config import EncoderOptions
from indexer.encoder.bulk import BulkEncoder
from indexer.encoder.models import resolve_model
from indexer.encoder.tokens import TextTokenizer
from indexer.errors import UsageError
from indexer.maintenance.verify import verify_index
from search import Searcher


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 12), st.integers(0, 11))
def test_windows_hold_every_token_and_are_no_larger_than_asked(pieces: list[int], size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    words = [word for word, n in enumerate(pieces) for _ in range(n)]
    offsets = [(i, i + 1) for i in range(len(words))]
    spans = cut_windows(offsets, words, size, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(words)
    for start, end in spans:
        assert 0 < end - start <= size
    for (first, end), (following, _) in pairwise(spans):
        assert first < following <= end


def test_windows_end_between_words_unless_a_word_is_longer_than_half_a_window() -> None:
    words = [0, 0, 1, 1, 1, 2, 2, 3]
    offsets = [(i, i + 1) for i in range(len(words))]
    assert cut_windows(offsets, words, 4, 0) == [(0, 2), (2, 5), (5, 8)]
    assert cut_windows([(i, i + 1) for i in range(10)], [0] * 10, 4, 0) == [(0, 4), (4, 8), (8, 10)]


def test_windows_overlap_by_whole_words() -> None:
    words = list(range(10))
    offsets = [(i, i + 1) for i in range(10)]
    assert cut_windows(offsets, words, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]


def test_passages_are_spans_of_the_text_that_fit_the_model(minilm: str, cranfield_texts: list[str]) -> None:
    tokenizer = TextTokenizer.load(resolve_model(minilm, allow_download=False))
    for text, spans in zip(cranfield_texts, tokenizer.windows(cranfield_texts, 64, 16, ""), strict=True):
        assert spans[0][0] == len(text) - len(text.lstrip())
        assert spans[-1][1] == len(text.rstrip())
        encoded = tokenizer.encode([text[start:end] for start, end in spans], 512)
        assert encoded.n_tokens.max() <= 64
        for (_, end), (start, _) in pairwise(spans):
            assert start < end


def test_a_prompt_that_leaves_no_room_is_refused(minilm: str) -> None:
    tokenizer = TextTokenizer.load(resolve_model(minilm, allow_download=False))
    with pytest.raises(UsageError, match="make it larger"):
        tokenizer.windows(["a text"], 8, 0, "a prompt of many many words: ")


def build(tmp_path: Path, records: list[dict[str, object]], encoder: FakeEncoder) -> Path:
    out = tmp_path / "x.index"
    run_build([records], out, BuildOptions(), load_encoder=encoder.load)
    return out


def open_fake(path: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> Searcher:
    monkeypatch.setattr("search.searcher.open_query_encoder", lambda *_, **__: encoder)
    return Searcher.open(path)


def test_a_search_returns_k_documents_by_their_nearest_passage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(200)]
    records = [
        {"id": str(i), "text": " ".join(rng.choice(words, int(rng.integers(1, 60)))), "even": i % 2 == 0}
        for i in range(40)
    ]
    encoder = FakeEncoder(chunk_tokens=3)
    path = build(tmp_path, records, encoder)
    assert verify_index(path, deep=True) == []
    query = "w1 w2 w3"
    best: dict[str, tuple[float, str]] = {}
    passages = []
    for record in records:
        text = str(record["text"])
        for start, end in encoder.passages([text])[0]:
            score = float(fake_vector(query).astype(np.float16) @ fake_vector(text[start:end]).astype(np.float16))
            passages.append(score)
            best[str(record["id"])] = max(best.get(str(record["id"]), (-2.0, "")), (score, text[start:end]))
    wanted = sorted(best, key=lambda id_: -best[id_][0])
    with open_fake(path, encoder, monkeypatch) as searcher:
        for k in (1, 5, 40, 100):
            hits = searcher.search(query, k)
            assert [hit.id for hit in hits] == wanted[:k]
            for hit in hits:
                assert hit.span is not None
                text = str(records[int(hit.id)]["text"])
                assert hit.text == text[hit.span[0] : hit.span[1]] == best[hit.id][1]
        assert len(searcher.search(query, 20, where={"even": True})) == 20
        by_passage = searcher.search(query, 15, passages=True)
        assert [hit.score for hit in by_passage] == pytest.approx(sorted(passages, reverse=True)[:15], abs=2e-3)
        assert all(hit.id != "7" for hit in searcher.more_like("7", 40))


def test_a_document_of_many_passages_does_not_crowd_out_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"id": "long", "text": "red red red " * 300}, {"id": "a", "text": "blue"}, {"id": "b", "text": "green"}]
    encoder = FakeEncoder(chunk_tokens=3)
    path = build(tmp_path, records, encoder)
    assert encoder.texts.count("red red red") == 1
    with open_fake(path, encoder, monkeypatch) as searcher:
        hits = searcher.search("red red red", 3)
        assert sorted(hit.id for hit in hits) == ["a", "b", "long"]
        assert hits[0].id == "long"
        assert len(searcher.search("red red red", 50, passages=True)) == 50


def test_a_changed_document_takes_all_its_passages_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FakeEncoder(chunk_tokens=3)
    path = build(tmp_path, [{"id": "a", "text": "one two three four five six seven"}], encoder)
    path = build(tmp_path, [{"id": "a", "text": "one two three eight"}], encoder)
    assert encoder.texts.count("one two three") == 1
    assert verify_index(path, deep=True) == []
    with open_fake(path, encoder, monkeypatch) as searcher:
        assert [hit.text for hit in searcher.search("eight", 10, passages=True)] == ["eight", "one two three"]


def test_an_index_that_cuts_documents_goes_on_doing_so(tmp_path: Path, tiny_bert: Path) -> None:
    text = " ".join(f"word{i}" for i in range(100))
    encoder = BulkEncoder.load(EncoderOptions(model=str(tiny_bert), chunk_tokens=24, chunk_overlap=4))
    run_build(
        [[{"id": "a", "text": text}]],
        tmp_path / "x",
        BuildOptions(encoder=EncoderOptions()),
        load_encoder=lambda *_, **__: encoder,
    )
    report = run_build([[{"id": "b", "text": text + " more"}]], tmp_path / "x", BuildOptions(adds=True))
    assert report.passages > 4
    assert json.loads(json.dumps(report.to_json()))["truncated"] == 0
    with Searcher.open(tmp_path / "x") as searcher:
        hit = searcher.search("word50 word51", 1)[0]
        assert hit.span is not None
        assert hit.text == (text + " more")[hit.span[0] : hit.span[1]]
