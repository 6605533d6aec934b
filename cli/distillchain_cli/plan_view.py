"""What a run would do, read from the store: which stages are committed, which would be trained, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.spec import Student
from distillchain_cli.columns import WIDTH, Column, format_columns
from distillchain_cli.errors import RunFailed, require_extra

if TYPE_CHECKING:
    from distillchain_store.store import Store

DIGEST_CHARS = 12

Action = Literal["reuse", "train", "fail", "wait"]


@dataclass(frozen=True)
class Outlook:
    """What would become of a stage."""

    stage: PlannedStage
    action: Action
    why: str
    checkpoint: str | None = None

    def to_document(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        order = self.stage.work_order
        document = {
            "name": self.stage.name,
            "digest": self.stage.digest,
            "teacher": order.teacher.name if order.teacher else None,
            "teacherDigest": self.stage.teacher_digest,
            "student": start_of(order.student),
            "committed": self.checkpoint is not None,
            "checkpoint": self.checkpoint,
            "action": self.action,
            "why": self.why,
        }
        return {key: value for key, value in document.items() if value is not None}


def start_of(student: Student) -> str:
    """Where a student starts, in a word."""
    return student.model or f"new {student.architecture.model_type if student.architecture else ''}"


def fetch_outlook(plan: Plan) -> list[Outlook]:
    """What a run would do with every stage. Reads the store, changes nothing.

    Raises: RunFailed in the store's own words when it cannot be read.
    """
    address = plan.chain.spec.storage
    if address.uri.startswith("s3://"):
        require_extra("trainer", "boto3", purpose=f"reading {address.uri}")
    from distillchain_api.failures import StageError
    from distillchain_store.store import open_store

    try:
        store = open_store(address.uri, endpoint_url=address.endpoint_url, region=address.region)
        outlook: list[Outlook] = []
        for stage in plan.stages:
            found = _outlook(store, stage, outlook)
            if outlook and outlook[-1].action in ("fail", "wait"):
                why = f"not reached: {outlook[-1].stage.name} would {outlook[-1].action}"
                found = replace(found, action="wait", why=why)
            outlook.append(found)
    except StageError as error:
        raise RunFailed(str(error)) from error
    return outlook


def _outlook(store: Store, stage: PlannedStage, before: list[Outlook]) -> Outlook:
    from distillchain_store.commit import read_manifest
    from distillchain_store.errors import CheckpointCorrupt, OtherRelease
    from distillchain_trainer.errors import GateNotMet
    from distillchain_trainer.stage.run import check_gate

    try:
        manifest = read_manifest(store, stage.digest)
    except (CheckpointCorrupt, OtherRelease) as error:
        return Outlook(stage, "fail", str(error))
    if manifest is not None:
        try:
            check_gate(stage.work_order, manifest.student, manifest.teacher, kept=f"it is {manifest.checkpoint}")
        except GateNotMet as error:
            return Outlook(stage, "fail", str(error), manifest.checkpoint)
        return Outlook(stage, "reuse", "committed in the store", manifest.checkpoint)
    why = "not in the store"
    if store.list_objects(f"stages/{stage.digest}/resume/"):
        why += "; a state of it is saved"
    elif before and before[-1].action == "train":
        why += f"; after {before[-1].stage.name}"
    return Outlook(stage, "train", why)


def plan_table(outlook: list[Outlook], *, width: int | None = WIDTH) -> str:
    """One line a stage."""
    columns = [Column(title) for title in ("STAGE", "DIGEST", "TEACHER", "COMMITTED", "WOULD", "WHY")]
    rows = [
        [
            item.stage.name,
            item.stage.digest[:DIGEST_CHARS],
            item.stage.work_order.teacher.name if item.stage.work_order.teacher else "",
            "yes" if item.checkpoint else "no",
            item.action,
            item.why,
        ]
        for item in outlook
    ]
    sentences = [f"{item.stage.name}: {item.why}" for item in outlook if item.action == "fail"]
    return "\n".join([format_columns(columns, rows, width=width), *sentences])


def summary(plan: Plan, outlook: list[Outlook]) -> str:
    """What would run, in one sentence."""
    train = [item.stage.name for item in outlook if item.action == "train"]
    failed = next((item.stage.name for item in outlook if item.action == "fail"), None)
    what = f"would train {', '.join(train)}" if train else "would train nothing"
    if failed:
        what += f" and fail at {failed}"
    return f"{plan.chain.name} in {plan.chain.spec.storage.uri}: a run {what}; this plan changed nothing"
