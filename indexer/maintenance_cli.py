"""The commands that look after an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from indexer.cli import DirectoryArgument, JsonOption, app, print_json


@app.command()
def compact(directory: DirectoryArgument, json: JsonOption = False) -> None:
    """Give back the space of deleted and replaced documents; readers go on meanwhile."""
    from indexer.compact import compact_index

    report = compact_index(directory)
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

    report = backup_index(directory, target)
    if json:
        print_json(asdict(report))
    else:
        without = "" if report.generation else ", without a FAISS file: the next add makes one"
        typer.echo(f"{target}: {report.documents:,} documents, {report.bytes / 1e6:,.1f} MB, checked{without}")
