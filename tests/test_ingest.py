"""Windows of documents: what is encoded once, what is refused, and when a commit is due."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBatch, FakeEncoder, fake_vector
from hypothesis import given
from hypothesis import strategies as st
from indexes import Oracle, build, flip_byte, only, records, searching, sql

import indexer.build
import indexer.ingest
from indexer.config import IfExists, OnError
from indexer.errors import CorpusError, NonFiniteVectorError
from indexer.ingest import SeenRows
from indexer.maintenance.verify import verify_index


@pytest.fixture
def windows_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (indexer.ingest, indexer.build):
        monkeypatch.setattr(module, "COMMIT_TEXTS", 10)


def write(path: Path, source: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in source), encoding="utf-8")
    return path


def same_text(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"s{i}", "text": "the same words"} for i in range(first, first + n)]


def stored(out: Path) -> dict[str, bytes]:
    """Return the stored vector of each document."""
    (path,) = out.glob("vectors-*")
    raw = path.read_bytes()[4096:]
    rows = sql(out, "SELECT d.id, p.slot FROM passages p JOIN documents d ON d.row_id = p.document")
    return {id_: raw[slot * 32 : slot * 32 + 32] for id_, slot in rows}


@pytest.mark.usefixtures("windows_of_ten")
def test_identical_texts_go_through_the_model_once_in_and_across_windows_and_runs(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    report = build(tmp_path, [*same_text(35), *records(5)], encoder=encoder)
    assert encoder.texts.count("the same words") == 1
    assert (report.encoded, report.duplicates, report.documents) == (6, 34, 40)
    report = build(tmp_path, [*same_text(3, 100), {"id": "d1", "text": "text number 4"}], encoder=encoder)
    assert encoder.texts.count("the same words") == 1
    assert (report.encoded, report.duplicates) == (0, 4)
    vectors = stored(tmp_path)
    assert len({vectors[record["id"]] for record in [*same_text(35), *same_text(3, 100)]}) == 1
    assert vectors["d1"] == vectors["d4"] != vectors["d3"]
    assert verify_index(tmp_path, deep=True) == []


def test_identical_passages_go_through_the_model_once_in_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.ingest, "FIRST_GROUP_PASSAGES", 4)
    source = [{"id": f"l{i}", "text": f"a common head and{i} then{i}"} for i in range(20)]
    encoder = FakeEncoder(chunk_tokens=3)
    report = build(tmp_path, source, encoder=encoder)
    assert encoder.texts.count("a common head") == 1
    assert (report.encoded, report.duplicates, report.passages) == (21, 19, 40)


@pytest.mark.usefixtures("windows_of_ten")
def test_texts_that_change_places_change_vectors(tmp_path: Path) -> None:
    build(tmp_path, [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}])
    before, encoder = stored(tmp_path), FakeEncoder()
    build(tmp_path, [{"id": "a", "text": "two"}, {"id": "b", "text": "one"}], encoder=encoder)
    assert encoder.texts == []
    assert stored(tmp_path) == {"a": before["b"], "b": before["a"]}


def test_the_text_of_a_deleted_document_is_encoded_anew(tmp_path: Path) -> None:
    build(tmp_path, records(2))
    build(tmp_path, [{"id": "d0", "text": "other"}])
    encoder = FakeEncoder()
    build(tmp_path, [{"id": "d2", "text": "text number 0"}], encoder=encoder)
    assert encoder.texts == ["text number 0"]


def test_tokens_and_truncated_documents_are_counted_also_for_copies(tmp_path: Path) -> None:
    long = " ".join(f"w{i}" for i in range(14))
    report = build(tmp_path, [{"id": "a", "text": long}, {"id": "b", "text": long}, {"id": "c", "text": "two words"}])
    assert (report.truncated, report.tokens, report.encoded) == (2, 16, 2)
    rows = sql(tmp_path, "SELECT n_tokens, n_tokens_lost FROM passages ORDER BY slot")
    assert rows == [(14, 4), (14, 4), (2, 0)]
    assert build(tmp_path, [{"id": "d", "text": long}]).truncated == 1


# Ids that stand twice.

TWICE = [*records(3), {"id": "d1", "text": "other text"}]


def test_an_id_with_two_contents_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", TWICE)
    with pytest.raises(CorpusError, match=r"corpus\.jsonl:4: id 'd1' .*line 2 of .*corpus\.jsonl"):
        build(tmp_path / "index", path)


@pytest.mark.usefixtures("windows_of_ten")
@pytest.mark.parametrize("other", [{"text": "other text"}, {"text": "text number 1", "n": 2}])
def test_also_when_they_stand_in_two_windows_or_sources(tmp_path: Path, other: dict[str, Any]) -> None:
    one = write(tmp_path / "one.jsonl", [*records(15), {"id": "d1", **other}])
    with pytest.raises(CorpusError, match=r"one\.jsonl:16: id 'd1' .*line 2 of .*one\.jsonl"):
        build(tmp_path / "a", one)
    assert len(sql(tmp_path / "a", "SELECT id FROM documents")) == 10  # the first window stands
    one, two = write(one, records(15)), write(tmp_path / "two.jsonl", [{"id": "d1", **other}])
    with pytest.raises(CorpusError, match=r"two\.jsonl:1: id 'd1' .*line 2 of .*one\.jsonl"):
        build(tmp_path / "b", one, two)


@pytest.mark.usefixtures("windows_of_ten")
@pytest.mark.parametrize("change", [{"n": -1}, {"text": "new text"}])
def test_the_lines_are_those_of_this_run_when_the_file_has_changed(tmp_path: Path, change: dict[str, Any]) -> None:
    out, old, new = tmp_path / "index", tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    build(out, write(old, records(3)))
    again = {**records(3)[1], **change}
    write(new, [*records(12, 50), again, *records(12, 70), {"id": "d1", "text": "third content"}])
    with pytest.raises(CorpusError, match=r"new\.jsonl:26: id 'd1' .*line 13 of .*new\.jsonl"):
        build(out, new)


@pytest.mark.usefixtures("windows_of_ten")
@pytest.mark.parametrize("gap", [0, 15])
def test_an_identical_record_is_unchanged_wherever_it_stands_again(tmp_path: Path, gap: int) -> None:
    first = records(1)
    backwards = dict(reversed(first[0].items()))
    report = build(tmp_path, [*first, *records(gap, 1), backwards, *first])
    assert (report.unchanged, report.documents, report.encoded) == (2, gap + 1, gap + 1)


@pytest.mark.usefixtures("windows_of_ten")
@pytest.mark.parametrize("gap", [0, 15])
def test_the_first_of_two_contents_stays_when_errors_or_existing_ids_are_skipped(tmp_path: Path, gap: int) -> None:
    source = [*records(gap + 2), {"id": "d1", "text": "other text"}]
    report = build(tmp_path / "a", source, on_error=OnError.SKIP)
    assert (report.rejected, report.documents) == (1, gap + 2)
    report = build(tmp_path / "b", source, if_exists=IfExists.SKIP)
    assert (report.rejected, report.skipped["exists"], report.documents) == (0, 1, gap + 2)
    for out in (tmp_path / "a", tmp_path / "b"):
        with searching(out) as searcher:
            Oracle().put(records(gap + 2)).check_searcher(searcher, ["text number 1"], 100)


# Commits.


def commits(out: Path) -> list[int]:
    """Return how many rows each commit appended."""
    return [row[0] for row in sql(out, "SELECT n_rows FROM blocks ORDER BY first_slot")]


@pytest.mark.usefixtures("windows_of_ten")
def test_a_commit_is_due_after_so_many_texts(tmp_path: Path) -> None:
    build(tmp_path, records(35))
    assert commits(tmp_path) == [10, 10, 10, 5]


def test_a_commit_is_due_after_so_many_seconds_of_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    class Slow(FakeEncoder):
        def encode_stream(self, texts: Sequence[str]) -> Iterator[FakeBatch]:
            nonlocal now_s
            for batch in super().encode_stream(texts):
                now_s += 0.8  # of a clock that stands still otherwise
                yield batch

    monkeypatch.setattr("time.monotonic", lambda: now_s)
    build(tmp_path, records(50), encoder=Slow(batch=5))
    assert commits(tmp_path) == [15, 15, 15, 5]
    with searching(tmp_path) as searcher:
        Oracle().put(records(50)).check_searcher(searcher, ["text number 4"], 100)
    assert verify_index(tmp_path, deep=True) == []


def test_a_slow_source_is_committed_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    def slow() -> Iterator[dict[str, Any]]:
        nonlocal now_s
        for record in records(9):
            now_s += 0.7
            yield record

    monkeypatch.setattr("time.monotonic", lambda: now_s)
    build(tmp_path, slow())
    assert commits(tmp_path) == [3, 3, 3]


def test_long_texts_make_smaller_windows_and_still_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (indexer.ingest, indexer.build):
        monkeypatch.setattr(module, "WINDOW_CHARACTERS", 100)
    build(tmp_path, [{"id": str(i), "text": f"{i:030d}"} for i in range(10)])
    assert commits(tmp_path) == [4, 4, 2]


def test_documents_are_cut_into_passages_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Counting(FakeEncoder):
        def passages(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
            sizes.append(len(texts))
            return super().passages(texts)

    monkeypatch.setattr(indexer.ingest, "_CUT_CHARACTERS", 100)
    source = [{"id": str(i), "text": f"{i:030d} more"} for i in range(10)]
    build(tmp_path, source, encoder=Counting(chunk_tokens=1))
    assert sizes == [3, 3, 3, 1]
    assert sql(tmp_path, "SELECT count(*) FROM passages") == [(20,)]
    assert verify_index(tmp_path, deep=True) == []


def test_a_damaged_vector_is_not_copied(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, records(10))
    build(out, records(20), adds=True)
    flip_byte(only(out, "vectors-*"), 4096 + 3 * 32)  # of d3
    again = [{"id": f"again{i}", "text": f"text number {i}"} for i in (3, 4, 15)]
    report = build(out, again, encoder=(encoder := FakeEncoder()), adds=True)
    assert sorted(encoder.texts) == ["text number 3", "text number 4"]  # those of the damaged block
    assert report.duplicates == 1
    (warning,) = report.warnings
    assert "index verify" in warning
    found = stored(out)
    for i in (3, 4, 15):
        assert found[f"again{i}"] == fake_vector(f"text number {i}").astype("<f2").tobytes()


def test_slots_follow_the_order_of_the_source_although_batches_go_by_length(tmp_path: Path) -> None:
    source = [{"id": f"d{i}", "text": "w" * ((i * 7) % 40 + 1) + f" {i}"} for i in range(40)]
    build(tmp_path, source, encoder=FakeEncoder(batch=3))
    rows = sql(tmp_path, "SELECT d.id FROM passages p JOIN documents d ON d.row_id = p.document ORDER BY p.slot")
    assert [row[0] for row in rows] == [record["id"] for record in source]


@pytest.mark.usefixtures("windows_of_ten")
def test_an_old_version_can_be_found_until_the_commit_that_replaces_it(tmp_path: Path) -> None:
    build(tmp_path, records(30))
    changed = [{**record, "text": record["text"] + " changed"} for record in records(30)]

    def look(_progress: object) -> None:
        with searching(tmp_path) as searcher:
            hits = searcher.search("x", 100)
        assert {hit.id for hit in hits} == {record["id"] for record in records(30)}

    build(tmp_path, changed, on_progress=look)
    with searching(tmp_path) as searcher:
        Oracle().put(records(30)).put(changed).check_searcher(searcher, ["x", "text number 3"], 100)


@pytest.mark.usefixtures("windows_of_ten")
def test_a_text_that_the_model_cannot_encode_is_named_and_its_window_not_committed(tmp_path: Path) -> None:
    class Broken(FakeEncoder):
        def encode_stream(self, texts: Sequence[str]) -> Iterator[FakeBatch]:
            if "text number 13" in texts:
                msg = "the model gave NaN"
                raise NonFiniteVectorError(msg, texts.index("text number 13"))
            yield from super().encode_stream(texts)

    path = write(tmp_path / "corpus.jsonl", records(25))
    with pytest.raises(NonFiniteVectorError, match=r"corpus\.jsonl:14: document 'd13': the model gave NaN"):
        build(tmp_path / "index", path, encoder=Broken())
    assert len(sql(tmp_path / "index", "SELECT id FROM documents")) == 10
    assert build(tmp_path / "index", path).encoded == 15


def test_a_vector_that_is_not_finite_is_never_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FakeEncoder.encode

    def spoil(self: FakeEncoder, texts: Sequence[str]) -> np.ndarray:
        vectors = real(self, texts)
        vectors[[text == "text number 3" for text in texts]] = np.nan
        return vectors

    monkeypatch.setattr(FakeEncoder, "encode", spoil)
    with pytest.raises(Exception, match="not 1"):
        build(tmp_path, records(5))
    assert sql(tmp_path, "SELECT count(*) FROM documents, passages") == [(0,)]


@given(last=st.integers(0, 40), rows=st.lists(st.integers(1, 40)))
def test_seen_rows_are_those_added_and_all_that_came_with_the_run(last: int, rows: list[int]) -> None:
    seen = SeenRows(last)
    for row in rows:
        seen.add(row)
    assert [row in seen for row in range(1, 60)] == [row in rows or row > last for row in range(1, 60)]
