"""Recall against latency as a picture. The only home of matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from indexer.ann.tuning import Tuning
from indexer.errors import MissingExtraError
from indexer.storage.files import storage_errors


def require_matplotlib() -> None:
    """Check that matplotlib is installed, without importing it.

    Raises:
        MissingExtraError: it is not; the message names the extra.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")


def draw_tuning(tuning: Tuning, path: Path) -> None:
    """Draw what was measured, the target and the chosen setting into a PNG.

    Raises:
        StorageError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.latency_ms for p in tuning.points], [p.recall for p in tuning.points], "o-", color="tab:blue")
    for point in tuning.points:
        label = f"{point.effort.probes}/{point.effort.depth}"
        axes.annotate(label, (point.latency_ms, point.recall), (4, -10), textcoords="offset points", fontsize=7)
    axes.plot(tuning.chosen.latency_ms, tuning.chosen.recall, "o", color="tab:red", label="chosen (probes/depth)")
    axes.axhline(tuning.target, color="tab:gray", linestyle="--", label=f"target {tuning.target}")
    axes.set_xlabel("milliseconds a query, one thread")
    axes.set_ylabel(f"recall@10, {tuning.n_queries} vectors of the corpus")
    axes.legend(loc="lower right")
    with storage_errors(path):
        figure.savefig(path, format="png", dpi=150)
