"""Faults of a chain that show only in its plan, when values of template and stage have come together. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from distillchain_api.evidence_check import evidence_faults
from distillchain_api.faults import BadDocument, Fault, expected
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.parallelism import NEEDS_SEVERAL
from distillchain_api.resource.teacher_pass import SUFFIX
from distillchain_api.wire.work_order_size import size_faults


def check_plan(plan: Plan, *, source: str = "") -> None:
    """Checks the size of each work order, that the processes of each stage fit its GPUs, and the evidence.

    Raises: BadDocument with every fault.
    """
    faults = size_faults(stage.work_order for stage in plan.vertices)
    # By field, for the first stage: stages without a parallelism of their own share the template's.
    parallelism = {fault.field: fault for stage in reversed(plan.stages) for fault in parallelism_faults(stage)}
    passes = [fault for stage in plan.stages for fault in pass_faults(stage)]
    if faults := [*faults, *parallelism.values(), *passes, *evidence_faults(plan)]:
        raise BadDocument(source, faults)


def pass_faults(stage: PlannedStage) -> Iterator[Fault]:
    """What a stage asks for that does not fit a pass of its teacher."""
    order = stage.work_order
    if not order.teacher_pass or order.distillation is None:
        return
    field, name = f"{order.field}.teacherPass", order.stage.removesuffix(SUFFIX)
    if order.distillation.hidden is not None:
        what = f"got a pass, expected none for stage {name}, which has distillation.hidden"
        yield Fault(field, f"{what}; hidden states need the teacher in every step: remove one of them")
    if order.distillation.alpha == 0:
        what = f"got a pass, expected none for stage {name}, whose distillation.alpha is 0"
        yield Fault(field, f"{what}; its student learns from the labels alone: remove teacherPass or raise alpha")


def parallelism_faults(stage: PlannedStage) -> Iterator[Fault]:
    """What is wrong with the processes of a stage, given the GPUs of its container."""
    stated, field = stage.parallelism, stage.parallelism_field
    # Without a GPU in the spec, the processes share CPUs, or GPUs of the operator's own pod template.
    if stage.gpus and stated.processes_per_node and stated.processes_per_node > stage.gpus:
        most = f"at most {stage.gpus}, the GPUs of a pod of stage {stage.name}"
        remedy = "each process needs a GPU of its own: lower it, or ask for more GPUs in resources"
        yield Fault(f"{field}.processesPerNode", expected(stated.processes_per_node, most, remedy))
    distillation = stage.work_order.distillation
    if stated.sharding == "Full" and distillation is not None and distillation.hidden is not None:
        wanted = f"None for stage {stage.name}, which has distillation.hidden"
        remedy = "the teacher for hidden states cannot be divided: remove one of them"
        yield Fault(f"{field}.sharding", expected("Full", wanted, remedy))
    elif stated.sharding == "Full" and stage.work_order.parallelism.processes == 1:
        problem = expected("Full", f"None for stage {stage.name}, which has one process", NEEDS_SEVERAL)
        yield Fault(f"{field}.sharding", problem)
