"""`distillchain report`: a chain's report from what is in its store. Changes nothing there.

Of a chain file store and gates alone tell how it went; of a chain on the cluster its status tells why a stage failed.
S3 credentials are the user's own.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, PlannedStage, build_plan
from distillchain_api.layout import report_key
from distillchain_api.resource.spec import Storage
from distillchain_api.resource.status import ChainStatus
from distillchain_cli.cluster_commands import connect
from distillchain_cli.errors import BadInput, RunFailed, require_extra
from distillchain_cli.options import Context, Kubeconfig, Namespace, Overrides, Target, Verbose
from distillchain_cli.options import Storage as StorageOption
from distillchain_cli.printing import result, talk
from distillchain_cli.targets import FetchChain, read_target
from distillchain_operator.status import timestamp

if TYPE_CHECKING:
    from distillchain_report.load import LoadedStage, WantedStage
    from distillchain_store.store import Store

app = typer.Typer()


class ReportFormat(StrEnum):
    """How a report is written."""

    HTML = "html"
    MARKDOWN = "md"
    JSON = "json"


@app.command(epilog="Example: distillchain report chain.yaml --to report.html")
def report(
    target: Target,
    output: Annotated[
        ReportFormat, typer.Option("--output", "-o", metavar="|".join(ReportFormat), help="How it is written.")
    ] = ReportFormat.HTML,
    to: Annotated[str | None, typer.Option(metavar="FILE", help="Write it there; empty: to stdout.")] = None,
    storage: StorageOption = None,
    overrides: Overrides = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Write the report on a chain, finished or not, from what is in its store. Changes nothing there.

    S3 credentials come from the environment, as AWS's own tools take them.
    """
    text = report_text(
        target,
        output,
        storage=storage,
        overrides=overrides or (),
        fetch_chain=lambda name: connect(kubeconfig, context, namespace).fetch_chain(name),
    )
    if to is None:
        result(text.rstrip("\n"))
        return
    write_report(text, to)
    talk(f"report: {to}")


def report_text(
    target: str, form: ReportFormat, *, storage: str | None, overrides: Sequence[str], fetch_chain: FetchChain
) -> str:
    """The report on a chain file or on a chain of the cluster.

    Raises: BadDocument, BadInput, RunFailed, MissingExtra.
    """
    require_extra("report", "matplotlib", purpose="the report")
    require_extra("report", "scipy", purpose="the report")
    chain, status = read_target(target, storage=storage, overrides=overrides, fetch_chain=fetch_chain)
    if status.stages or storage is not None:
        _check_folder(chain.spec.storage.uri)
    plan = build_plan(chain)
    return _render(plan, _wanted(plan, status), form)


def write_report(text: str, path: str) -> None:
    """Writes a report to a file. Raises: BadInput."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--to: {path} cannot be written ({error.strerror}); name another file") from error


def stored_report(plan: Plan) -> str | None:
    """Where the report is that the trainer of the last stage has written; None: it is not there."""
    from distillchain_api.failures import StageError

    key = report_key(plan.stages[-1].digest)
    try:
        store = _open_store(plan.chain.spec.storage)
        return f"{store.uri}/{key}" if any(item.key == key for item in store.list_objects(key)) else None
    except StageError:
        return None  # it has just committed there; its report is not worth an error


def _wanted(plan: Plan, status: ChainStatus) -> list[WantedStage]:
    """The plan's stages, with what the status says of these very digests."""
    from distillchain_report.load import WantedStage

    found = []
    for stage in plan.stages:
        entry = status.stage_named(stage.name)
        if entry is None or entry.digest != stage.digest:
            found.append(WantedStage(stage.name, stage.digest))
            continue
        found.append(
            WantedStage(
                stage.name,
                stage.digest,
                phase=entry.phase,
                message=entry.message,
                failure_class=entry.failure_class,
                reused=entry.reused,
            )
        )
    return found


def _render(plan: Plan, wanted: list[WantedStage], form: ReportFormat) -> str:
    from distillchain_api.failures import StageError
    from distillchain_report.build import build_report
    from distillchain_report.load import load_stages
    from distillchain_report.render import Format, render

    chain = plan.chain
    try:
        store = _open_store(chain.spec.storage)
        loaded = load_stages(store, wanted)
        _check_store(store.uri, loaded)
        stages = [_held_to_gate(store.uri, planned, stage) for planned, stage in zip(plan.stages, loaded, strict=True)]
    except StageError as error:
        raise RunFailed(str(error)) from error
    report = build_report(
        f"{chain.metadata.namespace}/{chain.name}",
        stages,
        storage=store.uri,
        generated_at=timestamp(datetime.now(UTC)),
        version=importlib.metadata.version("distillchain"),
        metric=chain.spec.task.metric,
    )
    return render(report, Format(form.value))


def _check_folder(uri: str) -> None:
    """Of a chain that has run, or that a person has named. Raises: RunFailed when this machine does not have it."""
    if uri.startswith("file://") and not Path(uri.removeprefix("file://")).is_dir():
        raise RunFailed(
            f"{uri} is not on this machine; mount that volume here, or name where its files are with --storage"
        )


def _check_store(uri: str, stages: list[LoadedStage]) -> None:
    """Raises: RunFailed when nothing is there of a chain whose status knows commits."""
    known = [stage for stage in stages if stage.wanted.phase == "Committed"]
    if known and not any(stage.manifest or stage.missing for stage in stages):
        raise RunFailed(
            f"{uri} holds none of the {len(known)} stages that the chain's status calls committed: it is another "
            "store, or was emptied; name the right one with --storage"
        )


def _held_to_gate(storage: str, planned: PlannedStage, stage: LoadedStage) -> LoadedStage:
    """A committed stage of which no status tells, as its trainer would judge it: by its gate as it stands now."""
    from distillchain_api.layout import attempt_prefix
    from distillchain_trainer.errors import GateNotMet
    from distillchain_trainer.stage.run import check_gate

    manifest = stage.manifest
    if manifest is None or stage.wanted.phase is not None:
        return stage
    kept = f"its checkpoint is {storage}/{attempt_prefix(manifest.digest, manifest.attempt)}"
    try:
        check_gate(planned.work_order, manifest.student, manifest.teacher, kept=kept)
    except GateNotMet as error:
        wanted = replace(stage.wanted, phase="Failed", message=str(error), failure_class=FailureClass.GATE_NOT_MET)
        return replace(stage, wanted=wanted)
    return stage


def _open_store(storage: Storage) -> Store:
    if storage.uri.startswith("s3://"):
        require_extra("trainer", "boto3", purpose=f"reading {storage.uri}")
    from distillchain_store.store import open_store

    return open_store(storage.uri, endpoint_url=storage.endpoint_url, region=storage.region)
