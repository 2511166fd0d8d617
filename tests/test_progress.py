"""Work that can take long tells how far it is, and the command line shows it without being in the way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
from indexes import build, flip_byte, only, records

import indexer.console
from indexer import Index
from indexer.console import ProgressDisplay
from indexer.maintenance.repair import repair_index
from indexer.progress import OnProgress, Phase, Progress

WORK: dict[str, tuple[Callable[[Index, OnProgress], object], list[Phase]]] = {
    "verify": (lambda index, tell: index.verify(deep=True, on_progress=tell), [Phase.CHECK]),
    "compact": (lambda index, tell: index.compact(on_progress=tell), [Phase.COPY, Phase.INDEX]),
    "backup": (
        lambda index, tell: index.backup(index.directory.with_name("copy"), on_progress=tell),
        [Phase.COPY, Phase.CHECK],
    ),
    "take in": (lambda index, tell: Index.take_in(index.directory, on_progress=tell), [Phase.CHECK, Phase.INDEX]),
    "repair": (
        lambda index, tell: index.repair(on_progress=tell),
        [Phase.CHECK, Phase.INDEX, Phase.CHECK],
    ),
}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    out = tmp_path / "index"
    build(out, records(1_200))
    index = Index(out)
    index.delete([f"d{i}" for i in range(0, 1_200, 3)])
    return index


@pytest.mark.parametrize("name", WORK)
def test_long_work_tells_its_phases_and_how_far_each_is_up_to_its_end(index: Index, name: str) -> None:
    work, phases = WORK[name]
    seen: list[Progress] = []
    work(index, seen.append)
    assert [phase for phase, _ in groupby(p.phase for p in seen)] == phases
    for phase in phases:
        shares = [p.fraction for p in seen if p.phase is phase and p.fraction is not None]
        assert shares[-1] == 1.0
        if name != "repair":  # which checks again in the end
            assert shares == sorted(shares)
        if phase is Phase.CHECK:
            assert len(set(shares)) > 5


def test_mending_vectors_tells_that_the_model_is_loaded_and_the_rows_are_written(index: Index) -> None:
    from fakes import FakeEncoder

    flip_byte(only(index.directory, "vectors-*"), 5_000)
    seen: list[Progress] = []
    report = repair_index(
        index.directory, encode_damaged=True, load_encoder=FakeEncoder().load, on_progress=seen.append
    )
    assert report.mended
    assert not report.left
    phases = [phase for phase, _ in groupby(p.phase for p in seen)]
    assert phases[:4] == [Phase.CHECK, Phase.LOAD, Phase.COPY, Phase.INDEX]


def test_an_interrupt_while_it_tells_leaves_an_index_that_is_sound(index: Index) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase is Phase.COPY:
            raise KeyboardInterrupt

    before = index.info()
    with pytest.raises(KeyboardInterrupt):
        index.compact(on_progress=stop)
    assert index.verify(deep=True) == []
    assert index.info() == before


def test_in_a_pipe_a_check_says_something_only_when_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProgressDisplay() as display:
        display(Progress(phase=Phase.CHECK, fraction=0.25))
        display(Progress(phase=Phase.INDEX, fraction=0.0))
        assert capsys.readouterr().err == "finishing: building the search index: 0%\n"
        monkeypatch.setattr(indexer.console, "_LINE_EVERY_S", 0.0)
        display(Progress(phase=Phase.CHECK, fraction=0.5))
        assert capsys.readouterr().err == "checking: 50%\n"
