"""A build: what each option does to what is there, and what is left when it cannot go on."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder
from indexes import Oracle, build, only, records, searching, sql

import indexer.build
import indexer.ingest
from indexer.config import EncoderOptions, IfExists, OnError, Pooling, ReadOptions, VectorDtype
from indexer.errors import (
    ContractError,
    CorpusError,
    EncoderError,
    IndexerError,
    IndexNotFoundError,
    ModelNotFoundError,
    UsageError,
)
from indexer.maintenance.verify import verify_index
from indexer.progress import Phase, Progress


def write(path: Path, source: list[dict[str, Any]], *more: str) -> Path:
    lines = [json.dumps(record) for record in source] + list(more)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def ids(out: Path) -> list[str]:
    return [row[0] for row in sql(out, "SELECT id FROM documents ORDER BY row_id")]


def n_open_files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def is_complete(out: Path) -> bool:
    with searching(out) as searcher:
        return searcher.is_complete


def test_a_fresh_build_encodes_every_text_once_and_reports_it(tmp_path: Path) -> None:
    out, encoder = tmp_path / "deep" / "index", FakeEncoder()
    report = build(out, [*records(20), {"id": "e", "text": " "}], encoder=encoder)
    assert sorted(encoder.texts) == sorted(record["text"] for record in records(20))
    assert (report.documents, report.passages, report.encoded, report.unchanged) == (20, 20, 20, 0)
    assert (report.tokens, report.truncated, report.skipped) == (60, 0, {"empty_text": 1})
    assert set(report.seconds) == {"load", "read", "tokenize", "encode", "commit", "index", "total"}
    assert report.bytes == sum(path.stat().st_size for path in out.iterdir())
    kinds = sorted(path.name.split("-")[0] for path in out.iterdir() if path.name != "index.db-journal")
    assert kinds == ["gen", "index.db", "vectors", "writer.lock"]
    assert is_complete(out)
    assert verify_index(out, deep=True) == []


def test_an_unchanged_source_encodes_nothing_and_changes_no_slot(tmp_path: Path) -> None:
    build(tmp_path, records(20))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".db"}
    encoder = FakeEncoder()
    report = build(tmp_path, records(20), encoder=encoder)
    assert encoder.texts == []
    assert (report.unchanged, report.encoded, report.duplicates, report.updated, report.documents) == (20, 0, 0, 0, 20)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".db"} == before


def test_a_changed_text_gets_a_new_slot_and_leaves_a_tombstone(tmp_path: Path) -> None:
    build(tmp_path, records(3))
    encoder = FakeEncoder()
    report = build(tmp_path, [{**records(2)[1], "text": "new words"}], encoder=encoder)
    assert encoder.texts == ["new words"]
    assert (report.updated, report.documents, report.passages) == (1, 3, 3)
    rows = "SELECT p.slot, d.id FROM passages p LEFT JOIN documents d ON d.row_id = p.document ORDER BY p.slot"
    assert sql(tmp_path, rows) == [(0, "d0"), (1, None), (2, "d2"), (3, "d1")]


def test_changed_metadata_alone_keeps_the_slot_and_encodes_nothing(tmp_path: Path) -> None:
    build(tmp_path, records(3))
    before, encoder = sql(tmp_path, "SELECT * FROM passages"), FakeEncoder()
    report = build(tmp_path, [{**records(2)[1], "n": "other"}], encoder=encoder)
    assert encoder.texts == []
    assert (report.updated, report.encoded, report.unchanged) == (1, 0, 0)
    assert sql(tmp_path, "SELECT * FROM passages") == before
    with searching(tmp_path) as searcher:
        assert searcher.search("text number 1", where={"n": "other"})[0].id == "d1"


# Ids that exist.

CHANGED = [{**records(1)[0], "n": -1}, {**records(2)[1], "text": "new"}, *records(3)[2:], {"id": "x", "text": "x"}]


def test_skip_leaves_documents_that_exist_as_they_are(tmp_path: Path) -> None:
    build(tmp_path, records(3))
    report = build(tmp_path, CHANGED, if_exists=IfExists.SKIP)
    assert (report.skipped, report.unchanged, report.updated, report.encoded) == ({"exists": 2}, 1, 0, 1)
    with searching(tmp_path) as searcher:
        Oracle().put([*records(3), CHANGED[3]]).check_searcher(searcher, ["new"], 10)


def test_error_refuses_other_content_but_not_an_identical_record(tmp_path: Path) -> None:
    build(tmp_path, records(3))
    path = write(tmp_path.parent / "changed.jsonl", [records(3)[2], CHANGED[3], CHANGED[1]])
    with pytest.raises(CorpusError, match=r"changed\.jsonl:3: id 'd1' is in the index with other content"):
        build(tmp_path, path, if_exists=IfExists.ERROR)
    assert ids(tmp_path) == ["d0", "d1", "d2"]
    report = build(tmp_path, path, if_exists=IfExists.ERROR, on_error=OnError.SKIP)
    assert (report.rejected, report.unchanged, report.encoded) == (1, 1, 1)


def test_an_index_without_a_vector_takes_other_options(tmp_path: Path) -> None:
    spoilt = write(tmp_path / "spoilt.jsonl", [], "{")
    out = tmp_path / "index"
    with pytest.raises(CorpusError):
        build(out, spoilt)
    assert (out / "index.db").exists()
    other = FakeEncoder(chunk_tokens=4)
    options = EncoderOptions(chunk_tokens=8)
    assert build(out, records(3), encoder=other, encoder_options=options).documents == 3
    assert verify_index(out, deep=True) == []
    with pytest.raises(ContractError):
        build(out, records(3), encoder_options=EncoderOptions(chunk_tokens=9))
    assert ids(out) == ["d0", "d1", "d2"]


# Records that cannot be used.


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    return write(tmp_path / "spoilt.jsonl", records(3), "{", '{"id": "b"}', '{"id": "c", "text": "fine"}')


def test_stop_names_file_and_line_and_commits_nothing_of_the_batch(tmp_path: Path, spoilt: Path) -> None:
    with pytest.raises(CorpusError, match=r"spoilt\.jsonl:4: ") as caught:
        build(tmp_path / "index", spoilt)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "index" / "index.db").exists() or ids(tmp_path / "index") == []


def test_skip_lists_the_rejected_and_takes_the_rest(tmp_path: Path, spoilt: Path) -> None:
    out = tmp_path / "index"
    report = build(out, spoilt, on_error=OnError.SKIP)
    assert (report.rejected, report.documents) == (2, 4)
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(reject["source"], reject["line"]) for reject in rejects] == [(str(spoilt), 4), (str(spoilt), 5)]
    assert all(reject["reason"] for reject in rejects)
    assert is_complete(out)
    build(out, records(1))
    assert not (out / "rejects.jsonl").exists()


@pytest.mark.parametrize(("limit", "stops"), [(0, True), (1, True), (2, False), (None, False)])
def test_max_errors_is_how_many_may_be_rejected(tmp_path: Path, spoilt: Path, limit: int | None, stops: bool) -> None:
    out = tmp_path / "index"
    if stops:
        with pytest.raises(CorpusError, match=f"spoilt.jsonl:{4 + limit}: .*--max-errors {limit}"):
            build(out, spoilt, on_error=OnError.SKIP, max_errors=limit)
        assert not is_complete(out)
    else:
        assert build(out, spoilt, on_error=OnError.SKIP, max_errors=limit).rejected == 2


def test_a_wrong_text_field_can_be_put_right_in_the_same_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", [{"id": "a", "body": "some words"}])
    with pytest.raises(CorpusError, match="choose with --text-field"):
        build(tmp_path / "index", path)
    report = build(tmp_path / "index", path, read=ReadOptions(text_fields=("body",)))
    assert report.documents == 1
    assert verify_index(tmp_path / "index", deep=True) == []


# Pruning.


def test_prune_drops_what_left_the_source_and_only_that(tmp_path: Path) -> None:
    out, one, two = tmp_path / "index", tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    build(out, write(one, records(10)), write(two, records(5, 10)))
    assert build(out, write(one, records(6)), prune=True).deleted == 4
    assert set(ids(out)) == {f"d{i}" for i in (*range(6), *range(10, 15))}
    with searching(out) as searcher:
        Oracle().put([*records(6), *records(5, 10)]).check_searcher(searcher, ["text number 8"], 100)
    assert build(out, one, two, prune=True).deleted == 0
    assert verify_index(out, deep=True) == []


def test_prune_asks_before_it_drops_more_than_half_and_drops_nothing_then(tmp_path: Path) -> None:
    out, one = tmp_path / "index", tmp_path / "one.jsonl"
    build(out, write(one, records(10)))
    with pytest.raises(UsageError, match="6 of 10 documents"):
        build(out, write(one, records(4)), prune=True)
    assert len(ids(out)) == 10
    assert build(out, one, prune=True, prune_most=True).deleted == 6
    assert build(out, write(one, records(2)), prune=True).deleted == 2  # half is not more than half


def test_a_refused_prune_has_read_the_source_to_its_end_all_the_same(tmp_path: Path) -> None:
    out, one = tmp_path / "index", tmp_path / "one.jsonl"
    build(out, write(one, records(10)))
    with pytest.raises(UsageError):
        build(out, write(one, records(4)), prune=True)
    assert is_complete(out)


def test_a_refused_prune_leaves_an_index_that_is_up_to_date(tmp_path: Path) -> None:
    out, one = tmp_path / "index", tmp_path / "one.jsonl"
    build(out, write(one, records(10)))
    sql(out, "DELETE FROM generations")
    with pytest.raises(UsageError):
        build(out, write(one, records(4)), prune=True)
    assert sql(out, "SELECT n_slots FROM generations") == [(10,)]


def test_a_document_that_moved_is_not_pruned_when_its_record_is_rejected(tmp_path: Path) -> None:
    out, one, two = tmp_path / "index", tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    build(out, write(one, records(3)), write(two, [{"id": "q", "text": "q"}]))
    write(one, records(3)[1:])
    write(two, [{"id": "q", "text": "q"}, {"id": "d0", "text": 5}])
    report = build(out, one, two, prune=True, on_error=OnError.SKIP)
    assert (report.deleted, report.rejected) == (0, 1)
    assert ids(out) == ["d0", "d1", "d2", "q"]


def test_a_source_that_moves_keeps_its_documents_by_its_name(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, write(tmp_path / "monday.jsonl", records(10)), source_name="export")
    assert build(out, write(tmp_path / "tuesday.jsonl", records(8)), source_name="export", prune=True).deleted == 2
    for name in ("", " ", "a\0b", "\ud800"):
        with pytest.raises(UsageError, match="--source-name"):
            build(out, tmp_path / "tuesday.jsonl", source_name=name)


def test_a_document_that_is_found_unchanged_in_another_source_is_of_that_source_from_then_on(tmp_path: Path) -> None:
    out, old, new = tmp_path / "index", tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    build(out, write(old, records(6)))
    encoder = FakeEncoder()
    report = build(out, write(new, records(5)), encoder=encoder)
    assert (report.unchanged, encoder.texts) == (5, [])
    assert build(out, write(new, records(4)), prune=True).deleted == 1
    assert ids(out) == ["d0", "d1", "d2", "d3", "d5"]  # the last was never in the new one
    assert verify_index(out, deep=True) == []


def test_a_document_in_two_sources_of_a_run_stays_with_the_first(tmp_path: Path) -> None:
    out, one, two = tmp_path / "index", write(tmp_path / "1.jsonl", records(3)), write(tmp_path / "2.jsonl", records(3))
    for _ in range(2):
        before = (out / "index.db").read_bytes() if out.exists() else b""
        build(out, one, two)
        assert sql(out, "SELECT DISTINCT name FROM documents JOIN sources USING (source)") == [(str(one),)]
    assert sql(out, "SELECT line FROM documents ORDER BY row_id") == [(1,), (2,), (3,)]
    assert before


# Records that lose their text.

EMPTIED = [records(1)[0], {**records(2)[1], "text": " "}, {"text": ""}, {"id": "nobody", "text": None}]


def test_a_document_whose_record_has_no_text_any_more_is_dropped(tmp_path: Path) -> None:
    build(tmp_path, records(3))
    report = build(tmp_path, EMPTIED)
    assert (report.deleted, report.skipped, report.documents) == (1, {"empty_text": 3}, 2)
    assert ids(tmp_path) == ["d0", "d2"]
    assert build(tmp_path, EMPTIED).deleted == 0
    assert build(tmp_path, records(3)).documents == 3


def test_more_than_half_of_the_documents_do_not_go_for_want_of_text(tmp_path: Path) -> None:
    build(tmp_path, records(6))
    emptied = [{**record, "text": ""} for record in records(6)]
    assert build(tmp_path, emptied[:3]).deleted == 3
    report = build(tmp_path, emptied[3:5])
    assert (report.deleted, report.documents) == (0, 3)
    assert any("2 of 3 documents have no text any more" in warning for warning in report.warnings)


def test_a_document_whose_record_has_no_text_any_more_stays_or_is_an_error_as_any_other_change(tmp_path: Path) -> None:
    build(tmp_path, records(3))
    report = build(tmp_path, EMPTIED, if_exists=IfExists.SKIP)
    assert (report.deleted, report.skipped) == (0, {"empty_text": 3, "exists": 1})
    path = write(tmp_path.parent / "emptied.jsonl", EMPTIED)
    with pytest.raises(CorpusError, match=r"emptied\.jsonl:2: id 'd1' is in the index with other content"):
        build(tmp_path, path, if_exists=IfExists.ERROR)
    assert ids(tmp_path) == ["d0", "d1", "d2"]


@pytest.mark.parametrize("n_texts", [2, 2_048])
def test_a_record_without_text_takes_nothing_from_one_with_text_in_the_same_run(
    n_texts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.build.COMMIT_TEXTS", n_texts)
    empty = [{**record, "text": ""} for record in records(6)]
    changed = [{**record, "text": "new words " + record["id"]} for record in records(6)]
    for number, both in enumerate(([*changed, *empty], [*empty, *changed], [*records(6), *empty])):
        out = tmp_path / str(number)
        build(out, records(6))
        report = build(out, both)
        assert (report.deleted, report.encoded) == (0, 6 if changed[0] in both else 0)
        assert len(ids(out)) == 6
        assert verify_index(out, deep=True) == []
    one, two = write(tmp_path / "1.jsonl", empty), write(tmp_path / "2.jsonl", records(6))
    assert build(tmp_path / "0", one, two, if_exists=IfExists.ERROR, on_error=OnError.SKIP).deleted == 0
    report = build(tmp_path / "2", one, two)
    assert (report.deleted, report.unchanged) == (0, 6)


def test_nothing_is_pruned_after_an_error_or_a_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, one = tmp_path / "index", tmp_path / "one.jsonl"
    build(out, write(one, records(4)))
    write(one, records(3), "{")
    with pytest.raises(CorpusError):
        build(out, one, prune=True)
    assert len(ids(out)) == 4
    report = build(out, one, prune=True, on_error=OnError.SKIP)
    assert (report.deleted, len(ids(out))) == (0, 4)
    assert any("nothing was pruned" in warning for warning in report.warnings)
    one.unlink()
    with pytest.raises(CorpusError):
        build(out, one, prune=True, prune_most=True)
    assert len(ids(out)) == 4


def test_prune_keeps_updated_and_skipped_documents_and_duplicates(tmp_path: Path) -> None:
    out, one = tmp_path / "index", tmp_path / "one.jsonl"
    build(out, write(one, records(4)))
    write(one, [*CHANGED[:3], records(4)[3], CHANGED[0]])
    assert build(out, one, prune=True, if_exists=IfExists.SKIP).deleted == 0
    write(one, [*CHANGED[:3], records(4)[3], CHANGED[0]])
    assert build(out, one, prune=True).deleted == 0
    assert set(ids(out)) == {"d0", "d1", "d2", "d3"}


# Options that contradict the index.


@pytest.mark.parametrize(
    ("option", "options", "stored", "given"),
    [
        ("vector-dtype", {"vector_dtype": VectorDtype.F32}, "f16", "f32"),
        ("text-field", {"read": ReadOptions(text_fields=("body", "title"))}, "text", "body,title"),
        ("id-field", {"read": ReadOptions(id_field="key")}, "None", "key"),
        ("columns", {"read": ReadOptions(columns=("a", "text"))}, "None", "a,text"),
        ("pooling", {"encoder_options": EncoderOptions(pooling=Pooling.MEAN)}, "cls", "mean"),
        ("max-length", {"encoder_options": EncoderOptions(max_length=99)}, "10", "99"),
        ("doc-prompt", {"encoder_options": EncoderOptions(doc_prompt="passage: ")}, "", "passage: "),
    ],
)
def test_an_option_that_contradicts_the_index_is_refused_with_both_values(
    tmp_path: Path, option: str, options: dict[str, Any], stored: str, given: str
) -> None:
    build(tmp_path, records(3))
    before = sql(tmp_path, "SELECT value FROM meta WHERE key = 'seq'")
    with pytest.raises(ContractError, match=f"--{option} is") as caught:
        build(tmp_path, records(5), **options)
    assert caught.value.exit_code == 2
    assert (str(caught.value.stored), str(caught.value.given)) == (stored, given)
    assert ("without it" if stored == "None" else stored) in str(caught.value)
    assert given in str(caught.value)
    assert sql(tmp_path, "SELECT value FROM meta WHERE key = 'seq'") == before


def test_columns_that_the_index_records_count_for_delimited_text_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,first\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("y,second\n", encoding="utf-8")
    out, read = tmp_path / "index", ReadOptions(columns=("id", "text"))
    build(out, tmp_path / "a.csv", read=read)
    build(out, tmp_path / "b.csv", adds=True)
    build(out, [{"id": "z", "text": "third"}], adds=True)
    with searching(out) as searcher:
        assert {hit.id for hit in searcher.search("x")} == {"x", "y", "z"}
    with pytest.raises(UsageError, match="another kind of source"):
        build(out, [{"id": "w", "text": "fourth"}], adds=True, read=read)


def test_the_options_of_the_index_may_be_repeated_or_left_out(tmp_path: Path) -> None:
    read = ReadOptions(text_fields=("title", "body"), id_field="key")
    source = [{"key": "a", "title": "some", "body": "words"}]
    build(tmp_path, source, read=read, vector_dtype=VectorDtype.F32)
    same = {"read": read, "vector_dtype": VectorDtype.F32, "encoder_options": EncoderOptions(pooling=Pooling.CLS)}
    assert build(tmp_path, source, **same).unchanged == 1
    assert build(tmp_path, source).unchanged == 1


def test_what_is_added_may_be_read_in_its_own_way(tmp_path: Path) -> None:
    build(tmp_path, records(2))
    added = [{"key": "k", "body": "other words"}]
    report = build(tmp_path, added, adds=True, read=ReadOptions(text_fields=("body",), id_field="key"))
    assert report.documents == 3
    assert build(tmp_path, records(2)).unchanged == 2


def test_there_must_be_an_index_to_add_to(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError, match="index build"):
        build(tmp_path / "index", records(2), adds=True)
    assert not (tmp_path / "index").exists()


def test_an_encoder_that_gives_other_vectors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, records(2))
    real = FakeEncoder.encode

    def fits(change: Any) -> bool:
        monkeypatch.setattr(FakeEncoder, "encode", lambda self, texts: change(real(self, texts)))
        try:
            build(tmp_path, records(3))
        except EncoderError:
            return False
        return True

    assert not fits(lambda vectors: -vectors)
    assert not fits(lambda vectors: np.roll(vectors, 1, axis=1))
    assert not fits(lambda vectors: np.concatenate((-vectors[:1], vectors[1:])))
    assert ids(tmp_path) == ["d0", "d1"]
    assert fits(lambda vectors: vectors + np.float32(1e-4))


def test_an_encoder_that_gives_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, records(2))
    monkeypatch.setattr(FakeEncoder, "encode", lambda self, texts: np.full((len(texts), 16), np.nan, np.float32))
    with pytest.raises(EncoderError):
        build(tmp_path, records(2))


def test_a_refused_build_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, records(2))
    monkeypatch.setattr(FakeEncoder, "encode", lambda self, texts: np.zeros((len(texts), 16), np.float32))
    n_open = n_open_files()
    for _ in range(5):
        with pytest.raises(EncoderError):
            build(tmp_path, records(2))
    assert n_open_files() == n_open


# The directory.


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    encoder = FakeEncoder()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        build(tmp_path, records(2), encoder=encoder)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(UsageError, match="is a file"):
        build(tmp_path / "file", records(2))
    with pytest.raises(IndexerError, match="file"):
        build(tmp_path / "file" / "below", records(2))
    assert (tmp_path / "file").read_text() == "content"


def test_nothing_is_left_behind_when_the_build_cannot_begin(tmp_path: Path) -> None:
    class Unloadable(FakeEncoder):
        def load(self, *_: object, **__: object) -> FakeEncoder:
            msg = "no such model"
            raise ModelNotFoundError(msg)

    with pytest.raises(ModelNotFoundError):
        build(tmp_path / "index", records(2), encoder=Unloadable())
    with pytest.raises(CorpusError, match="no such file"):
        build(tmp_path / "index", tmp_path / "missing.jsonl")
    with pytest.raises(UsageError):
        build(tmp_path / "index", 7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "\n\n", '{"id": "a", "text": " "}\n'])
def test_an_empty_source_makes_an_empty_index_that_can_grow(tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.jsonl").write_text(content)
    out = tmp_path / "index"
    report = build(out, tmp_path / "empty.jsonl")
    assert (report.documents, report.passages, report.encoded) == (0, 0, 0)
    with searching(out) as searcher:
        assert searcher.is_complete
        assert len(searcher) == len(searcher.search("x")) == 0
        build(out, records(3))
        assert len(searcher.search("x")) == 3
    assert verify_index(out, deep=True) == []


# Complete and incomplete.


def test_an_index_is_incomplete_from_the_first_record_to_the_last(tmp_path: Path) -> None:
    def breaks() -> Any:
        yield from records(3)
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            build(tmp_path, breaks())
        assert not is_complete(tmp_path)
        build(tmp_path, records(3))
        assert is_complete(tmp_path)


def test_adding_leaves_the_marker_as_it_is(tmp_path: Path) -> None:
    def breaks() -> Any:
        yield from records(3)
        raise ZeroDivisionError

    build(tmp_path, records(3))
    with pytest.raises(ZeroDivisionError):
        build(tmp_path, breaks(), adds=True)
    assert is_complete(tmp_path)
    with pytest.raises(ZeroDivisionError):
        build(tmp_path, breaks())
    build(tmp_path, records(5), adds=True)
    assert not is_complete(tmp_path)


def test_progress_counts_only_what_is_committed_and_never_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (indexer.ingest, indexer.build):
        monkeypatch.setattr(module, "COMMIT_TEXTS", 10)
    out, seen = tmp_path / "index", []

    def see(progress: Progress) -> None:
        seen.append(progress)
        if progress.n_encoded:
            assert sql(out, "SELECT value FROM meta WHERE key = 'n_rows'")[0][0] >= progress.n_encoded

    build(out, write(tmp_path / "a.jsonl", records(25)), write(tmp_path / "b.jsonl", records(25, 25)), on_progress=see)
    assert seen[0].phase is Phase.LOAD
    assert [progress.phase for progress in seen[-2:]] == [Phase.INDEX, Phase.DONE]
    for name in ("n_documents", "n_encoded", "n_tokens", "fraction"):
        values = [getattr(p, name) for p in seen if p.phase is Phase.ENCODE and getattr(p, name) is not None]
        assert values == sorted(values), name
    assert (seen[-1].n_documents, seen[-1].n_encoded, seen[-1].fraction) == (50, 50, 1.0)


def test_the_vectors_that_are_searched_are_those_on_disk(tmp_path: Path) -> None:
    build(tmp_path, records(5))
    raw = np.fromfile(only(tmp_path, "vectors-*"), "<f2", offset=4096).reshape(5, 16).astype(np.float64)
    with searching(tmp_path) as searcher:
        query = FakeEncoder().encode(["some query"])[0].astype(np.float64)
        scores = {hit.id: hit.score for hit in searcher.search("some query")}
    assert scores == pytest.approx({f"d{i}": (raw @ query)[i] for i in range(5)}, abs=1e-12)
