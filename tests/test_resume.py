"""Builds that are cut off, by an error, by Ctrl-C or by SIGKILL: run again, they end where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeBatch, FakeEncoder
from indexes import build, searching, sql

import indexer.build
import indexer.ingest
from indexer.maintenance.verify import verify_index
from indexer.storage.files import is_own_name
from indexer.storage.snapshot import SnapshotReader

N, COMMIT_TEXTS = 600, 50
QUERIES = ["the same words", "text number 7", *(f"query {i}" for i in range(10))]
SOURCE = [
    {"id": f"d{i}", "text": "the same words" if i % 5 == 0 else f"text number {i} " + "w" * (i % 13), "n": i}
    for i in range(N)
]
N_TEXTS = len({record["text"] for record in SOURCE})

CHILD = """
import os, signal, sys, time
from pathlib import Path
source, out, log, point, nth, seconds = sys.argv[1:]
told = {0}
import indexer.build, indexer.ingest
from fakes import FakeEncoder
from indexer.build import BuildOptions, run_build

indexer.build.COMMIT_TEXTS = indexer.ingest.COMMIT_TEXTS = 50
indexer.build.COMMIT_SECONDS = indexer.ingest.COMMIT_SECONDS = float(seconds)

class Slow(FakeEncoder):
    def encode_stream(self, texts):
        for batch in super().encode_stream(texts):
            with open(log, "a") as file:
                file.write("x" * len(batch.positions))
            if not point:
                time.sleep(60 if len(told) > int(nth) else 0.005)
            yield batch

def tell(progress):
    told.add(progress.n_encoded)
    print(progress.n_encoded, flush=True)

def die_after(point, nth):
    module, _, path = point.partition(":")
    owner = __import__(module, fromlist=["x"])
    *above, name = path.split(".")
    for each in above:
        owner = getattr(owner, each)
    real, calls = getattr(owner, name), 0
    def call(*arguments, **named):
        nonlocal calls
        result = real(*arguments, **named)
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, call)

if point:
    die_after(point, int(nth))
encoder = Slow()
run_build([Path(source)], Path(out), BuildOptions(), load_encoder=encoder.load, on_progress=tell)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "corpus.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in SOURCE), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (indexer.ingest, indexer.build):
        monkeypatch.setattr(module, "COMMIT_TEXTS", COMMIT_TEXTS)


def answers(out: Path) -> list[list[tuple[str, float, Any]]]:
    with searching(out) as searcher:
        batches = [searcher.search_batch(QUERIES, 30), searcher.search_batch(QUERIES, 30, where={"n": {"$lt": 99}})]
        return [[(hit.id, hit.score, hit.metadata) for hit in hits] for batch in batches for hits in batch]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, source: Path) -> list[list[tuple[str, float, Any]]]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert build(out, source).encoded == N_TEXTS
    return answers(out)


def check_sound(out: Path, undisturbed: object) -> None:
    """Check that an index is complete, whole, without strays, and gives the answers of an undisturbed build."""
    reader = SnapshotReader(out)
    snapshot = reader.snapshot()
    assert reader.totals().documents == snapshot.n_rows == N
    reader.close()
    assert snapshot.is_complete
    assert verify_index(out, deep=True) == []
    assert len([path for path in out.iterdir() if is_own_name(path.name)]) == 2
    assert answers(out) == undisturbed


class Failing(FakeEncoder):
    """Raises at the n-th batch."""

    def __init__(self, n: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = n, error

    def encode_stream(self, texts: Sequence[str]) -> Iterator[FakeBatch]:
        for batch in super().encode_stream(texts):
            if self.left == 0:
                raise self.error
            self.left -= 1
            yield batch


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the GPU fell off")], ids=["ctrl-c", "error"])
@pytest.mark.parametrize("n", [0, 1, 9, 40, 68])
def test_an_encoder_that_fails_at_any_batch_costs_at_most_one_commit(
    tmp_path: Path, source: Path, undisturbed: object, n: int, error: BaseException
) -> None:
    first, second = Failing(n, error), FakeEncoder()
    with pytest.raises(type(error)):
        build(tmp_path, source, encoder=first)
    n_committed = sql(tmp_path, "SELECT count(DISTINCT text) FROM documents")[0][0]
    report = build(tmp_path, source, encoder=second)
    assert len(second.texts) == N_TEXTS - n_committed == report.encoded
    assert len(first.texts) + len(second.texts) <= N_TEXTS + COMMIT_TEXTS
    check_sound(tmp_path, undisturbed)


@pytest.mark.parametrize("n", [0, 1, 49, 50, 51, 320, N])
def test_a_source_that_fails_at_any_record_loses_nothing_that_was_committed(
    tmp_path: Path, source: Path, undisturbed: object, n: int
) -> None:
    def breaks() -> Iterator[dict[str, Any]]:
        yield from SOURCE[:n]
        raise KeyboardInterrupt

    first, second = FakeEncoder(), FakeEncoder()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, breaks(), encoder=first)
    # The window that the model was at work on when the next one was read is not committed.
    assert sql(tmp_path, "SELECT count(*) FROM documents") == [(max(n // COMMIT_TEXTS - 1, 0) * COMMIT_TEXTS,)]
    build(tmp_path, source, encoder=second)
    assert N_TEXTS <= len(first.texts) + len(second.texts) <= N_TEXTS + COMMIT_TEXTS
    check_sound(tmp_path, undisturbed)


def child(source: Path, out: Path, *, point: str = "", nth: int = 0, seconds: float = 2.0) -> Any:
    """Start a build in a process of its own; what it encodes is counted in the file `encoded` beside the index.

    It kills itself after the n-th call at a point of the program; without a point it stands still after n commits.
    """
    log = out.parent / "encoded"
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, (source, out, log, point, nth, seconds))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )


@pytest.mark.parametrize("seconds", [2.0, 0.02], ids=["commits by count", "commits by time"])
def test_a_build_killed_after_its_1st_3rd_and_5th_commit_is_resumed(
    tmp_path: Path, source: Path, undisturbed: object, seconds: float
) -> None:
    out = tmp_path / "index"
    n_before = 0
    for n_commits in (1, 3, 5):
        with child(source, out, nth=n_commits, seconds=seconds) as process:
            told: set[int] = {0}
            for line in process.stdout:
                told.add(int(line))
                if len(told) > n_commits:
                    break
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        n_texts = sql(out, "SELECT count(DISTINCT text) FROM documents")[0][0]
        assert n_texts >= n_before + max(told)  # what was told to be committed is there
        with searching(out) as searcher:
            assert not searcher.is_complete
            assert len(searcher.search("x", N)) == sql(out, "SELECT count(*) FROM documents")[0][0]
        n_before = n_texts
    report = build(out, source)
    assert report.encoded == N_TEXTS - n_before
    n_encoded = (tmp_path / "encoded").stat().st_size + report.encoded
    assert N_TEXTS <= n_encoded <= N_TEXTS + 3 * COMMIT_TEXTS
    check_sound(out, undisturbed)


POINTS = [
    ("indexer.storage.store:create_vector_file", 1),
    ("indexer.storage.store:migrate", 1),
    ("indexer.storage.vectors:write_all", 3),
    ("indexer.storage.vectors:VectorWriter.append", 3),
    ("indexer.storage.metadata:MetadataTable.finish", 3),
    ("indexer.storage.store:Store.commit", 3),
    ("indexer.ann.generation:_write", 1),
    ("indexer.upkeep:build_generation", 1),
    ("indexer.storage.store:Store.replace_generation", 1),
]


@pytest.mark.parametrize(("point", "nth"), POINTS, ids=[point.split(":")[1] for point, _ in POINTS])
def test_a_build_killed_at_any_step_is_resumed(
    tmp_path: Path, source: Path, undisturbed: object, point: str, nth: int
) -> None:
    out = tmp_path / "index"
    process = child(source, out, point=point, nth=nth)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    report = build(out, source)
    n_encoded = ((tmp_path / "encoded").stat().st_size if (tmp_path / "encoded").exists() else 0) + report.encoded
    assert N_TEXTS <= n_encoded <= N_TEXTS + COMMIT_TEXTS
    check_sound(out, undisturbed)


def test_the_source_may_have_changed_and_stand_in_another_order_when_a_build_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, SOURCE, encoder=Failing(40, KeyboardInterrupt()))
    n_committed = sql(tmp_path, "SELECT count(*) FROM documents")[0][0]
    assert 0 < n_committed < N
    second = FakeEncoder()
    changed = [{**SOURCE[1], "text": "changed since"}, *reversed(SOURCE[2:]), {"id": "late", "text": "late"}]
    report = build(tmp_path, changed, encoder=second)
    assert report.unchanged == n_committed - 2
    assert len(second.texts) == len(set(second.texts))
    assert {"changed since", "late"} <= set(second.texts)
    assert report.documents == N + 1  # d0 left the source, but nobody asked to prune
    assert verify_index(tmp_path, deep=True) == []
