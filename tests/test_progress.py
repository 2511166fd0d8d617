"""Work that can take long tells how far it is, and the command line shows it without being in the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import StringIO
from itertools import groupby
from pathlib import Path

import pytest
from fakes import FakeEncoder
from indexes import Oracle, build, flip_byte, only, records, searching
from rich.console import Console

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
    told = [(phase, [p.fraction for p in several]) for phase, several in groupby(seen, lambda p: p.phase)]
    assert [phase for phase, _ in told] == phases
    for phase, fractions in told:
        shares = [fraction for fraction in fractions if fraction is not None]
        assert shares == sorted(shares)
        assert (shares[0] >= 0.0, shares[-1]) == (True, 1.0)
        if phase is Phase.CHECK:
            assert len(set(shares)) > 2


@pytest.mark.parametrize("name", WORK)
def test_work_on_an_index_without_documents_tells_its_end(tmp_path: Path, name: str) -> None:
    build(tmp_path / "index", [])
    seen: list[Progress] = []
    WORK[name][0](Index(tmp_path / "index"), seen.append)
    if name != "compact":  # which has nothing to do
        assert seen[-1].fraction == 1.0


def test_mending_vectors_tells_that_the_model_is_loaded_and_the_rows_are_written(index: Index) -> None:
    flip_byte(only(index.directory, "vectors-*"), 5_000)
    seen: list[Progress] = []
    report = repair_index(
        index.directory, encode_damaged=True, load_encoder=FakeEncoder().load, on_progress=seen.append
    )
    assert report.mended
    assert not report.left
    phases = [phase for phase, _ in groupby(p.phase for p in seen)]
    assert phases == [Phase.CHECK, Phase.LOAD, Phase.COPY, Phase.INDEX, Phase.CHECK]


@pytest.mark.parametrize("name", WORK)
def test_an_interrupt_at_any_step_leaves_an_index_that_is_sound_and_the_work_can_be_done_again(
    tmp_path: Path, name: str
) -> None:
    work, _ = WORK[name]
    build(tmp_path / "index", records(60))
    whole, oracle = Index(tmp_path / "index"), Oracle().put(records(60))
    gone = [f"d{i}" for i in range(0, 60, 3)]
    whole.delete(gone)
    oracle.delete(gone)
    n_steps = 0

    def count(_progress: Progress) -> None:
        nonlocal n_steps
        n_steps += 1

    work(Index(shutil.copytree(whole.directory, tmp_path / "counted" / "index")), count)
    assert n_steps >= 2
    for stop_at in range(n_steps):
        index = Index(shutil.copytree(whole.directory, tmp_path / str(stop_at) / "index"))
        left = stop_at

        def stop(_progress: Progress) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work(index, stop)
        left = n_steps
        with searching(index.directory) as searcher:
            oracle.check_searcher(searcher, ["text number 7"], 100)
        work(index, count)
        assert index.verify(deep=True) == []


@pytest.mark.parametrize("name", [name for name, (_, phases) in WORK.items() if Phase.CHECK in phases])
def test_an_error_of_the_callback_is_no_damage_of_the_index(index: Index, name: str) -> None:
    def divide(progress: Progress) -> None:
        _ = int(progress.fraction * 100)  # type: ignore[operator] - the mistake: it is None at first

    with pytest.raises(TypeError, match="NoneType"):
        WORK[name][0](index, divide)
    assert index.verify(deep=True) == []


def test_in_a_pipe_a_check_says_something_only_when_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProgressDisplay(each_phase=True) as display:
        display(Progress(phase=Phase.INDEX, fraction=0.0))
        assert capsys.readouterr().err == "finishing: building the search index: 0%\n"
    with ProgressDisplay() as display:
        display(Progress(phase=Phase.CHECK, fraction=0.25))
        display(Progress(phase=Phase.INDEX, fraction=0.0))
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(indexer.console, "_LINE_EVERY_S", 0.0)
        display(Progress(phase=Phase.CHECK, fraction=0.5))
        assert capsys.readouterr().err == "checking: 50%\n"


def test_on_a_terminal_each_phase_begins_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=StringIO(), force_terminal=True)
    monkeypatch.setattr(indexer.console, "Console", lambda **_: console)
    with ProgressDisplay() as display:
        for progress, share in (
            (Progress(phase=Phase.COPY, fraction=0.5), 0.5),
            (Progress(phase=Phase.COPY, fraction=1.0), None),
            (Progress(phase=Phase.CHECK), None),
            (Progress(phase=Phase.CHECK, fraction=0.1), 0.1),
            (Progress(phase=Phase.CHECK, fraction=1.0), None),
            (Progress(phase=Phase.CHECK, fraction=0.2), 0.2),
        ):
            display(progress)
            (task,) = display._bar.tasks
            if share is not None:
                assert (task.percentage, task.finished) == (100 * share, False)
            elif progress.fraction is None:
                assert task.total is None
