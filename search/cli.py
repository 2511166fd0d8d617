"""The commands that search an index, and the entry point of `index`."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from typing import Annotated

import typer

import indexer.maintenance.cli  # noqa: F401 - adds its commands to the app
from indexer.cli import DirectoryArgument, JsonOption, ModelOption, app, one_filter, print_json
from indexer.errors import IndexerError, UsageError
from search.formats import Format

DownloadOption = Annotated[bool, typer.Option("--allow-download", help="Let the model be fetched from the hub.")]


@app.command()
def query(
    directory: DirectoryArgument,
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="The query; words are joined.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many hits.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(callback=one_filter, help="Filter: JSON, or field=value; of several, all must be met."),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", envvar="INDEX_QUERY_FORMAT", help="Default: table on a terminal, jsonl in a pipe."),
    ] = None,
    queries: Annotated[
        str | None, typer.Option(metavar="FILE", help="Many queries: JSONL with _id (or id) and text; - is stdin.")
    ] = None,
    like: Annotated[str | None, typer.Option("--id", envvar="INDEX_QUERY_ID", help="More like this document.")] = None,
    passages: Annotated[
        bool, typer.Option("--passages", help="The nearest passages, however many are of one document.")
    ] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say on stderr how the hits were found.")] = False,
    no_text: Annotated[bool, typer.Option("--no-text", help="Leave the texts out.")] = False,
    model: ModelOption = None,
    device: Annotated[
        str | None, typer.Option(help="A GPU, e.g. cuda, that compares with every vector. Default: the CPU.")
    ] = None,
    allow_download: DownloadOption = False,
) -> None:
    """Find the texts nearest to a query."""
    from indexer.console import say
    from search.formats import render
    from search.queries import Query, read_queries
    from search.searcher import Searcher, SearchOptions

    if sum((bool(text), queries is not None, like is not None)) != 1:
        msg = "give one of TEXT, --queries FILE or --id ID"
        raise UsageError(msg)
    asked = read_queries(queries) if queries is not None else [Query(None, " ".join(text or []))]
    with Searcher.open(directory, model=model, allow_download=allow_download, device=device) as searcher:
        if not searcher.is_complete:
            say(f"note: {directory} is incomplete: its build has not read the source to the end")
        options = SearchOptions(where=where or None, passages=passages, exact=exact, with_text=not no_text)
        if like is not None:
            answers = [searcher.more_like(like, top_k, **options)]
        else:
            answers = searcher.search_batch([item.text for item in asked], top_k, **options)
        if where and answers and not any(answers):
            held = "; ".join(f"{name}: {', '.join(types)}" for name, types in searcher.types_of(where).items())
            others = "document" if like is None else "other document"
            say(f"note: no {others} meets the filter" + (held and f"; types never cross, and the fields hold {held}"))
    form = form or (Format.TABLE if sys.stdout.isatty() else Format.JSONL)
    width = shutil.get_terminal_size().columns
    for line in render(form, asked, answers, width=width, hidden=searcher.text_fields):
        sys.stdout.write(line + "\n")
    if explain and answers:
        sure = "these are the nearest" if answers[0].exact else "approximate: a nearer one may be missing"
        say(f"plan: {answers[0].plan}; {sure}")


@app.command(name="eval")
def evaluate_command(
    directory: DirectoryArgument,
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="JSONL with _id (or id) and text; with --label-field any source, its labels to guess."
        ),
    ] = None,
    qrels: Annotated[
        str | None, typer.Option(metavar="FILE", help="Judgements of --queries, as BEIR or TREC write them.")
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Probe how well the vectors tell this field.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(callback=one_filter, help="Ask every judged query with this filter; of several, all must be met."),
    ] = None,
    model: ModelOption = None,
    allow_download: DownloadOption = False,
    json: JsonOption = False,
) -> None:
    """Measure nDCG@10, recall and MRR against judged queries, or how well labels are told from the vectors."""
    if (qrels is None) == (label_field is None):
        msg = "give one of --qrels FILE (with --queries FILE) or --label-field FIELD"
        raise UsageError(msg)
    if label_field is not None:
        from search.probe import probe_labels

        probe = probe_labels(directory, label_field, tests=queries, model=model, allow_download=allow_download)
        figures = probe.to_json()
    elif queries is None or qrels is None:
        msg = "--qrels needs the queries that it judges; pass --queries FILE"
        raise UsageError(msg)
    else:
        from search.evaluate import evaluate
        from search.queries import read_qrels, read_queries
        from search.searcher import Searcher

        asked, judged = read_queries(queries), read_qrels(qrels)
        with Searcher.open(directory, model=model, allow_download=allow_download) as searcher:
            figures = evaluate(searcher, asked, judged, where=where or None).to_json()
    if json:
        print_json(figures)
        return
    for name, value in figures.items():
        typer.echo(f"{name:<31} {value:.4f}" if isinstance(value, float) else f"{name:<31} {value}")


def main() -> None:
    """Run the command line; errors of ours are one line on stderr with their exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="index")
    except IndexerError as error:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"index: {' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:
        if debug:
            traceback.print_exc()
        sys.stderr.write("index: out of memory; what was committed stands: free some memory, then run again\n")
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output went away; what is buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last handler: users get one line, --debug the rest
        if debug:
            traceback.print_exc()
        said = " ".join(str(error).split())
        sys.stderr.write(f"index: {type(error).__name__}: {said}; --debug shows where\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
