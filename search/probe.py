"""The label probe: how well simple classifiers tell a metadata field from the vectors. The only home of scikit-learn.

What a frozen representation holds is judged by how little it takes to read it (Alain and Bengio 2016, "Understanding
intermediate layers using linear classifier probes"). Nothing is tuned: the figures compare encoders, not classifiers.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.config import EncoderOptions, ReadOptions
from indexer.corpus import Source, read_corpus
from indexer.documents import JsonValue
from indexer.encoder.contract import Contract
from indexer.errors import CorpusError, MissingExtraError, UsageError
from indexer.filters import FieldType, compile_filter, parse_filter
from indexer.storage.metadata import json_type
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.vectors import VectorReader

N_NEIGHBOURS = 10
HELD_OUT_EVERY = 5
_MAX_ITERATIONS = 3_000
_LABEL_TYPES = frozenset({FieldType.STRING, FieldType.INTEGER, FieldType.BOOLEAN})


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well labels were guessed, both in [0, 1]; `macro_f1` is the mean F1 over the labels of truth and guesses."""

    accuracy: float
    macro_f1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What three guessers reach: the commonest label, the nearest neighbours, logistic regression.

    `n_train` documents with `n_classes` labels were learned from and `n_test` guessed, `n_unknown` of these with a
    label that was not among the learned ones. `n_left_out` documents had no label, or, in a file of tests, no text.
    """

    n_train: int
    n_test: int
    n_classes: int
    n_unknown: int
    n_left_out: int
    majority: Score
    knn: Score
    logistic: Score

    def to_json(self) -> dict[str, JsonValue]:
        """Return the figures as `index eval --label-field --json` prints them."""
        return {
            "majority_accuracy": self.majority.accuracy,
            "majority_macro_f1": self.majority.macro_f1,
            "knn_accuracy": self.knn.accuracy,
            "knn_macro_f1": self.knn.macro_f1,
            "logistic_regression_accuracy": self.logistic.accuracy,
            "logistic_regression_macro_f1": self.logistic.macro_f1,
            "train_documents": self.n_train,
            "test_documents": self.n_test,
            "classes": self.n_classes,
            "test_documents_of_other_classes": self.n_unknown,
            "documents_left_out": self.n_left_out,
        }


@dataclass(frozen=True, slots=True)
class Examples:
    """Vectors (n, d) float32 of unit length, and labels (n,) str: the JSON of each, so that 1, true and "1" differ."""

    vectors: NDArray[np.float32]
    labels: NDArray[np.str_]


def probe_labels(
    directory: Path, field: str, *, tests: Source | None = None, model: str | None = None, allow_download: bool = False
) -> Probe:
    """Learn the labels of an index's documents and guess those of others; all vectors are held in memory.

    A document cut into passages is represented by its first one.

    Args:
        directory: of the index.
        field: the metadata field that is the label: strings, integers or booleans.
        tests: what to guess, with the text and label fields of the index; None holds out every fifth
            document in the order of ids, so that indexes of the same documents hold out the same.
        model: another place of the index's weights, to encode `tests`.
        allow_download: whether the model may be fetched from the hub.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        FilterError: no document has the field.
        UsageError: the field is no label, or there is nothing to learn or to guess.
        CorpusError: `tests` cannot be read.
        ModelNotFoundError: the model of the index cannot be had here.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError("sklearn", "eval")
    with closing(SnapshotReader(directory)) as reader:
        known, n_left_out = _of_index(reader, field)
        _check_classes(known, field)
        if tests is None:
            train, test = _hold_out(known, field)
        else:
            train = known
            test, n_skipped = _of_source(reader, field, tests, model, allow_download)
            n_left_out += n_skipped
    return _probe(train, test, n_left_out)


def _of_index(reader: SnapshotReader, field: str) -> tuple[Examples, int]:
    """Return the labelled documents in the order of their ids, and how many have no label."""
    with reader.transaction():
        snapshot = reader.snapshot()
        compile_filter(parse_filter({field: {"$exists": True}}), snapshot.fields)  # refuses an unknown field
        if odd := snapshot.fields[field].types - _LABEL_TYPES - {FieldType.NULL}:
            msg = f"field {field!r} holds {', '.join(sorted(odd))}; a label is a string, an integer or a boolean"
            raise UsageError(msg)
        found = reader.field_values(field)
        # Once it is mapped, the file may be replaced.
        file = VectorReader(reader.directory, snapshot.vector_file, snapshot.layout, snapshot.n_rows)
    labelled = [(slot, json.dumps(value)) for slot, value in found if value is not None]
    with file:
        vectors = file.rows(np.array([slot for slot, _ in labelled], np.int64))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Examples(vectors, np.array([label for _, label in labelled], np.str_)), len(found) - len(labelled)


def _check_classes(known: Examples, field: str) -> None:
    n, n_classes = len(known.labels), len(np.unique(known.labels))
    if n_classes < 2:
        msg = f"field {field!r} has {n_classes} value(s); a probe needs documents of at least two"
        raise UsageError(msg)
    if n_classes > n / 2:
        msg = f"field {field!r} has {n_classes:,} values in {n:,} documents, too many to be learned as labels"
        raise UsageError(msg)


def _hold_out(known: Examples, field: str) -> tuple[Examples, Examples]:
    held = np.arange(len(known.labels)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    train, test = (Examples(known.vectors[part], known.labels[part]) for part in (~held, held))
    if not held.any() or len(np.unique(train.labels)) < 2:
        msg = f"too few documents have the field {field!r} to hold some out ({len(held)}); pass others with --queries"
        raise UsageError(msg)
    return train, test


def _of_source(
    reader: SnapshotReader, field: str, tests: Source, model: str | None, allow_download: bool
) -> tuple[Examples, int]:
    """Return the labelled texts of a source, encoded as documents of the index, and how many have no label or text."""
    from indexer.encoder.bulk import BulkEncoder

    texts, labels, n_left_out = _read_tests(reader, field, tests)
    contract = Contract.from_json(reader.setting("contract"))
    options = EncoderOptions(model=model)
    with closing(BulkEncoder.load(options, contract=contract, allow_download=allow_download)) as encoder:
        if contract.chunk_tokens is not None:
            firsts = (spans[0] for spans in encoder.passages(texts))
            texts = [text[start:end] for text, (start, end) in zip(texts, firsts, strict=True)]
        return Examples(encoder.encode(texts), np.array(labels, np.str_)), n_left_out


def _read_tests(reader: SnapshotReader, field: str, tests: Source) -> tuple[list[str], list[str], int]:
    options = ReadOptions.from_json(reader.setting("read"))
    texts, labels, skipped = [], [], []
    with closing(
        read_corpus([tests], options, on_skip=lambda place, *_: skipped.append(place), columns_fit_all=False)
    ) as documents:
        for document in documents:
            value = document.metadata.get(field)
            if value is None:
                skipped.append(document.place)
                continue
            if (kind := json_type(value)) not in _LABEL_TYPES:
                reason = f"label {field!r} is of type {kind}; a label is a string, an integer or a boolean"
                raise CorpusError(document.place.source, document.place.line, reason)
            texts.append(document.text)
            labels.append(json.dumps(value))
    if not texts:
        msg = f"none of the {len(skipped):,} documents to be guessed has the field {field!r}"
        raise UsageError(msg)
    return texts, labels, len(skipped)


def _probe(train: Examples, test: Examples, n_left_out: int) -> Probe:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # A neighbour's vote weighs 1 / (1 - cosine): ties hardly occur, and an identical text decides alone.
    knn = KNeighborsClassifier(
        min(N_NEIGHBOURS, len(train.labels)), weights="distance", metric="cosine", algorithm="brute"
    )
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS))
    commonest = Counter(train.labels.tolist()).most_common(1)[0][0]
    return Probe(
        n_train=len(train.labels),
        n_test=len(test.labels),
        n_classes=len(np.unique(train.labels)),
        n_unknown=int(np.count_nonzero(~np.isin(test.labels, train.labels))),
        n_left_out=n_left_out,
        majority=_score(test.labels, np.full(len(test.labels), commonest)),
        knn=_score(test.labels, knn.fit(train.vectors, train.labels).predict(test.vectors)),
        logistic=_score(test.labels, logistic.fit(train.vectors, train.labels).predict(test.vectors)),
    )


def _score(truth: NDArray[np.str_], guessed: NDArray[np.str_]) -> Score:
    from sklearn.metrics import f1_score

    return Score(
        accuracy=float(np.mean(truth == guessed)),
        macro_f1=float(f1_score(truth, guessed, average="macro", zero_division=0.0)),
    )
