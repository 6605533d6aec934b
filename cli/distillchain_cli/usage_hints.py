"""Remedies for commands that do not exist, options that a command lacks, and options in the wrong place.

Typer says that something is wrong, but not what to write. Knows the names of commands and options, not their meaning.
"""

from __future__ import annotations

from typing import Any

import typer
import typer.core

from distillchain_cli.program import program_name

SUSPEND = "`{program} suspend NAME` stops a chain on a cluster and saves its state; Ctrl-C does so for a run here"
INSTEAD = {
    "apply": "kubectl apply -f chain.yaml creates a chain on a cluster, and `{program} run chain.yaml` runs it here",
    "create": "kubectl create -f chain.yaml creates a chain on a cluster, and `{program} run chain.yaml` runs it here",
    "edit": "kubectl edit dchain NAME changes a chain on a cluster",
    "get": "`{program} list` shows all chains and `{program} status NAME` one",
    "show": "`{program} status NAME` shows a chain on a cluster, and `{program} plan FILE` what a run would do",
    **dict.fromkeys(("ls", "ps"), "`{program} list` shows all chains"),
    "rm": "`{program} delete NAME` deletes a chain",
    **dict.fromkeys(("stop", "cancel", "pause"), SUSPEND),
    "train": "`{program} run FILE` trains a chain on this machine",
    "start": "`{program} run FILE` trains a chain here, and `{program} resume NAME` continues a suspended one",
    "watch": "`{program} status NAME --watch` follows a chain",
    "export": "spec.stages[].export makes ONNX files; `{program} download FILE --format onnx --to FOLDER` copies them",
    "predict": "`{program} download FILE --to FOLDER` copies a checkpoint, which transformers loads as it is",
    "help": "write `{program} COMMAND -h`",
}
"""What users of kubectl and of training libraries may look for, and what does it here."""


class CommandGroup(typer.core.TyperGroup):
    """The commands of a program. Errors in its usage end with a remedy."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's; an option of a command that stands before the command gets a remedy."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            command = next((word for word in args if word in self.commands), None)
            option = getattr(error, "option_name", None)
            if command and option and _option(self.commands[command], option):
                error.message += f"; write it after the command: {program_name()} {command} {option} ..."
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """As typer's; a name that other programs use gets the command that is meant."""
        try:
            return super().resolve_command(ctx, args)
        except typer.TyperException as error:
            if args[0] in INSTEAD:
                error.message = f"No such command '{args[0]}'; {INSTEAD[args[0]].format(program=program_name())}"
            raise

    def invoke(self, ctx: Any) -> Any:
        """As typer's; an option that the command lacks, or that lacks its value, gets a remedy."""
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            option = getattr(error, "option_name", None)
            command = self.commands.get(ctx.invoked_subcommand or "")
            if command and option:
                error.message = error.message.rstrip(".") + _remedy(command, option)
            raise


def _remedy(command: Any, option: str) -> str:
    known = _option(command, option)
    if known is not None:
        return f": {known.metavar}" if known.metavar else ""
    if option in ("-o", "--output"):
        to = _option(command, "--to")
        return f"; to say where it writes, use --to {to.metavar}" if to else "; this command has no other format"
    return ""


def _option(command: Any, name: str) -> Any:
    return next((each for each in command.params if name in each.opts), None)
