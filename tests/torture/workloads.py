"""What the rig disturbs: small runs of the program whose every committed state is known beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

from fakes import fake_vector
from indexes import Oracle, Record, build, records

from indexer.delete import delete_documents
from indexer.maintenance.backup import backup_index
from indexer.maintenance.compact import compact_index

COMMIT_TEXTS = 12
K = 5
QUERIES = ("text number 3", "what is it")
Tell = Callable[[int], None]  # takes how many states are committed


@contextmanager
def small_commits(n_texts: int = COMMIT_TEXTS) -> Iterator[None]:
    """Commit every few documents, never by the clock."""
    with (
        patch("indexer.build.COMMIT_TEXTS", n_texts),
        patch("indexer.ingest.COMMIT_TEXTS", n_texts),
        patch("indexer.build.COMMIT_SECONDS", 1e9),
        patch("indexer.ingest.COMMIT_SECONDS", 1e9),
    ):
        yield


@contextmanager
def rebuilding() -> Iterator[None]:
    """Let every addition make a new generation."""
    with patch("indexer.upkeep.TAIL_SLOTS", 0):
        yield


class State:
    """Documents that a reader may find, and what it must answer then."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.documents = {id_: record for id_, (_, record) in oracle.held.items()}

    @cached_property
    def answers(self) -> list[list[tuple[str, float]]]:
        """The K nearest (id, cosine) of each query."""
        return [self._oracle.nearest(fake_vector(query), K, lambda _: True) for query in QUERIES]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One run: `states[0]` is what stands before it, None for no index; each later one is one commit further.

    `run` may be called again after it was cut off, and then ends in the last state. `commands` are the same work as the
    command line does it, each with the states before and after it; `{root}` stands for the root, where `prepare` leaves
    the sources. `output` is the directory below the root that `states` speaks of, `untouched` an index only read.
    With `rebuilds` every addition makes a new generation.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path, Tell], None]
    commands: Sequence[tuple[int, int, str]]
    states: Sequence[State | None]
    output: str = "index"
    untouched: str | None = None
    rebuilds: bool = False

    @property
    def last(self) -> int:
        """Number of the last state."""
        return len(self.states) - 1


def _history(oracle: Oracle, source: Sequence[Record]) -> Iterator[State]:
    """Yield the states that a build of a source commits, one for each window."""
    for start in range(0, len(source), COMMIT_TEXTS):
        oracle.put(source[start : start + COMMIT_TEXTS])
        yield State(deepcopy(oracle))


def _build(root: Path, source: Sequence[Record], tell: Tell, first: int, **options: object) -> None:
    """Build, and tell after each commit that one more state than `first` stands."""

    def progress(event: object) -> None:
        n_documents = getattr(event, "n_documents", 0)
        tell(first + -(-n_documents // COMMIT_TEXTS) if n_documents else first)

    build(root / "index", list(source), on_progress=progress, **options)


def _prepare(base: Sequence[Record], *sources: Sequence[Record]) -> Callable[[Path], None]:
    """Return what builds the index to begin with, if there is one, and writes the sources of the commands."""

    def prepare(root: Path) -> None:
        if base:
            build(root / "index", list(base))
        for number, source in enumerate(sources):
            (root / f"{number}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in source))

    return prepare


def create() -> Workload:
    """A new index: no index, an empty one, then commit by commit."""
    source = records(40)

    def run(root: Path, tell: Tell) -> None:
        _build(root, source, lambda n: tell(n if n > 1 else 0), 1)
        tell(len(states) - 1)

    states = [None, State(Oracle()), *_history(Oracle(), source)]
    commands = [(1, len(states) - 1, "build {root}/0.jsonl --out {root}/index")]
    return Workload(name="create", prepare=_prepare([], source), run=run, commands=commands, states=states)


def append() -> Workload:
    """More documents for an index with a generation."""
    old, new = records(30), records(40, 30)

    def run(root: Path, tell: Tell) -> None:
        _build(root, new, tell, 0, adds=True)
        tell(len(states) - 1)

    oracle = Oracle().put(old)
    states = [State(deepcopy(oracle)), *_history(oracle, new)]
    commands = [(0, len(states) - 1, "add {root}/index {root}/0.jsonl")]
    return Workload(name="append", prepare=_prepare(old, new), run=run, commands=commands, states=states)


def update_and_delete() -> Workload:
    """Changed texts, changed metadata, then deletion by id and by filter."""
    old = records(36)
    new = [
        {**record, "text": f"changed {record['text']}"}
        if i % 3 == 0
        else {**record, "n": 1000 + i}
        if i % 3 == 1
        else record
        for i, record in enumerate(old)
    ]
    gone = ["d1", "d2", "d3", "d30", "nobody"]

    def run(root: Path, tell: Tell) -> None:
        _build(root, new, tell, 0, adds=True)
        delete_documents(root / "index", gone)
        tell(len(states) - 2)
        delete_documents(root / "index", [], {"even": True})
        tell(len(states) - 1)

    oracle = Oracle().put(old)
    states = [State(deepcopy(oracle)), *_history(oracle, new)]
    oracle.delete(gone)
    states.append(State(deepcopy(oracle)))
    oracle.delete([id_ for id_, (_, record) in oracle.held.items() if record["even"]])
    states.append(State(deepcopy(oracle)))
    last = len(states) - 1
    commands = [
        (0, last - 2, "add {root}/index {root}/0.jsonl"),
        (last - 2, last - 1, f"delete {{root}}/index {' '.join(gone)}"),
        (last - 1, last, "delete {root}/index --where even=true"),
    ]
    return Workload(name="update and delete", prepare=_prepare(old, new), run=run, commands=commands, states=states)


def rebuild() -> Workload:
    """A commit, then a new generation in the place of the old one, twice."""
    old, new, newer = records(30), records(12, 30), records(12, 42)

    def run(root: Path, tell: Tell) -> None:
        with rebuilding():
            _build(root, new, tell, 0, adds=True)
            tell(1)
            _build(root, newer, tell, 1, adds=True)
        tell(2)

    oracle = Oracle().put(old)
    states = [State(deepcopy(oracle)), *_history(oracle, new), *_history(oracle, newer)]
    commands = [(0, 1, "add {root}/index {root}/0.jsonl"), (1, 2, "add {root}/index {root}/1.jsonl")]
    return Workload(
        name="rebuild", prepare=_prepare(old, new, newer), run=run, commands=commands, states=states, rebuilds=True
    )


def compact() -> Workload:
    """Dead slots given back: another vector file, another generation, the same documents."""
    old = records(36)
    gone = [f"d{i}" for i in range(0, 36, 5)]
    changed = [{**record, "text": f"changed {record['text']}"} for record in old[20:30] if record["id"] not in gone]

    def prepare(root: Path) -> None:
        build(root / "index", list(old))
        delete_documents(root / "index", gone)
        build(root / "index", list(changed), adds=True)

    def run(root: Path, tell: Tell) -> None:
        compact_index(root / "index")
        tell(1)

    oracle = Oracle().put(old)
    oracle.delete(gone)
    state = State(oracle.put(changed))
    return Workload(
        name="compact", prepare=prepare, run=run, commands=[(0, 1, "compact {root}/index")], states=[state, state]
    )


def backup() -> Workload:
    """A copy of an index, which is an index itself or none."""
    old, gone = records(36), ["d1", "d8"]

    def prepare(root: Path) -> None:
        build(root / "index", list(old))
        delete_documents(root / "index", gone)

    def run(root: Path, tell: Tell) -> None:
        target = root / "copy"
        if not (target / "index.db").exists():
            backup_index(root / "index", target)
        tell(1)

    oracle = Oracle().put(old)
    oracle.delete(gone)
    return Workload(
        name="backup",
        prepare=prepare,
        run=run,
        commands=[(0, 1, "backup {root}/index {root}/copy")],
        states=[None, State(oracle)],
        output="copy",
        untouched="index",
    )


def grow(n: int) -> Workload:
    """Documents of a page each in one commit (with `small_commits(n)`), then a generation over all of them."""
    old = records(20)
    new = [{**record, "text": f"{record['text']} " + f"filler {record['n']} " * 200} for record in records(n, 20)]

    def run(root: Path, tell: Tell) -> None:
        with rebuilding():
            build(root / "index", list(new), adds=True)
        tell(1)

    oracle = Oracle().put(old)
    states = [State(deepcopy(oracle)), State(oracle.put(new))]
    commands = [(0, 1, "add {root}/index {root}/0.jsonl")]
    return Workload(name="grow", prepare=_prepare(old, new), run=run, commands=commands, states=states, rebuilds=True)


WORKLOADS = {
    workload.name: workload for workload in (create(), append(), update_and_delete(), rebuild(), compact(), backup())
}
