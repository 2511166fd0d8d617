"""The commands that write an index, and those that look at it without a model."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from indexer.config import DEFAULT_MODEL, Dtype, IfExists, OnError, Pooling, VectorDtype

_READING = {"query", "eval", "info", "verify"}


class _Commands(TyperGroup):
    """The commands; typer alone would end an interrupted one without a word."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer names another class for it in each version
        from indexer.console import say

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            is_reading = ctx.invoked_subcommand in _READING
            say("interrupted" + ("" if is_reading else ": what was committed stands; run the same command again"))
            raise typer.Exit(130) from error


app = typer.Typer(
    name="index",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"auto_envvar_prefix": "INDEX", "help_option_names": ["-h", "--help"]},
    epilog="Options can also be set as INDEX_<COMMAND>_<OPTION>, e.g. INDEX_BUILD_MODEL. --debug shows tracebacks.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("clsindex"))
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, show_envvar=False, help="Print the version."),
    ] = False,
) -> None:
    """Semantic search over your texts: [CLS] vectors in FAISS, texts and metadata in SQLite."""


def one_filter(ctx: typer.Context, option: typer.CallbackParam, value: list[str] | None) -> list[str] | None:
    """Return the filters as they came, but the variable of the option as one: it was split at white space."""
    source = ctx.get_parameter_source(option.name or "")
    if source is None or source.name != "ENVIRONMENT":
        return value
    variable = option.resolve_envvar_value(ctx)
    return value if variable is None else [variable]


SourceArgument = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help="File, directory, hf:NAME, sqlite:FILE?sql=..., or - (stdin).")
]
DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The index directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the reply as JSON.")]
TextFieldOption = Annotated[
    list[str] | None,
    typer.Option("--text-field", help="Field that makes the text; repeat it to join several. Default: text."),
]
AddedTextFieldOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text-field", help="Field that makes the text; repeat it to join several. Default: the index's own."
    ),
]
AddedIdFieldOption = Annotated[
    str | None, typer.Option("--id-field", help="Field that is the id. Default: the index's own.")
]
IdFieldOption = Annotated[
    str | None,
    typer.Option(help="Field that is the id. Default: first of id, _id, doc_id; else a hash of the record."),
]
ColumnsOption = Annotated[str | None, typer.Option(help="Column names a,b,c of CSV or TSV without a header.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Another place of the same weights. Default: the index's own.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cuda:1, or several: cuda:0,cuda:1; cpu. Default: every GPU, else the CPU.")
]
OnErrorOption = Annotated[OnError, typer.Option(help="What a record that cannot be used does to the run.")]
MaxErrorsOption = Annotated[int | None, typer.Option(min=0, help="With --on-error skip: stop after this many.")]
KindOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="auto, flat, ivf, hnsw, cagra, or a FAISS factory string. Default: as asked before, else auto.",
    ),
]
TargetRecallOption = Annotated[
    float | None, typer.Option(help="recall@10 that searches are tuned for. Default: as asked before, else 0.95.")
]
MaxIndexMemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="What the FAISS index may take, e.g. 4G. Default: as asked before, else no limit."
    ),
]
SourceNameOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What the documents are recorded to come from, for --prune. Default: its path."),
]
IfExistsOption = Annotated[IfExists, typer.Option(help="A record whose id is there with other content.")]


@app.command()
def build(
    source: SourceArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The index directory, new or an index.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help=f"Hub id, directory or package:NAME. Default: {DEFAULT_MODEL}."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Default: cls.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens after which a text is cut. Default: the model's.")
    ] = None,
    query_prompt: Annotated[str | None, typer.Option(help="Text (or name of a prompt) put before every query.")] = None,
    doc_prompt: Annotated[str | None, typer.Option(help="Text (or name of a prompt) put before every text.")] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(help="Cut documents into passages of so many tokens. Default: documents stay whole.")
    ] = None,
    chunk_overlap: Annotated[
        int | None, typer.Option(help="Tokens that neighbouring passages share. Default: 0.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="What the model computes in.")] = Dtype.AUTO,
    device: DeviceOption = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one forward pass. Default: what suits the device.")
    ] = None,
    vector_dtype: Annotated[VectorDtype | None, typer.Option(help="How vectors are stored. Default: f16.")] = None,
    text_field: TextFieldOption = None,
    id_field: IdFieldOption = None,
    columns: ColumnsOption = None,
    kind: KindOption = None,
    target_recall: TargetRecallOption = None,
    max_index_memory: MaxIndexMemoryOption = None,
    index_field: Annotated[
        list[str] | None,
        typer.Option(help="Metadata field to give an SQL index, for filters that few meet; repeatable."),
    ] = None,
    on_error: OnErrorOption = OnError.STOP,
    max_errors: MaxErrorsOption = None,
    if_exists: IfExistsOption = IfExists.UPSERT,
    source_name: SourceNameOption = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop documents that left their source, as told by its path or name.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Let --prune drop more than half of a source.")] = False,
    json: JsonOption = False,
) -> None:
    """Build an index; run it again to resume it, or to bring it up to date."""
    from indexer.ann.kinds import AnnOptions
    from indexer.build import BuildOptions
    from indexer.config import EncoderOptions

    options = BuildOptions(
        encoder=EncoderOptions(
            model=model,
            revision=revision,
            pooling=pooling,
            max_length=max_length,
            query_prompt=query_prompt,
            doc_prompt=doc_prompt,
            chunk_tokens=chunk_tokens,
            chunk_overlap=chunk_overlap,
            dtype=dtype,
            device=device,
            batch_tokens=batch_tokens,
        ),
        read=_read_options(text_field, id_field, columns),
        vector_dtype=vector_dtype,
        ann=AnnOptions.of(kind, target_recall, max_index_memory),
        index_fields=tuple(index_field or ()),
        on_error=on_error,
        max_errors=max_errors,
        if_exists=if_exists,
        source_name=source_name,
        prune=prune,
        prune_most=yes,
    )
    _run(source, out, options, json)


@app.command()
def add(
    directory: DirectoryArgument,
    source: SourceArgument,
    text_field: AddedTextFieldOption = None,
    id_field: AddedIdFieldOption = None,
    columns: ColumnsOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    on_error: OnErrorOption = OnError.STOP,
    max_errors: MaxErrorsOption = None,
    if_exists: IfExistsOption = IfExists.UPSERT,
    source_name: SourceNameOption = None,
    json: JsonOption = False,
) -> None:
    """Add or update documents by id."""
    from indexer.build import BuildOptions
    from indexer.config import EncoderOptions

    options = BuildOptions(
        encoder=EncoderOptions(model=model, device=device),
        read=_read_options(text_field, id_field, columns),
        on_error=on_error,
        max_errors=max_errors,
        if_exists=if_exists,
        source_name=source_name,
        adds=True,
    )
    _run(source, directory, options, json)


@app.command()
def delete(
    directory: DirectoryArgument,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of documents.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            callback=one_filter,
            help="Delete, beside the IDs, what meets this filter: JSON, or field=value; of several, all.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Delete documents by id or by filter; unknown ids are counted."""
    from dataclasses import asdict

    from indexer.console import stop_on_terminate
    from indexer.delete import delete_documents
    from indexer.errors import UsageError

    if not ids and not where:
        msg = "nothing to delete: give ids or --where"
        raise UsageError(msg)
    with stop_on_terminate():
        report = delete_documents(directory, ids or [], where or None)
    if json:
        print_json(asdict(report))
    else:
        unknown = f", {report.unknown:,} ids were unknown" if report.unknown else ""
        typer.echo(f"{report.deleted:,} documents deleted{unknown}; {report.documents:,} are left")


@app.command()
def info(directory: DirectoryArgument, json: JsonOption = False) -> None:
    """Say what is in an index, its encoder contract and its generations."""
    from indexer.info import describe

    facts = describe(directory)
    if json:
        print_json(facts)
    else:
        typer.echo(_info_text(facts))


def print_json(value: object) -> None:
    """Print one JSON value on a line of its own."""
    typer.echo(dumps(value, ensure_ascii=False))


def _read_options(text_field: list[str] | None, id_field: str | None, columns: str | None) -> Any:  # noqa: ANN401
    from indexer.config import ReadOptions

    if not (text_field or id_field or columns):
        return None
    return ReadOptions(
        text_fields=tuple(text_field or ReadOptions().text_fields),
        id_field=id_field,
        columns=tuple(name.strip() for name in columns.split(",")) if columns else None,
    )


def _run(source: list[str], directory: Path, options: Any, json: bool) -> None:  # noqa: ANN401
    from indexer.build import run_build
    from indexer.console import ProgressDisplay, say, stop_on_terminate
    from indexer.opening import REJECTS
    from indexer.storage.files import DATABASE

    display = ProgressDisplay(each_phase=True)
    try:
        with stop_on_terminate(), display:
            report = run_build(source, directory, options, on_progress=display)
    except KeyboardInterrupt as error:
        if (directory / DATABASE).exists():
            say(f"interrupted: what was committed to {directory} stands; run the same command again to resume")
        else:
            say("interrupted: nothing was committed yet; run the same command again")
        raise typer.Exit(130) from error
    for warning in report.warnings:
        if warning not in display.shown:
            say(f"warning: {warning}")
    if json:
        print_json(report.to_json())
    else:
        typer.echo(_report_text(directory, report.to_json()))
    if report.rejected:
        say(f"{report.rejected:,} records were rejected; they are listed in {directory / REJECTS}")
        raise typer.Exit(3)


def _report_text(directory: Path, report: dict[str, Any]) -> str:
    seconds = report["seconds"]
    rate = f" ({report['encoded'] / seconds['encode']:,.0f} texts/s)" if report["encoded"] else ""
    counts = [f"{report['encoded']:,} encoded{rate}"]
    counts += [
        f"{report[name]:,} {word}"
        for name, word in (
            ("duplicates", "copied from identical texts"),
            ("unchanged", "unchanged"),
            ("updated", "updated"),
            ("deleted", "dropped"),
            ("truncated", f"cut at the maximum length ({report['tokens_lost']:,} tokens lost)"),
        )
        if report[name]
    ]
    counts += [f"{n:,} skipped ({reason})" for reason, n in report["skipped"].items()]
    between_s = seconds["total"] - seconds["load"] - seconds["index"]
    stages = ("read", "tokenize", "encode", "commit")
    busy = ", ".join(f"{name} {seconds[name] / max(between_s, 1e-9):.0%}" for name in stages)
    return (
        f"{directory}: {report['documents']:,} documents, {report['bytes'] / 1e6:,.1f} MB\n"
        f"  {', '.join(counts)}\n"
        f"  {seconds['total']:.1f} s: load {seconds['load']:.1f}, index {seconds['index']:.1f}; "
        f"in the {between_s:.1f} s between them busy: {busy}"
    )


def _info_text(facts: dict[str, Any]) -> str:
    from indexer.info import generation_text

    model, truncation = facts["model"], facts["truncation"]
    lines = [
        ("documents", f"{facts['documents']:,}" + ("" if facts["complete"] else " (incomplete: run the build again)")),
        ("passages", f"{facts['passages']:,}, and {facts['dead']:,} dead slots"),
        ("model", f"{model['model']}" + (f" at {model['revision']}" if model["revision"] else "")),
        ("weights", f"sha256 {model['weights_sha256'][:16]}…, {model['architecture']}"),
        ("vectors", f"{facts['dim']} dimensions, {model['pooling']} pooling, {facts['vector_dtype']}"),
        ("max length", f"{model['max_length_tokens']} tokens"),
        (
            "truncated",
            f"{truncation['truncated']:,} documents, {truncation['tokens_lost']:,} of {truncation['tokens']:,} tokens",
        ),
        ("prompts", f"query {model['query_prompt']!r}, document {model['doc_prompt']!r}"),
        ("size", f"{facts['bytes'] / 1e6:,.1f} MB"),
    ]
    lines += [("generation", generation_text(g)) for g in facts["generations"]]
    lines += [("tail", f"{facts['tail']:,} slots searched one by one")]
    lines += [("field", f"{name}: {', '.join(types)}") for name, types in facts["fields"].items()]
    return "\n".join(f"{name:<11} {value}" for name, value in lines)
