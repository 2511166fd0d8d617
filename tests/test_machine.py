"""Whatever is done to an index, in whatever order: it holds and finds what a dict would."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from indexes import Oracle, build, searching

import indexer.build
import indexer.ingest
import search.nearest
from indexer.delete import delete_documents
from indexer.verify import verify_index

ids = st.sampled_from([f"d{i}" for i in range(10)])
texts = st.sampled_from(["red apples", "green apples", "a river", "a bridge", "deep water", "old stones"])
values = st.sampled_from([1, 1.0, True, "1", None, 2, "x", [1]])
sources = st.dictionaries(ids, st.tuples(texts, values), min_size=1, max_size=6)
k = st.sampled_from([1, 3, 20])


class IndexMachine(RuleBasedStateMachine):
    @initialize(first=sources)
    def create(self, first: dict[str, tuple[str, Any]]) -> None:
        self.patched = pytest.MonkeyPatch()
        for module in (indexer.ingest, indexer.build):
            self.patched.setattr(module, "COMMIT_TEXTS", 3)
        self.patched.setattr(indexer.build, "TAIL_SLOTS", 6)
        self.patched.setattr(search.nearest, "EXACT_SLOTS", 3)
        self.folder = Path(tempfile.mkdtemp())
        self.out = self.folder / "index"
        self.oracle = Oracle()
        self._build(first, adds=False)
        self._open()

    def _open(self) -> None:
        self.opening = searching(self.out)
        self.searcher = self.opening.__enter__()

    def _build(self, source: dict[str, tuple[str, Any]], *, adds: bool = True) -> None:
        records = [{"id": id_, "text": text, "v": value} for id_, (text, value) in source.items()]
        old = {id_: record for id_, (_, record) in self.oracle.held.items()}
        report = build(self.out, records, adds=adds)
        same = [record for record in records if repr(old.get(record["id"])) == repr(record)]
        assert report.unchanged == len(same)
        assert report.updated == sum(record["id"] in old for record in records) - len(same)
        self.oracle.put(records)
        assert report.documents == len(self.oracle.held)

    @rule(source=sources)
    def add(self, source: dict[str, tuple[str, Any]]) -> None:
        self._build(source)

    @rule(value=values)
    def change_metadata_alone(self, value: object) -> None:
        texts_now = {id_: record["text"] for id_, (_, record) in self.oracle.held.items()}
        self._build({id_: (text, value) for id_, text in texts_now.items()})

    @rule(gone=st.sets(ids, max_size=4))
    def delete(self, gone: set[str]) -> None:
        report = delete_documents(self.out, sorted(gone))
        assert report.deleted == len(gone & set(self.oracle.held))
        assert report.unknown == len(gone) - report.deleted
        self.oracle.delete(gone)

    @rule(query=texts, k=k)
    def search(self, query: str, k: int) -> None:
        self.oracle.check_searcher(self.searcher, [query, "something else"], k)

    @rule(query=texts, k=k, value=st.sampled_from([1, True, "1", 2, "x"]))
    def search_with_a_filter(self, query: str, k: int, value: object) -> None:
        def keep(record: dict[str, Any]) -> bool:
            held = record["v"]
            return held == value and isinstance(held, bool) == isinstance(value, bool)

        if self.oracle.held:
            self.oracle.check_searcher(self.searcher, [query], k, where={"v": value}, keep=keep)

    @rule()
    def reopen(self) -> None:
        self.opening.__exit__(None, None, None)
        self._open()

    @rule()
    def rerun(self) -> None:
        held = {id_: (record["text"], record["v"]) for id_, (_, record) in self.oracle.held.items()}
        if held:
            self._build(held, adds=False)

    @invariant()
    def is_as_large_as_the_dict(self) -> None:
        if hasattr(self, "searcher"):
            self.searcher.refresh()
            assert len(self.searcher) == len(self.oracle.held)

    def teardown(self) -> None:
        if hasattr(self, "searcher"):
            self.opening.__exit__(None, None, None)
            problems = verify_index(self.out, deep=True) if self.oracle.held else []
            self.patched.undo()
            shutil.rmtree(self.folder)
            assert problems == []


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
