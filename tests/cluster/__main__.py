"""A cluster to work with, which keeps running: `python -m cluster up`, `status`, `down`.

Its files are in $XDG_STATE_HOME/distillchain/cluster. It also uses one slot of the machine (see `cluster.slot`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.build import ensure_binaries
from cluster.distillchain import OPERATOR, install_distillchain, operator_is_running, operator_processes, stop_operator
from cluster.errors import ClusterError
from cluster.operator_process import OPERATOR_NAMESPACE
from cluster.processes import Processes
from cluster.whole import WholeCluster

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

BUCKET = "models"
NEXT = """  eval "$(PYTHONPATH=tests .venv/bin/python -m cluster up)"
  kubectl apply -f examples/cluster/chain.yaml
  kubectl wait --for=condition=Succeeded --timeout=15m distillationchain/example
  kubectl get distillationchains"""
NOT_RUNNING = 3  # exit code of `status`, as of systemctl


class Output(StrEnum):
    """Output formats of `status`."""

    table = "table"
    json = "json"


@app.command(epilog="Example: python -m cluster up --gpus 4")
def up(
    gpus: Annotated[int, typer.Option(help="Number of nvidia.com/gpu that the node advertises.", min=0)] = 2,
) -> None:
    """Start control plane, node, S3 and operator, unless all of them run. Restart a cluster that runs only in part."""
    with _locked():
        cluster = _open(gpus)
        if _is_running(cluster):
            _say("already running")
        else:
            try:
                stop_operator(cluster)
                cluster.start()
                cluster.s3.ensure_bucket(BUCKET)
                how = install_distillchain(cluster, bucket=BUCKET)
            except BaseException:
                stop_operator(cluster)
                cluster.stop()
                raise
            _say(f"the operator {how}")
            _say("started")
        print(_exports(cluster))
        _say(f"next:\n{NEXT}")


@app.command(epilog="Example: python -m cluster down")
def down() -> None:
    """Stop the cluster and delete everything, including the objects in S3."""
    with _locked():
        if not (_directory() / "control-plane").exists():
            _say("no cluster; nothing to do")
            return
        cluster = _open(gpus=0)
        stop_operator(cluster)
        cluster.stop()
        shutil.rmtree(_directory())
        _say("stopped; its files are deleted")


@app.command(epilog="Example: python -m cluster status -o json")
def status(output: Annotated[Output, typer.Option("-o", help="Output format.")] = Output.table) -> None:
    """Show every part and how to reach it. The exit code is 0 if all parts run, else 3. Changes nothing."""
    if not (_directory() / "control-plane").exists():
        _say("no cluster; start one with `python -m cluster up`")
        raise typer.Exit(NOT_RUNNING)
    cluster = _open(gpus=0)
    rows: list[dict[str, object]] = [
        {
            "part": name,
            "running": processes.is_running(name),
            "pid": processes.pid(name),
            "log": str(processes.log(name)),
        }
        for processes in _processes(cluster)
        for name in processes.names()
    ]
    if OPERATOR not in operator_processes(cluster).names():
        log = f"kubectl logs -n {OPERATOR_NAMESPACE} deployment/{OPERATOR}"
        rows.append({"part": OPERATOR, "running": operator_is_running(cluster), "pid": None, "log": log})
    if output is Output.json:
        print(
            json.dumps({"running": _is_running(cluster), "environment": _environment(cluster), "parts": rows}, indent=2)
        )
    else:
        _print_table(rows)
        print(_exports(cluster))
    raise typer.Exit(0 if _is_running(cluster) else NOT_RUNNING)


def _open(gpus: int) -> WholeCluster:
    return WholeCluster(_directory(), gpus=gpus, outlive_caller=True)


def _is_running(cluster: WholeCluster) -> bool:
    return cluster.is_running() and operator_is_running(cluster)


def _directory() -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "distillchain" / "cluster"


def _processes(cluster: WholeCluster) -> list[Processes]:
    parts = (cluster.control_plane, cluster.node, cluster.s3)
    return [*(part.processes for part in parts), operator_processes(cluster)]


def _environment(cluster: WholeCluster) -> dict[str, str]:
    return {"KUBECONFIG": str(cluster.control_plane.kubeconfig), **cluster.s3.environment()}


def _exports(cluster: WholeCluster) -> str:
    """Export lines for the shell: `eval "$(python -m cluster up)"` sets all variables."""
    lines = [f"export {name}={value}" for name, value in _environment(cluster).items()]
    return "\n".join([*lines, f"export PATH={ensure_binaries()}:$PATH"])


def _print_table(rows: list[dict[str, object]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("part", "running", "pid", "log"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(str(row["part"]), "yes" if row["running"] else "no", str(row["pid"] or "-"), str(row["log"]))
    Console(stderr=True).print(table)  # stdout holds the lines for `eval`


@contextmanager
def _locked() -> Iterator[None]:
    """Run one `up` or `down` at a time; the second one waits."""
    lock = _directory().with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        app()
    except ClusterError as error:
        sys.exit(f"cluster: {error}")
