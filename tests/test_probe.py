"""The label probe: figures beside an oracle, which documents it learns from and guesses, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, fake_vector
from indexes import build

from indexer.delete import delete_documents
from indexer.encoder.bulk import BulkEncoder
from indexer.errors import CorpusError, FilterError, MissingExtraError, UsageError
from search.cli import main
from search.probe import probe_labels

Record = dict[str, Any]


class ClassEncoder(FakeEncoder):
    """Texts with the same first word lie around the same point."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.stack([fake_vector(text.split()[0]) + 1.2 * fake_vector(text) for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        pytest.fail("what is guessed is encoded as a document")


def examples(n: int, first: int = 0, **more: Any) -> list[Record]:
    """Return n records of the classes calm (2 of 4), storm and fog, whose texts begin with their class."""
    kinds = ["calm", "storm", "calm", "fog"]
    return [
        {"id": f"d{i:04}", "text": f"{kinds[i % 4]} at hour {i}", "kind": kinds[i % 4], **more}
        for i in range(first, first + n)
    ]


def vectors(found: list[Record]) -> np.ndarray:
    return ClassEncoder().encode([record["text"] for record in found])


def knn_accuracy(train: list[Record], test: list[Record], field: str = "kind", k: int = 10) -> float:
    """Guess by brute force: the k nearest vote, each by 1 / (1 - cosine)."""
    stored = vectors(train).astype(np.float16).astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    right = 0
    for record, scores in zip(test, vectors(test).astype(np.float64) @ stored.T, strict=True):
        votes: Counter[str] = Counter()
        for row in np.argsort(-scores)[:k]:
            votes[train[row][field]] += 1 / (1 - scores[row])
        right += votes.most_common(1)[0][0] == record[field]
    return right / len(test)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Stand in for loading a model; the options and contracts that it was loaded with."""
    calls = []

    def load(options: Any, *, contract: Any, allow_download: bool) -> ClassEncoder:
        assert not allow_download
        calls.append((options, contract))
        return ClassEncoder(contract)

    monkeypatch.setattr(BulkEncoder, "load", load)
    return calls


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build(tmp_path / "index", examples(200), encoder=ClassEncoder())
    return tmp_path / "index"


def test_every_fifth_document_in_the_order_of_ids_is_held_out(index: Path, tmp_path: Path) -> None:
    records = examples(200)
    train = [record for i, record in enumerate(records) if i % 5 != 4]
    test = records[4::5]
    probe = probe_labels(index, "kind")
    assert (probe.n_train, probe.n_test, probe.n_classes, probe.n_unknown, probe.n_left_out) == (160, 40, 3, 0, 0)
    assert probe.majority.accuracy == np.mean([record["kind"] == "calm" for record in test])
    assert probe.knn.accuracy == pytest.approx(knn_accuracy(train, test))
    assert 0.5 < probe.knn.accuracy < 1
    assert 0.5 < probe.logistic.accuracy < 1
    backwards = tmp_path / "backwards"
    build(backwards, records[::-1], encoder=ClassEncoder(batch=3))
    assert probe_labels(backwards, "kind").knn == probe.knn


def test_texts_of_a_file_are_encoded_as_the_index_says_and_guessed(
    index: Path, tmp_path: Path, loaded: list[tuple[Any, Any]]
) -> None:
    test = examples(41, first=1000)
    path = tmp_path / "test.csv"
    path.write_text("text,kind\n" + "".join(f"{r['text']},{r['kind']}\n" for r in test), encoding="utf-8")
    probe = probe_labels(index, "kind", tests=str(path), model="other/place")
    ((options, contract),) = loaded
    assert (options.model, contract.model) == ("other/place", "fake")
    assert (probe.n_train, probe.n_test) == (200, 41)
    assert probe.knn.accuracy == pytest.approx(knn_accuracy(examples(200), test))
    n_calm = sum(record["kind"] == "calm" for record in test)
    assert probe.majority.accuracy == n_calm / 41
    assert probe.majority.macro_f1 == pytest.approx(2 * n_calm / (n_calm + 41) / 3)


def test_separate_classes_are_told_and_labels_without_meaning_are_not(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, 400)
    records = [{**record, "noise": int(bit)} for record, bit in zip(examples(400), noise, strict=True)]
    build(tmp_path / "index", records, encoder=ClassEncoder())
    told, guessed = probe_labels(tmp_path / "index", "kind"), probe_labels(tmp_path / "index", "noise")
    assert told.logistic.accuracy > told.majority.accuracy + 0.2
    assert abs(guessed.logistic.accuracy - 0.5) < 0.15
    assert abs(guessed.knn.accuracy - 0.5) < 0.15


def test_the_types_of_labels_are_kept_apart(tmp_path: Path) -> None:
    labels = [1, "1", True, "true", False, 0]
    records = [{"id": f"d{i:03}", "text": f"w{i % 6} text {i}", "mixed": labels[i % 6]} for i in range(120)]
    build(tmp_path / "index", records, encoder=ClassEncoder())
    probe = probe_labels(tmp_path / "index", "mixed")
    assert probe.n_classes == 6
    assert probe.logistic.accuracy > 0.5


def test_documents_without_a_label_or_text_are_left_out_and_counted(
    tmp_path: Path, loaded: list[tuple[Any, Any]]
) -> None:
    bare = [{"id": "x1", "text": "calm without"}, {"id": "x2", "text": "calm null", "kind": None}]
    build(tmp_path / "index", examples(50), bare, encoder=ClassEncoder())
    assert probe_labels(tmp_path / "index", "kind").n_left_out == 2
    delete_documents(tmp_path / "index", ["x1", "d0000"])
    tests = [*examples(8, first=1000), {"text": "calm"}, {"text": " ", "kind": "fog"}, {"text": "ice", "kind": "ice"}]
    probe = probe_labels(tmp_path / "index", "kind", tests=tests)
    assert (probe.n_train, probe.n_test, probe.n_unknown, probe.n_left_out) == (49, 9, 1, 3)


def test_a_document_of_many_passages_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = [{**record, "text": record["text"] + " and more words of the same day" * 3} for record in examples(50)]
    encoder = ClassEncoder(chunk_tokens=4)
    report = build(tmp_path / "index", long, encoder=encoder)
    assert report.passages == 350
    monkeypatch.setattr(BulkEncoder, "load", lambda *_, contract, **__: ClassEncoder(contract))
    probe = probe_labels(tmp_path / "index", "kind", tests=long)
    assert (probe.n_train, probe.n_test) == (50, 50)
    assert probe.knn.accuracy == 1.0  # each finds its own first passage


def test_what_is_no_label_is_refused(tmp_path: Path) -> None:
    records = [{**r, "same": "a", "price": i / 2, "tags": ["a"], "number": i} for i, r in enumerate(examples(20))]
    build(tmp_path / "index", records, encoder=ClassEncoder())
    with pytest.raises(FilterError, match=r"'mood'; the fields are 'kind', 'number', 'price', 'same', 'tags'"):
        probe_labels(tmp_path / "index", "mood")
    for field, phrase in (
        ("same", "1 value"),
        ("price", "number"),
        ("tags", "array"),
        ("number", "20 values in 20 documents"),
    ):
        with pytest.raises(UsageError, match=phrase):
            probe_labels(tmp_path / "index", field)


def test_too_few_documents_to_hold_out_and_tests_without_labels_are_refused(tmp_path: Path, index: Path) -> None:
    for name, kinds in (("four", "abab"), ("five", "aaaab")):
        records = [{"id": str(i), "text": f"text {i}", "kind": kind} for i, kind in enumerate(kinds)]
        build(tmp_path / name, records, encoder=ClassEncoder())
        with pytest.raises(UsageError, match="--queries"):
            probe_labels(tmp_path / name, "kind")
    with pytest.raises(UsageError, match="none of the 1 documents"):
        probe_labels(index, "kind", tests=[{"text": "calm"}])
    path = tmp_path / "test.jsonl"
    path.write_text('{"text": "calm", "kind": "calm"}\n{"text": "calm", "kind": 1.5}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"test\.jsonl:2: label 'kind' is of type number"):
        probe_labels(index, "kind", tests=str(path))


def test_without_scikit_learn_the_error_names_the_extra(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"clsindex\[eval\]"):
        probe_labels(index, "kind")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `index eval` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["index", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_prints_the_figures(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = probe_labels(index, "kind")
    assert command(monkeypatch, index, "--label-field", "kind", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == probe.to_json()
    assert figures["knn_accuracy"] == probe.knn.accuracy
    assert figures["logistic_regression_macro_f1"] == probe.logistic.macro_f1
    assert command(monkeypatch, index, "--label-field", "kind") == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == figures.keys()
    assert lines["knn_accuracy"] == f"{probe.knn.accuracy:.4f}"
    assert lines["classes"] == "3"


def test_the_tutorial_shows_the_lines_that_the_command_prints(index: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "tutorial-emotion.md").read_text(encoding="utf-8")
    runs = [part.split("```")[0].split("\n$")[0] for part in page.split("$ index eval ")[1:]]
    assert len(runs) == 2
    for run in runs:
        shown = [line.split()[0] for line in run.splitlines()[1:]]
        assert shown == list(probe_labels(index, "kind").to_json())


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ((), "--label-field"),
        (("--qrels", "q.tsv", "--label-field", "kind"), "one of"),
        (("--qrels", "q.tsv"), "--queries"),
        (("--label-field", "mood"), "'kind'"),
    ],
)
def test_options_that_do_not_fit_exit_2_in_one_line(
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    phrase: str,
) -> None:
    assert command(monkeypatch, index, *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert phrase in line
