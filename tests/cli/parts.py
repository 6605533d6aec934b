"""Runs the command, in this process or as a subprocess; writes a chain file; replaces the trainer by a script."""

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

import pytest
import yaml

from chain_builders import a_document
from distillchain_api.faults import BadDocument
from distillchain_api.graph import build_plan
from distillchain_cli.arguments.chain_files import read_chain
from distillchain_cli.arguments.options import log
from distillchain_cli.main import main

COMMAND = [sys.executable, "-W", "error", "-m", "distillchain_cli"]
WITH_DEFAULT_SIGNALS = ["env", "--default-signal=HUP,INT,TERM"]
"""Put before a command that is to be stopped. Tests in the background of a script ignore Ctrl-C, and children inherit it."""

# For endings that the real trainer cannot be made to show. Each attempt leaves a file `attempt-N`; `act` is the body.
STAND_IN = """
import json, os, pathlib, signal, sys, time
order = json.loads(os.environ["DISTILLCHAIN_WORK_ORDER"])
here = pathlib.Path(__file__).parent
attempt = len(list(here.glob("attempt-*"))) + 1
(here / f"attempt-{{attempt}}").write_text(str(os.getpid()))

def answer(outcome, **fields):
    document = {{"outcome": outcome, "stage": order["stage"], "digest": order["digest"], **fields}}
    pathlib.Path(os.environ["DISTILLCHAIN_TERMINATION_PATH"]).write_text(json.dumps(document))

def commit(warnings=()):
    measured = {{"metrics": {{"validation": {{"accuracy": 0.8, "macroF1": 0.8}}}}, "parameters": 10, "sizeBytes": 40}}
    answer("Committed", attempt="a", checkpoint="file:///x", reused=False, pretrained=True, student=measured,
           teacher=measured if "teacher" in order else None, elapsedS=1.0, examplesPerSecond=1.0, warnings=list(warnings))

def progress(phase, step, of):
    line = {{"kind": "progress", "stage": order["stage"], "phase": phase, "step": step, "of": of}}
    print(json.dumps(line), flush=True)

{act}
"""


def distillchain(
    *arguments: str, cwd: Path, text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command as a subprocess, to its end."""
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
    """Runs the command in this process, which saves its start-up. Returns: what a subprocess would return.

    Tests of signals and terminals need distillchain(). Trainers are subprocesses in any case.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    # 80 columns, as without a terminal, even if the tests run in one.
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
    log.setLevel(logging.NOTSET)  # undo -v
    return subprocess.CompletedProcess(list(arguments), code, stdout.getvalue(), stderr.getvalue())


def _exit_code() -> int:
    try:
        return main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)


def clean_environment(scratch: Path) -> dict[str, str]:
    """This environment without variables that lead to a store or cluster; temporary files go to `scratch`."""
    foreign = ("AWS_", "DISTILLCHAIN_", "KUBE")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "TMPDIR": str(scratch)
    }


def write_chain(folder: Path, **parts: Any) -> Path:
    """Writes chain.yaml with a_document(**parts); its store is a folder beside it."""
    document = a_document(**{"storage": {"uri": "file://./store"}, **parts})
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def install_stand_in(folder: Path, act: str) -> dict[str, str]:
    """Variables with which `python -m distillchain_trainer` runs the script `act` instead of the trainer."""
    package = folder / "stand-in" / "distillchain_trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN.format(act=act))
    before = os.environ.get("PYTHONPATH", "")  # the tests may run in a checkout that is not installed
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(package.parent), before)))}


def script_until_stopped(act: str) -> str:
    """A trainer that waits for SIGTERM or SIGINT and then does `act`. It touches `ready` once it handles signals."""
    return f"""
signals = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: signals.append(number))
(here / "ready").touch()
while not signals: time.sleep(0.02)
{act}
"""


def plant_manifest(folder: Path, content: str) -> Path:
    """Writes `content` where the manifest of the first stage of chain.yaml belongs."""
    stage = build_plan(read_chain(str(folder / "chain.yaml"))).stages[0]
    path = folder / "store" / "stages" / stage.digest / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    return path


def attempts_of(folder: Path) -> int:
    """How often the script was started instead of the trainer."""
    return len(list((folder / "stand-in").rglob("attempt-*")))


def example_in_help(*command: str, cwd: Path) -> list[str]:
    """The arguments of the example at the end of `--help`."""
    text = distillchain_here(*command, "--help", cwd=cwd).stdout
    found = re.search(r"Example: distillchain (.+)\s*\Z", text)
    assert found, text
    return found[1].split()


def faults_of(*arguments: str, **options: object) -> list[str]:
    with pytest.raises(BadDocument) as caught:
        read_chain(*arguments, **options)  # type: ignore[arg-type]  # the tables hold options of several types
    return [str(fault) for fault in caught.value.faults]
