"""The commands that look after an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from indexer.cli import (
    DeviceOption,
    DirectoryArgument,
    JsonOption,
    KindOption,
    MaxIndexMemoryOption,
    ModelOption,
    TargetRecallOption,
    app,
    print_json,
)
from indexer.console import ProgressDisplay, say, stop_on_terminate


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say(f"warning: {warning}")


@app.command()
def rebuild(
    directory: DirectoryArgument,
    kind: KindOption = None,
    target_recall: TargetRecallOption = None,
    max_index_memory: MaxIndexMemoryOption = None,
    device: Annotated[
        str | None, typer.Option(help="GPU that FAISS may use, e.g. cuda:1, or cpu. Default: the first, if any.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make another FAISS index of the vectors that are there; nothing is encoded."""
    from indexer.ann.kinds import AnnOptions
    from indexer.info import generation_text
    from indexer.upkeep import rebuild_generation

    asked = AnnOptions.of(kind, target_recall, max_index_memory)
    with stop_on_terminate(), ProgressDisplay() as display:
        row, warnings = rebuild_generation(directory, asked, display, device)
    _warn(warnings)
    if json:
        print_json({**row.to_json(), "warnings": warnings})
    else:
        typer.echo(f"{directory}: {generation_text(row.to_json())}")


@app.command()
def tune(
    directory: DirectoryArgument,
    target_recall: TargetRecallOption = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw recall against latency into this PNG (extra: plot).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure recall against latency on vectors of the index, and keep the fastest setting that reaches the target."""
    from indexer.upkeep import tune_generation

    if plot is not None:
        from indexer.plot import draw_tuning, require_matplotlib

        require_matplotlib()
    with stop_on_terminate(), ProgressDisplay() as display:
        tuning = tune_generation(directory, target_recall, display)
    if plot is not None:
        draw_tuning(tuning, plot)
    if json:
        print_json(tuning.to_json())
        return
    typer.echo(f"{'probes':>7} {'depth':>6} {'recall@10':>10} {'ms':>7}")
    for point in tuning.points:
        mark = "  <- chosen" if point == tuning.chosen else ""
        effort = f"{point.effort.probes:>7} {point.effort.depth:>6}"
        typer.echo(f"{effort} {point.recall:>10.4f} {point.latency_ms:>7.2f}{mark}")
    if not tuning.is_reached:
        typer.echo(f"no setting reaches {tuning.target}; another --kind may: index rebuild {directory} --kind KIND")


@app.command()
def verify(
    directory: DirectoryArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Check every byte and every text.")] = False,
    json: JsonOption = False,
) -> None:
    """Check an index; problems give exit code 1."""
    from indexer.maintenance.verify import verify_index

    with stop_on_terminate(), ProgressDisplay() as display:
        problems = verify_index(directory, deep=deep, on_progress=display)
    if json:
        print_json({"ok": not problems, "problems": problems})
    else:
        typer.echo(
            "\n".join(problems) if problems else f"{directory}: no problem found" + ("" if deep else " (not --deep)")
        )
    if problems:
        raise typer.Exit(1)


@app.command()
def compact(directory: DirectoryArgument, json: JsonOption = False) -> None:
    """Give back the space of deleted and replaced documents; readers go on meanwhile."""
    from indexer.maintenance.compact import compact_index

    with stop_on_terminate(), ProgressDisplay() as display:
        report = compact_index(directory, display)
    _warn(report.warnings)
    if json:
        print_json(asdict(report))
    else:
        before, after = report.bytes_before / 1e6, report.bytes_after / 1e6
        typer.echo(
            f"{directory}: {report.documents:,} documents, {report.dropped:,} dead slots dropped, "
            f"{before:,.1f} MB before, {after:,.1f} MB now"
        )


@app.command()
def backup(
    directory: DirectoryArgument,
    target: Annotated[Path, typer.Argument(metavar="DEST", help="Where the copy goes; new or empty.")],
    json: JsonOption = False,
) -> None:
    """Copy an index as it is at one commit, also while it is written, and check every byte of the copy."""
    from indexer.maintenance.backup import backup_index

    with stop_on_terminate(), ProgressDisplay() as display:
        report = backup_index(directory, target, display)
    if json:
        print_json(asdict(report))
    else:
        without = "" if report.generation else ", without a FAISS file: the next add makes one"
        typer.echo(f"{target}: {report.documents:,} documents, {report.bytes / 1e6:,.1f} MB, checked{without}")


@app.command()
def repair(
    directory: DirectoryArgument,
    encode_damaged: Annotated[
        bool,
        typer.Option("--encode-damaged", help="Encode the texts of damaged vectors again, as the index prescribes."),
    ] = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Mend what is derived, and name what cannot be mended; what is left gives exit code 1."""
    from indexer.maintenance.repair import repair_index

    with stop_on_terminate(), ProgressDisplay() as display:
        report = repair_index(directory, encode_damaged=encode_damaged, model=model, device=device, on_progress=display)
    _warn(report.warnings)
    if json:
        print_json(report.to_json())
    else:
        lines = [f"mended: {line}" for line in report.mended] + [f"left: {line}" for line in report.left]
        typer.echo("\n".join(lines) or f"{directory}: nothing to mend")
    if report.left:
        say("what is left comes back from a backup, or by building anew")
        raise typer.Exit(1)


@app.command("import")
def import_(directory: DirectoryArgument, json: JsonOption = False) -> None:
    """Check an index directory from elsewhere to the last byte; its FAISS files are removed unread and built anew."""
    from indexer.maintenance.importing import import_index

    with stop_on_terminate(), ProgressDisplay() as display:
        report = import_index(directory, display)
    _warn(report.warnings)
    if json:
        print_json(asdict(report))
    else:
        dropped = f"{report.dropped_generations} FAISS files removed unread"
        typer.echo(f"{directory}: {report.documents:,} documents taken in, {dropped}")
