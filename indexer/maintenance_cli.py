"""The commands that look after an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from indexer.cli import DeviceOption, DirectoryArgument, JsonOption, ModelOption, app, print_json
from indexer.console import say, stop_on_terminate


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say(f"warning: {warning}")


@app.command()
def compact(directory: DirectoryArgument, json: JsonOption = False) -> None:
    """Give back the space of deleted and replaced documents; readers go on meanwhile."""
    from indexer.compact import compact_index

    with stop_on_terminate():
        report = compact_index(directory)
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
    from indexer.backup import backup_index

    with stop_on_terminate():
        report = backup_index(directory, target)
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
    from indexer.repair import repair_index

    with stop_on_terminate():
        report = repair_index(directory, encode_damaged=encode_damaged, model=model, device=device)
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
    from indexer.importing import import_index

    with stop_on_terminate():
        report = import_index(directory)
    _warn(report.warnings)
    if json:
        print_json(asdict(report))
    else:
        dropped = f"{report.dropped_generations} FAISS files removed unread"
        typer.echo(f"{directory}: {report.documents:,} documents taken in, {dropped}")
