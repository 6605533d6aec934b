"""`distillchain report`: the report on a chain, from its store, which it does not change.

For a chain file, store and gates say how the chain went. For a chain on the cluster, its status also says why a stage
failed.
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

from distillchain_api.failures import FailureClass, StageError
from distillchain_api.graph import Plan, PlannedStage, build_plan
from distillchain_api.layout import report_key
from distillchain_api.resource.status import ChainStatus
from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.choices import choice_of
from distillchain_cli.arguments.filename_option import takes_filename
from distillchain_cli.arguments.options import Overrides, Storage, Target, Verbose
from distillchain_cli.arguments.targets import FetchChain, read_target
from distillchain_cli.errors import BadInput, RunFailed, require_extra
from distillchain_cli.local.gate_check import gate_problem
from distillchain_cli.output.printing import print_message, print_result
from distillchain_cli.stores import open_chain_store, require_folder
from distillchain_operator.status.chain_status import timestamp

if TYPE_CHECKING:
    from distillchain_report.load import LoadedStage, WantedStage

app = typer.Typer()


class ReportFormat(StrEnum):
    """Formats of a report."""

    HTML = "html"
    MARKDOWN = "md"
    JSON = "json"


@app.command(epilog="Example: distillchain report chain.yaml --to report.html")
@takes_access
@takes_filename
def report(
    access: Access,
    target: Target,
    output: Annotated[
        ReportFormat,
        typer.Option(
            "--output",
            "-o",
            metavar="|".join(ReportFormat),
            parser=choice_of(ReportFormat, to_file="--to"),
            help="Output format.",
        ),
    ] = ReportFormat.HTML,
    to: Annotated[str | None, typer.Option(metavar="FILE", help="File to write to; default: stdout.")] = None,
    storage: Storage = None,
    overrides: Overrides = None,
    _verbose: Verbose = False,
) -> None:
    """Write the report on a chain, finished or not, from what its store holds. Changes nothing there.

    S3 credentials come from the environment, as for AWS's own tools.
    """
    check_output_file(to, [target])
    text = report_text(
        target,
        output,
        storage=storage,
        overrides=overrides or (),
        fetch_chain=lambda name: connect(access).fetch_chain(name),
    )
    if to is None:
        print_result(text.rstrip("\n"))
        return
    write_report(text, to)
    print_message(f"report: {to}")


def report_text(
    target: str, form: ReportFormat, *, storage: str | None, overrides: Sequence[str], fetch_chain: FetchChain
) -> str:
    """The report on a chain file or on a chain of the cluster.

    Raises: BadDocument, BadInput, RunFailed, MissingExtra.
    """
    # Checked before the store is read, which may take a while.
    require_extra("cli", "matplotlib", purpose="the report")
    require_extra("cli", "scipy", purpose="the report")
    chain, status = read_target(
        target, storage=storage, overrides=overrides, fetch_chain=fetch_chain, note=print_message
    )
    # A chain file whose folder does not exist has simply not run yet; its report says so.
    if status.stages or storage is not None:
        require_folder(chain.spec.storage.uri)
    plan = build_plan(chain)
    return _render(plan, _wanted(plan, status), form, verdict=_verdict(plan, status))


def check_output_file(to: str | None, chains: Sequence[str]) -> None:
    """That the result would not replace a chain file that it is made from. Raises: BadInput."""
    if to is not None and any(
        Path(chain).is_file() and Path(to).resolve() == Path(chain).resolve() for chain in chains
    ):
        raise BadInput(f"--to: {to} is the chain file, which would be lost; name another file")


def write_report(text: str, path: str) -> None:
    """Writes a report to a file, and leaves no part of it there. Raises: BadInput."""
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                # A page that is cut off could be taken for a whole one. A pipe or a device stays.
                if Path(path).is_file():
                    Path(path).unlink()
                raise
    except OSError as error:
        raise BadInput(f"--to: {path} cannot be written ({error.strerror}); name another file") from error


def stored_report(plan: Plan) -> str | None:
    """URI of the report that the trainer of the last stage wrote; None if there is none."""
    key = report_key(plan.stages[-1].digest)
    try:
        store = open_chain_store(plan.chain.spec.storage)
        return f"{store.uri}/{key}" if any(item.key == key for item in store.list_objects(key)) else None
    except StageError:
        return None  # the trainer has just committed there; a missing link to its report is not worth an error


def _wanted(plan: Plan, status: ChainStatus) -> list[WantedStage]:
    """The plan's stages, with the status of those whose digest has not changed since."""
    from distillchain_report.load import WantedStage

    found = []
    for stage in plan.students:
        entry = status.stage_named(stage.name)
        # Edited since the status was written, or changed by --storage: what the status says is about another stage.
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


def _verdict(plan: Plan, status: ChainStatus) -> str:
    """Digest of the comparison with controls; empty: unknown."""
    if status.result and status.result.evidence:
        # Where controls failed, it is not the one that the plan names.
        return Path(status.result.evidence.uri).stem
    return plan.evidence[-1].digest if plan.evidence else ""


def _render(plan: Plan, wanted: list[WantedStage], form: ReportFormat, *, verdict: str) -> str:
    from distillchain_report.build import build_report
    from distillchain_report.evidence_files import load_evidence
    from distillchain_report.load import load_stages
    from distillchain_report.render import Format, render

    chain = plan.chain
    name = f"{chain.metadata.namespace}/{chain.name}"
    try:
        store = open_chain_store(chain.spec.storage)
        loaded = load_stages(store, wanted)
        _check_store(store.uri, loaded)
        evidence = load_evidence(store, plan.students[-1].digest, chain=name, verdict=verdict)
        stages = [_with_gate(store.uri, planned, stage) for planned, stage in zip(plan.students, loaded, strict=True)]
    except StageError as error:
        raise RunFailed(str(error)) from error
    report = build_report(
        name,
        stages,
        storage=store.uri,
        generated_at=timestamp(datetime.now(UTC)),
        version=importlib.metadata.version("distillchain"),
        metric=chain.spec.task.deciding_metric,
        evidence=evidence,
    )
    return render(report, Format(form.value))


def _check_store(uri: str, stages: list[LoadedStage]) -> None:
    """Raises: RunFailed when the status lists committed stages and the store has none of them."""
    known = [stage for stage in stages if stage.wanted.phase == "Committed"]
    if known and not any(stage.manifest or stage.missing for stage in stages):
        raise RunFailed(
            f"{uri} has none of the {len(known)} stages that the chain's status lists as committed: it is another "
            "store, or it was emptied; use --storage to name the right one"
        )


def _with_gate(storage: str, planned: PlannedStage, stage: LoadedStage) -> LoadedStage:
    """A committed stage without a status, marked as failed if it misses its gate as the chain states it now."""
    manifest = stage.manifest
    # A status was written by an operator that has judged the gates already.
    if manifest is None or stage.wanted.phase is not None:
        return stage
    kept = f"its checkpoint is {storage}/{manifest.checkpoint_prefix}"
    problem = gate_problem(planned.work_order, manifest, kept=kept)
    if problem is None:
        return stage
    wanted = replace(stage.wanted, phase="Failed", message=problem, failure_class=FailureClass.GATE_NOT_MET)
    return replace(stage, wanted=wanted)
