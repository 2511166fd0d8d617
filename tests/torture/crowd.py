"""The parts of test_crowd.py, each a process: writers that change their own documents, and readers that check.

Every snapshot says itself what it holds. Writer w takes its documents from state to state, one commit each, as its
seed says. An odd step puts documents, among them its clock, whose metadata have the number of the step, and its hand;
an even step deletes some, among them the hand. A reader asks for all clocks and hands and for its queries in one batch,
that is in one snapshot, and so knows what else must be there.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from fakes import fake_vector
from indexes import build, searching

import indexer.upkeep
import search.nearest
from indexer.delete import delete_documents
from indexer.errors import IndexLockedError
from indexer.maintenance.compact import compact_index
from search import Hits

N_WRITERS = 3
DOCUMENTS = 60
QUERIES = 6
K = 10
PAUSE_S = 0.002
EXACT_SLOTS = 40
TAIL_SLOTS = 100

State = dict[str, tuple[str, int]]
"""Id to text and the metadata field n, of one writer's documents."""


@cache
def vector(text: str) -> np.ndarray:
    """Return the vector of a text as it is stored, (d,) float64."""
    return fake_vector(text).astype(np.float16).astype(np.float64)


def clock(writer: int) -> str:
    return f"clock-{writer}"


def hand(writer: int) -> str:
    return f"hand-{writer}"


class Script:
    """What a writer does, and its documents after each number of steps."""

    def __init__(self, writer: int) -> None:
        self.writer = writer
        self._chance = random.Random(writer)
        self._steps: list[tuple[State, list[str]]] = []
        self._states: list[State] = [{}]

    def step(self, number: int) -> tuple[State, list[str]]:
        """Return what leads to a state: documents put and ids deleted, one of them empty."""
        while len(self._steps) < number:
            self._add_step(len(self._steps) + 1)
        return self._steps[number - 1]

    def state(self, number: int) -> State:
        self.step(number)
        return self._states[number]

    def _add_step(self, number: int) -> None:
        held, put, gone = dict(self._states[-1]), State(), list[str]()
        if number % 2:
            for _ in range(self._chance.randint(1, 8)):
                id_ = f"w{self.writer}-{self._chance.randrange(DOCUMENTS)}"
                changes_metadata_alone = id_ in held and self._chance.random() < 0.3
                put[id_] = (held[id_][0] if changes_metadata_alone else f"{id_} version {number}", number)
            put |= {mark: (mark, number) for mark in (clock(self.writer), hand(self.writer))}
        else:
            others = sorted(held.keys() - {clock(self.writer), hand(self.writer)})
            gone = [hand(self.writer), *self._chance.sample(others, min(len(others), 3))]
        self._steps.append((put, gone))
        self._states.append({id_: kept for id_, kept in {**held, **put}.items() if id_ not in gone})


@dataclass(kw_only=True)
class Report:
    """What a process did; times are those of single searches, commits that came in between included."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    search_ms: list[float] = field(default_factory=list)
    refresh_ms: list[float] = field(default_factory=list)


def records_of(put: State) -> list[dict[str, object]]:
    return [{"id": id_, "text": text, "n": n, "mark": id_ == text} for id_, (text, n) in put.items()]


def create(out: Path) -> None:
    """Make an index in which every writer has made its first step."""
    for writer in range(N_WRITERS):
        build(out, records_of(Script(writer).step(1)[0]), adds=writer > 0)


def write(out: Path, writer: int, until_s: float, compact_every: int) -> tuple[int, Report]:
    """Make step after step, one that is refused again, and return how many were made."""
    script, report, number = Script(writer), Report(), 1
    with patch.object(indexer.upkeep, "TAIL_SLOTS", TAIL_SLOTS):
        while time.monotonic() < until_s:
            put, gone = script.step(number + 1)
            try:
                if put:
                    build(out, records_of(put), adds=True)
                else:
                    delete_documents(out, gone)
                number += 1
                report.counts["commits"] += 1
                if compact_every and number % compact_every == 0:
                    compact_index(out)
                    report.counts["compactions"] += 1
            except IndexLockedError as error:
                report.counts["refusals"] += 1
                if "is being written by process " not in str(error) or "\n" in str(error):
                    report.wrong.append(f"a rival was told: {error}")
            time.sleep(PAUSE_S)
    return number, report


def read(out: Path, reader: int, until_s: float) -> Report:
    """Search without a pause and compare every hit with what its snapshot says it holds."""
    report, chance = Report(), random.Random(100 + reader)
    scripts = [Script(writer) for writer in range(N_WRITERS)]
    marks = [mark(writer) for writer in range(N_WRITERS) for mark in (clock, hand)]
    numbers = [1] * N_WRITERS
    with ExitStack() as stack:
        stack.enter_context(patch.object(search.nearest, "EXACT_SLOTS", EXACT_SLOTS))
        searcher = stack.enter_context(searching(out))
        while time.monotonic() < until_s:
            texts = [_query(scripts, numbers, chance) for _ in range(QUERIES)]
            least = chance.choice([0, max(numbers) - 20])
            where = {"$or": [{"n": {"$gte": least}}, {"mark": True}]} if least > 0 else None
            began_s = time.monotonic()
            if chance.random() < 0.5:  # the search must see a commit by itself as well
                searcher.refresh()
                report.refresh_ms.append(1000 * (time.monotonic() - began_s))
                began_s = time.monotonic()
            answers = searcher.search_batch([*marks, *texts], K, where=where)
            report.search_ms.append(1000 * (time.monotonic() - began_s))
            numbers = [_number(writer, answers[2 * writer], answers[2 * writer + 1]) for writer in range(N_WRITERS)]
            held = {
                id_: kept for script, n in zip(scripts, numbers, strict=True) for id_, kept in script.state(n).items()
            }
            kept = {id_: (text, n) for id_, (text, n) in held.items() if where is None or n >= least or id_ == text}
            for text, hits in zip([*marks, *texts], answers, strict=True):
                _check(text, hits, kept, report)
    return report


def _query(scripts: list[Script], numbers: list[int], chance: random.Random) -> str:
    """Return the text of a document that was there lately."""
    writer = chance.randrange(N_WRITERS)
    return chance.choice([text for text, _ in scripts[writer].state(numbers[writer]).values()])


def _number(writer: int, clock_hits: Hits, hand_hits: Hits) -> int:
    number = clock_hits[0].metadata["n"]
    assert clock_hits[0].id == clock(writer), clock_hits[0]
    return number + (hand_hits[0].id != hand(writer))


def _check(text: str, hits: Hits, kept: State, report: Report) -> None:
    """Compare the hits of a query with the K nearest of what was there: which, in which order, and all they carry."""
    ids = list(kept)
    scores = np.stack([vector(kept[id_][0]) for id_ in ids]) @ fake_vector(text).astype(np.float64)
    best = np.argsort(-scores)[:K]
    expected = [(ids[i], kept[ids[i]][0], kept[ids[i]][1]) for i in best]
    found = [(hit.id, hit.text, hit.metadata["n"]) for hit in hits]
    report.counts["hits"] += len(hits)
    if found != expected or not np.allclose(
        [hit.score for hit in hits], np.minimum(scores[best], 1.0), rtol=0, atol=1e-9
    ):
        report.wrong.append(f"{text!r} gave {found}, its snapshot holds {expected}")
