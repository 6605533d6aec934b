"""Commands about the program itself: `distillchain completion` and `distillchain version`."""

from __future__ import annotations

import importlib.metadata

import typer

from distillchain_cli.arguments.completion import completion
from distillchain_cli.output.printing import print_result

app = typer.Typer()
app.command(epilog="Example: distillchain completion bash")(completion)


@app.command(epilog="Example: distillchain version")
def version() -> None:
    """Print the version."""
    print_result(f"distillchain {importlib.metadata.version('distillchain')}")
