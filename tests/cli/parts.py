"""The command in this process and as one of its own, a chain file, and a stand-in for the trainer."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from chain_builders import a_document
from distillchain_cli.main import log, main

COMMAND = [sys.executable, "-W", "error", "-m", "distillchain_cli"]
HEEDING = ["env", "--default-signal=HUP,INT,TERM"]
"""In front of a command that is to be stopped: tests that a script runs in its background ignore Ctrl-C, and hand it on."""

# For endings that the real trainer does not show on demand. Each attempt leaves a file `attempt-N`; `act` is the body.
STAND_IN = """
import json, os, pathlib, signal, sys, time
order = json.loads(os.environ["DISTILLCHAIN_WORK_ORDER"])
here = pathlib.Path(__file__).parent
attempt = len(list(here.glob("attempt-*"))) + 1
(here / f"attempt-{{attempt}}").write_text(str(os.getpid()))

def answer(outcome, **fields):
    document = {{"outcome": outcome, "stage": order["stage"], "digest": order["digest"], **fields}}
    pathlib.Path(os.environ["DISTILLCHAIN_TERMINATION_PATH"]).write_text(json.dumps(document))

def commit():
    measured = {{"metrics": {{"validation": {{"accuracy": 0.8, "macroF1": 0.8}}}}, "parameters": 10, "sizeBytes": 40}}
    answer("Committed", attempt="a", checkpoint="file:///x", reused=False, pretrained=True, student=measured,
           teacher=measured if "teacher" in order else None, elapsedS=1.0, examplesPerSecond=1.0)

def progress(phase, step, of):
    line = {{"kind": "progress", "stage": order["stage"], "phase": phase, "step": step, "of": of}}
    print(json.dumps(line), flush=True)

{act}
"""


def distillchain(
    *arguments: str, cwd: Path, text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, as a process."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        input=text,
        env=clean_environment(cwd) | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def distillchain_here(
    *arguments: str, cwd: Path, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command in this process, which is started already; what a process would give.

    What it starts itself (trainers) are processes; signals and terminals need distillchain().
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    # 80 columns: as where there is no terminal, also when a person runs the tests in one.
    variables = clean_environment(cwd) | {"COLUMNS": "80"} | environment
    with (
        chdir(cwd),
        mock.patch.dict(os.environ, variables, clear=True),
        mock.patch.multiple(sys, argv=["distillchain", *arguments], stdin=io.TextIOWrapper(io.BytesIO(text.encode()))),
        mock.patch.object(tempfile, "tempdir", None),
        mock.patch.object(logging.root, "handlers", []),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        code = _exit_code()
    log.setLevel(logging.NOTSET)  # -v
    return subprocess.CompletedProcess(list(arguments), code, stdout.getvalue(), stderr.getvalue())


def _exit_code() -> int:
    try:
        return main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)


def clean_environment(scratch: Path) -> dict[str, str]:
    """Ours without what would talk to someone else's store or cluster; logs and the like go to `scratch`."""
    foreign = ("AWS_", "DISTILLCHAIN_", "KUBE")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "TMPDIR": str(scratch)
    }


def write_chain(folder: Path, **parts: Any) -> Path:
    """chain.yaml with a_document(**parts), whose store is a folder beside it."""
    document = a_document(**{"storage": {"uri": "file://./store"}, **parts})
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def install_stand_in(folder: Path, act: str) -> dict[str, str]:
    """The environment in which `python -m distillchain_trainer` is the stand-in."""
    package = folder / "stand-in" / "distillchain_trainer"
    package.mkdir(parents=True)
    # What the command itself reads of the trainer (its store) stays the real one.
    (package / "__init__.py").write_text("import pkgutil\n\n__path__ = pkgutil.extend_path(__path__, __name__)\n")
    (package / "__main__.py").write_text(STAND_IN.format(act=act))
    before = os.environ.get("PYTHONPATH", "")  # a checkout other than the installed one is found by it
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(package.parent), before)))}


def attempts_of(folder: Path) -> int:
    """How often the stand-in was started."""
    return len(list((folder / "stand-in").rglob("attempt-*")))


def example_in_help(*command: str, cwd: Path) -> list[str]:
    """The arguments of the example that `--help` ends with."""
    text = distillchain_here(*command, "--help", cwd=cwd).stdout
    found = re.search(r"Example: distillchain (.+)\s*\Z", text)
    assert found, text
    return found[1].split()
