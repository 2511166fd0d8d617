"""Writes docs/commands.md from the commands themselves: python docs/make_commands.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("commands.md")
_FACTS = re.compile(r"\s*\[((?:env var|default|required|x[<>]=).*)\]$")
_HEAD = """# Commands

Made by `make docs` from what the commands say of themselves; `index COMMAND --help` prints the same. Any option can be
set by the variable in the last column; what stands on the command line wins. The variable of an option that can be
repeated holds names with white space between them, that of `--where` one filter. `--debug`, anywhere, shows the
traceback of an error.

Exit codes: 0 done, 1 an error, or problems that `verify` found, 2 usage, 3 done with records rejected, 4 bad input,
130 interrupted and resumable. Results go to stdout, all else to stderr. [errors.md](errors.md) has the messages,
[quickstart.md](quickstart.md) the commands at work.
"""
_KINDS = {"str": "TEXT", "list[str]": "TEXT", "int": "N", "int range": "N", "path": "PATH"}


def commands_page() -> str:
    """Return the whole page."""
    from typer.main import get_command

    import search.cli  # noqa: F401 - adds its commands to the app
    from indexer.cli import app

    group: Any = get_command(app)
    root = group.make_context("index", [], resilient_parsing=True)
    sections = [
        "\n".join(_section(command, type(root)(command, parent=root, info_name=name)))
        for name, command in group.commands.items()
    ]
    links = "\n".join(
        f"- [index {name}](#index-{name}): {_sentence(each.help)}" for name, each in group.commands.items()
    )
    return "\n".join([_HEAD, f"{links}\n", *sections])


def _section(command: Any, context: Any) -> Iterator[str]:  # noqa: ANN401 - Typer carries a Click of its own
    pieces = [re.sub(r"^\{(.*)\}", r"\1", piece) for piece in command.collect_usage_pieces(context)]
    usage = re.sub(r"\[(\w+)\]\.\.\.", r"[\1...]", " ".join(pieces))
    yield f"## {context.command_path}\n\n```\n{context.command_path} {usage}\n```\n\n{command.help}\n"
    arguments: list[str] = []
    options: list[str] = []
    for parameter in command.get_params(context):
        names, text = parameter.get_help_record(context)
        if parameter.param_type_name == "argument":
            arguments.append(f"- `{names.split(' <')[0]}`: {_FACTS.sub('', text)}")
        elif "--help" not in names:
            options.append(_row(names, text))
    yield "\n".join([*arguments, ""])
    yield "\n".join(["| option | what | default | variable |", "|---|---|---|---|", *options, ""])


def _row(names: str, text: str) -> str:
    found = _FACTS.search(text)
    facts = found[1].split("; ") if found else []
    value = dict(fact.split(": ", 1) for fact in facts if ": " in fact)
    limit = "".join(f" {fact.replace('x', 'At least ').replace('>=', '')}." for fact in facts if fact.startswith("x>="))
    body, said_default = re.fullmatch(r"(.*?)(?: ?Default: (.*)\.)?", _FACTS.sub("", text)).groups()  # type: ignore[union-attr]
    default = said_default or (f"`{value['default']}`" if "default" in value else "")
    shown = re.sub(r"<(.*)>", lambda kind: _KINDS.get(kind[1], kind[1]), names)
    cells = [f"`{shown}`", body + limit, "required" if "required" in facts else default, f"`{value['env var']}`"]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


if __name__ == "__main__":
    PAGE.write_text(commands_page(), encoding="utf-8")
