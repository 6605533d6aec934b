"""Chains with controls in a store, the verdict on them, and the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chain_builders import a_document
from distillchain_api.graph import Plan, build_plan
from distillchain_api.layout import evidence_key
from distillchain_api.resource.spec import parse_chain
from distillchain_report.build import build_report
from distillchain_report.evidence_files import load_evidence
from distillchain_report.load import WantedStage, load_stages
from distillchain_report.model import Report
from distillchain_report.weigh_evidence import weigh
from distillchain_store.folder import FileStore
from report.plans import commit_stages
from report.stores import MOMENT

PARAMETERS = defaultdict(lambda: 4_400_000, teacher=110_000_000, mini=11_000_000)
LATER = "2026-01-01T13:00:00Z"


def a_controlled_plan(
    *,
    stages: Sequence[str] = ("mini", "tiny"),
    controls: Sequence[str] = ("Direct", "FromRoot"),
    on: str = "Last",
    smallest_gain: float | None = None,
) -> Plan:
    evidence: dict[str, Any] = {"controls": list(controls), "seeds": 3, "stages": on}
    if smallest_gain is not None:
        evidence["smallestGain"] = smallest_gain
    return build_plan(parse_chain(a_document(stages=stages, evidence=evidence)))


def commit_controlled(
    folder: Path, plan: Plan, *, chain: float, from_root: float, direct: float, spread: float = 0.001
) -> FileStore:
    """Commits a chain and its controls, three seeds of each, and the verdict on them."""
    best = {"from-root": from_root, "direct": direct}
    accuracies = {"teacher": 0.93, "mini": 0.91, "tiny": chain}
    students = [*plan.stages, *(vertex for vertex in plan.evidence if vertex.work_order.evidence is None)]
    for vertex in students:
        recipe = next((value for name, value in best.items() if name in vertex.name), chain)
        seed = int(vertex.name[-1]) if "-s" in vertex.name else 1
        accuracies.setdefault(vertex.name, recipe + spread * (seed - 1))
    commit_stages(folder, students, accuracies, parameters=PARAMETERS)
    return weigh_students(folder, plan)


def weigh_students(folder: Path, plan: Plan, *, made_at: str = LATER) -> FileStore:
    """Writes the verdict on committed students."""
    store = FileStore(f"file://{folder}")
    verdict = plan.evidence[-1].work_order
    assert verdict.evidence
    document = weigh(store, verdict, made_at=made_at)
    store.write(evidence_key(verdict.evidence.chain_digest, verdict.digest), document.to_json().encode())
    return store


def report_on(store: FileStore, plan: Plan) -> Report:
    stages = load_stages(store, [WantedStage(stage.name, stage.digest) for stage in plan.students])
    return build_report(
        "default/relay",
        stages,
        storage=store.uri,
        generated_at=MOMENT,
        version="0.1.0",
        evidence=load_evidence(
            store, plan.students[-1].digest, chain="default/relay", verdict=plan.evidence[-1].digest
        ),
    )
