"""Whether the work orders of a chain fit into an environment variable, and which field makes one too large."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from distillchain_api.faults import Fault
from distillchain_api.wire.work_order import MAX_WORK_ORDER_BYTES, WorkOrder


def size_faults(orders: Iterable[WorkOrder]) -> list[Fault]:
    """One fault for each field that has to become smaller, so that each work order fits."""
    # By field: `task` is part of every stage's order and would be reported once for each.
    faults = {fault.field: fault for order in orders if (fault := size_fault(order))}
    return list(faults.values())


def size_fault(order: WorkOrder) -> Fault | None:
    """What makes a work order too large; None when it fits. Names the largest field of task, student and evidence."""
    size_bytes = len(order.to_json().encode())
    if size_bytes <= MAX_WORK_ORDER_BYTES:
        return None
    document = order.to_document()
    parts = {f"spec.task.{name}": _size_bytes(value) for name, value in document["task"].items()}
    architecture = document["student"].get("architecture", {})
    stage = order.field.removesuffix(".student")  # a control without a teacher names the student
    parts[f"{stage}.student.architecture.config"] = _size_bytes(architecture.get("config"))
    parts["spec.evidence"] = _size_bytes(document.get("evidence"))
    field = max(parts, key=parts.__getitem__)
    return Fault(
        field,
        f"takes {parts[field]} bytes, which makes the work order of stage {order.stage} {size_bytes} bytes long; "
        f"expected {MAX_WORK_ORDER_BYTES} at most, because an environment variable holds it; shorten this field",
    )


def _size_bytes(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())
