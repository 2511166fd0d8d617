"""Whatever is done to an index, in whatever order, killed or not: it holds and finds what a dict would."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from crashing import COMMIT_TEXTS, run_until_killed, small_commits
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from indexes import Oracle, build, searching, sql

import search.nearest
from indexer import Index
from indexer.delete import delete_documents
from indexer.errors import IndexNotFoundError
from indexer.maintenance.verify import verify_index
from indexer.storage.snapshot import SnapshotReader

Source = dict[str, tuple[str, Any]]

ids = st.sampled_from([f"d{i}" for i in range(10)])
texts = st.sampled_from(["red apples", "green apples", "a river", "a bridge", "deep water", "old stones"])
values = st.sampled_from([1, 1.0, True, "1", None, 2, "x", [1]])
wanted_values = st.sampled_from([1, True, "1", 2, "x"])
sources = st.dictionaries(ids, st.tuples(texts, values), min_size=1, max_size=6)
k = st.sampled_from([1, 3, 20])
steps = st.integers(1, 30)


def records_of(source: Source) -> list[dict[str, Any]]:
    return [{"id": id_, "text": text, "v": value} for id_, (text, value) in source.items()]


def has_value(record: dict[str, Any], value: object) -> bool:
    held = record["v"]
    return held == value and isinstance(held, bool) == isinstance(value, bool)


class IndexMachine(RuleBasedStateMachine):
    @initialize(first=sources)
    def create(self, first: Source) -> None:
        self.stack = ExitStack()
        for each in (*small_commits(), patch.object(search.nearest, "EXACT_SLOTS", 3)):
            self.stack.enter_context(each)
        self.folder = Path(tempfile.mkdtemp())
        self.out = self.folder / "index"
        self.numbers = itertools.count()
        self.saved: tuple[Path, Oracle] | None = None
        self.oracle = Oracle()
        self._build(first, adds=False)
        self._open()

    def _open(self) -> None:
        self.opening = searching(self.out)
        self.searcher = self.opening.__enter__()

    def _build(self, source: Source, *, adds: bool = True) -> None:
        records = records_of(source)
        old = {id_: record for id_, (_, record) in self.oracle.held.items()}
        report = build(self.out, records, adds=adds)
        same = [record for record in records if repr(old.get(record["id"])) == repr(record)]
        assert report.unchanged == len(same)
        assert report.updated == sum(record["id"] in old for record in records) - len(same)
        self.oracle.put(records)
        assert report.documents == len(self.oracle.held)

    @rule(source=sources)
    def add(self, source: Source) -> None:
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

    @precondition(lambda self: self.oracle.held)
    @rule(value=wanted_values)
    def delete_with_a_filter(self, value: object) -> None:
        gone = [id_ for id_, (_, record) in self.oracle.held.items() if has_value(record, value)]
        assert delete_documents(self.out, [], {"v": value}).deleted == len(gone)
        self.oracle.delete(gone)

    @rule(query=texts, k=k)
    def search(self, query: str, k: int) -> None:
        self.oracle.check_searcher(self.searcher, [query, "something else"], k)

    @precondition(lambda self: self.oracle.held)
    @rule(query=texts, k=k, value=wanted_values)
    def search_with_a_filter(self, query: str, k: int, value: object) -> None:
        where = {"v": value}
        self.oracle.check_searcher(self.searcher, [query], k, where=where, keep=lambda record: has_value(record, value))

    @rule()
    def reopen(self) -> None:
        self.opening.__exit__(None, None, None)
        self._open()

    @precondition(lambda self: self.oracle.held)
    @rule()
    def rerun(self) -> None:
        self._build({id_: (record["text"], record["v"]) for id_, (_, record) in self.oracle.held.items()}, adds=False)

    @rule()
    def compact(self) -> None:
        report = Index(self.out).compact()
        assert report.documents == report.passages == len(self.oracle.held)
        assert not sql(self.out, "SELECT 1 FROM passages WHERE document IS NULL")

    @rule()
    def back_up(self) -> None:
        target = self.folder / f"copy-{next(self.numbers)}"
        assert Index(self.out).backup(target).documents == len(self.oracle.held)
        with searching(target) as searcher:
            self.oracle.check_searcher(searcher, ["a river"], 20)
        self.saved = (target, copy.deepcopy(self.oracle))

    @precondition(lambda self: self.saved)
    @rule()
    def restore(self) -> None:
        self.opening.__exit__(None, None, None)
        shutil.rmtree(self.out)
        target, self.oracle = self.saved
        target.rename(self.out)
        self.saved = None
        self._open()

    @rule(operation=st.sampled_from(["add", "delete", "compact", "backup"]), source=sources, step=steps)
    def crash(self, operation: str, source: Source, step: int) -> None:
        """Kill an operation at one of its steps; what it had committed stands, and nothing else."""
        match operation:
            case "add":
                records = records_of(source)
                lived = run_until_killed(step, "add", self.out, records)
                n_windows = -(-len(records) // COMMIT_TEXTS)
                states = [copy.deepcopy(self.oracle).put(records[: n * COMMIT_TEXTS]) for n in range(n_windows + 1)]
                self._become_one_of(states[-1:] if lived else states)
            case "delete":
                lived = run_until_killed(step, "delete", self.out, sorted(source))
                after = copy.deepcopy(self.oracle)
                after.delete(source)
                self._become_one_of([after] if lived else [self.oracle, after])
            case "compact":
                run_until_killed(step, "compact", self.out)
                self._become_one_of([self.oracle])
            case "backup":
                self._crash_in_backup(step)

    def _crash_in_backup(self, step: int) -> None:
        target = self.folder / f"copy-{next(self.numbers)}"
        if not run_until_killed(step, "backup", self.out, target):
            try:
                SnapshotReader(target).close()
            except IndexNotFoundError:
                return
        assert verify_index(target, deep=True) == []
        assert held_by(target) == held_by(self.out)

    def _become_one_of(self, states: list[Oracle]) -> None:
        """Take the state, of those that may be, that the index is in: no half of a commit, and no other."""
        held = held_by(self.out)
        fitting = [state for state in states if held == {id_: record for id_, (_, record) in state.held.items()}]
        assert fitting, f"the index holds {held}, which no commit made"
        self.oracle = fitting[0]

    @invariant()
    def is_as_large_as_the_dict(self) -> None:
        if hasattr(self, "searcher"):
            self.searcher.refresh()
            assert len(self.searcher) == len(self.oracle.held)

    def teardown(self) -> None:
        if hasattr(self, "searcher"):
            self.oracle.check_searcher(self.searcher, ["a bridge"], 20)
            self.opening.__exit__(None, None, None)
            problems = verify_index(self.out, deep=True)
            self.stack.close()
            shutil.rmtree(self.folder)
            assert problems == []


def held_by(out: Path) -> dict[str, dict[str, Any]]:
    """Return the records that an index holds, as its database says once it is opened."""
    with closing(SnapshotReader(out)):  # a commit that was cut off is rolled back here
        rows = sql(out, "SELECT id, text, metadata FROM documents")
    return {id_: {"id": id_, "text": text, **json.loads(metadata)} for id_, text, metadata in rows}


def test_an_index_is_a_dict(torture: bool) -> None:
    examples, n_steps = (200, 50) if torture else (50, 30)
    run_state_machine_as_test(
        IndexMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=n_steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
