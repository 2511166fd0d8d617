"""What the command line draws on stderr: progress, errors in one line."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from indexer.progress import Phase, Progress

_PHASES = {
    Phase.CHECK: "checking",
    Phase.COPY: "copying",
    Phase.LOAD: "loading the model",
    Phase.ENCODE: "encoding",
    Phase.INDEX: "finishing: building the search index",
    Phase.TUNE: "finishing: measuring the recall",
    Phase.DONE: "done",
}
_MEASURED = {Phase.CHECK, Phase.COPY, Phase.ENCODE, Phase.INDEX, Phase.TUNE}
_LINE_EVERY_S = 10.0
_RATE_WINDOW_S = 20.0


class ProgressDisplay:
    """Draws a bar on a terminal; elsewhere writes a line every ten seconds.

    Args:
        each_phase: write a line when a phase begins, too: of work that takes long.
    """

    def __init__(self, *, each_phase: bool = False) -> None:
        self._each_phase = each_phase
        self.shown: set[str] = set()
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None
        if self._console.is_terminal:
            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[counts]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = _begin(self._bar)
        self._phase: Phase | None = None
        self._points: list[tuple[float, int, int]] = []
        self._last_line_s = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show where the work stands."""
        for warning in progress.warnings:
            self.shown.add(warning)
            self._console.print(f"warning: {warning}", highlight=False, soft_wrap=True, markup=False)
        counts = self._counts(progress)
        is_new = progress.phase is not self._phase
        if self._bar is not None:
            completed = progress.fraction or 0.0
            if is_new or completed < self._bar.tasks[0].completed:  # to rich what was full once is finished for good
                self._bar.remove_task(self._task)
                self._task = _begin(self._bar)
            known = progress.fraction is not None and progress.phase in _MEASURED
            self._bar.update(
                self._task,
                description=_PHASES[progress.phase],
                total=1.0 if known else None,
                completed=completed,
                counts=counts,
            )
        elif progress.phase is not Phase.DONE and (
            (is_new and self._each_phase) or time.monotonic() - self._last_line_s >= _LINE_EVERY_S
        ):
            share = f"{progress.fraction:.0%}, " if progress.fraction is not None else ""
            detail = f": {share}{counts}".rstrip(" ,:") if progress.phase in _MEASURED else ""
            self._console.print(f"{_PHASES[progress.phase]}{detail}", highlight=False, soft_wrap=True, markup=False)
            self._last_line_s = time.monotonic()
        self._phase = progress.phase

    def _counts(self, progress: Progress) -> str:
        if progress.phase is not Phase.ENCODE:
            return ""
        now_s = time.monotonic()
        self._points.append((now_s, progress.n_encoded, progress.n_tokens))
        while len(self._points) > 2 and now_s - self._points[0][0] > _RATE_WINDOW_S:
            self._points.pop(0)
        then_s, n_texts, n_tokens = self._points[0]
        span_s = max(now_s - then_s, 1e-9)
        text = f"{progress.n_documents:,} documents"
        if progress.n_encoded > n_texts:
            text += f", {(progress.n_encoded - n_texts) / span_s:,.0f} texts/s"
            text += f", {(progress.n_tokens - n_tokens) / span_s:,.0f} tokens/s"
        return text


def _begin(bar: RichProgress) -> TaskID:
    return bar.add_task("starting", total=None, counts="")


@contextmanager
def stop_on_terminate() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C for a block, so that a build ends in order."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(message: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(" ".join(message.splitlines()) + "\n")
