"""The numbers that every commit keeps up are those that counting gives, whatever was committed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DIM, fake_vector
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import sql

from indexer.config import VectorDtype
from indexer.documents import Document, Place, text_key
from indexer.errors import IndexCorruptError
from indexer.maintenance.verify import verify_index
from indexer.storage.changes import Changes, NewDocument, PassageRow
from indexer.storage.metadata import MetadataTable
from indexer.storage.snapshot import SnapshotReader
from indexer.storage.store import Store
from indexer.storage.totals import Totals

# Tokens lost of each passage of a new document.
LOST = st.lists(st.integers(0, 2), min_size=1, max_size=3)
# The new documents of a commit, how many go without another in their place, and how many of the new ones replace one.
COMMITS = st.lists(st.tuples(st.lists(LOST, max_size=4), st.integers(0, 2), st.integers(0, 4)), max_size=6)


def create(directory: Path) -> Store:
    canaries = [("a canary", fake_vector("a canary"))]
    about = {"contract": {}, "read": {}, "recorded": {}}
    return Store.create(directory, dim=DIM, vector_dtype=VectorDtype.F32, settings=about, canaries=canaries)


def commit(store: Store, appended: dict[str, list[int]], gone: Sequence[str] = (), old: Sequence[str] = ()) -> None:
    """Append documents, given by id with the tokens lost of each passage of ten; the first replace the `old` ones."""
    source = store.source("corpus.jsonl")
    new = [
        NewDocument(
            Document(id_, id_, {}, Place("corpus.jsonl", 1)),
            source,
            [PassageRow(0, 1, text_key(id_[:1]), 10, n_lost) for n_lost in lost],
            replaced,
        )
        for (id_, lost), replaced in zip_longest(appended.items(), store.row_ids(old))
    ]
    vectors = [fake_vector("a text")] * sum(map(len, appended.values()))
    changes = Changes(gone=store.row_ids(gone), appended=new)
    store.commit(changes, np.stack(vectors) if vectors else store.no_vectors())


def totals(directory: Path) -> Totals:
    with closing(SnapshotReader(directory)) as reader:
        return reader.totals()


def of(documents: dict[str, list[int]]) -> Totals:
    lost = list(documents.values())
    n_passages, n_lost = sum(map(len, lost)), sum(map(sum, lost))
    return Totals(len(lost), 10 * n_passages, n_lost, sum(map(any, lost)))


@settings(max_examples=40, deadline=None)
@given(COMMITS)
def test_totals_follow_any_history(tmp_path_factory: pytest.TempPathFactory, commits: list[Any]) -> None:
    directory = tmp_path_factory.mktemp("index")
    standing: dict[str, list[int]] = {}
    with closing(create(directory)) as store:
        for n, (new, n_gone, n_replaced) in enumerate(commits):
            appended = {f"{n}-{i}": lost for i, lost in enumerate(new)}
            ids = list(standing)
            gone, old = ids[:n_gone], ids[n_gone : n_gone + min(n_replaced, len(new))]
            commit(store, appended, gone, old)
            standing = {id_: lost for id_, lost in standing.items() if id_ not in (*gone, *old)} | appended
            assert totals(directory) == of(standing)
    assert verify_index(directory) == []


def test_a_commit_that_fails_leaves_the_totals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(create(tmp_path)) as store:
        commit(store, {"a": [1], "b": [0]})
        monkeypatch.setattr(MetadataTable, "finish", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            commit(store, {"c": [0, 3]}, gone=["a"])
    assert totals(tmp_path) == of({"a": [1], "b": [0]})


def test_an_index_from_before_there_were_totals_is_counted_and_keeps_them_from_its_next_commit(tmp_path: Path) -> None:
    with closing(create(tmp_path)) as store:
        commit(store, {"a": [1], "b": [0, 0]})
        sql(tmp_path, "DELETE FROM meta WHERE key = 'totals'")
        assert totals(tmp_path) == of({"a": [1], "b": [0, 0]})
        assert verify_index(tmp_path) == []
        commit(store, {"c": [0, 3]}, gone=["a"])
    assert sql(tmp_path, "SELECT count(*) FROM meta WHERE key = 'totals'") == [(1,)]
    assert totals(tmp_path) == of({"b": [0, 0], "c": [0, 3]})


def test_what_is_kept_is_not_counted_again(tmp_path: Path) -> None:
    with closing(create(tmp_path)) as store:
        commit(store, {"a": [1]})
    sql(tmp_path, "DELETE FROM passages")
    assert totals(tmp_path) == of({"a": [1]})


@pytest.mark.parametrize("kept", ["1", "[]", "{}", '{"documents": 1}', "null", "x", None, 7, b"\xff"])
def test_totals_that_no_commit_keeps_are_damage(kept: object, tmp_path: Path) -> None:
    with closing(create(tmp_path)) as store:
        commit(store, {"a": [1]})
        sql(tmp_path, "UPDATE meta SET value = ? WHERE key = 'totals'", kept)
        with pytest.raises(IndexCorruptError, match="index repair"):
            totals(tmp_path)
        with pytest.raises(IndexCorruptError, match="index repair"):
            commit(store, {"b": [0]})


@pytest.mark.parametrize("n", ["-1", "1.0", "true", "null", '"1"'])
def test_a_total_that_is_no_count_is_damage(n: str, tmp_path: Path) -> None:
    with closing(create(tmp_path)) as store:
        commit(store, {"a": [1]})
    sql(tmp_path, "UPDATE meta SET value = json_set(value, '$.tokens', json(?)) WHERE key = 'totals'", n)
    with pytest.raises(IndexCorruptError, match="totals is"):
        totals(tmp_path)
