"""The command line ``jointbert``, with a module for each command. Errors are one sentence on standard error, and exit code
2."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jointbert import __version__
from jointbert.cli import bench, demo, estimate, evaluate, export, info, refine

app = typer.Typer(add_completion=False, help="Refines 3D hand poses of 14 joints.", rich_markup_mode=None)
for _name, _module in (
    ("refine", refine),
    ("evaluate", evaluate),
    ("estimate", estimate),
    ("demo", demo),
    ("bench", bench),
    ("export", export),
    ("info", info),
):
    app.command(_name)(_module.command)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"jointbert {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the command ``jointbert``."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)  # prints errors of options as one sentence, without the usage
    except Exception as error:
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        message = " ".join(describe().split())
        if message:
            typer.echo(f"Error: {message}", err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
