"""The answer of a committed stage, made from its manifest. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from distillchain_api.wire.answer import Committed, FurtherTeacherSummary
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.work_order import WorkOrder


def answer_of(order: WorkOrder, manifest: Manifest, *, reused: bool, warnings: Sequence[str] = ()) -> Committed:
    """What operator and command line learn of a commit.

    Args:
        warnings: besides those of the manifest.
    """
    return Committed(
        stage=order.stage,
        digest=manifest.digest,
        attempt=manifest.attempt,
        checkpoint=manifest.checkpoint,
        reused=reused,
        pretrained=manifest.pretrained,
        student=manifest.student.summary(),
        teacher=manifest.teacher.summary() if manifest.teacher else None,
        further_teachers=[
            FurtherTeacherSummary(
                name=other.name, share=other.share, metric=other.facts.metrics.validation[order.task.metric]
            )
            for other in manifest.further_teachers
        ],
        selected=manifest.run.selected,
        elapsed_s=manifest.run.elapsed_s,
        examples_per_second=manifest.run.examples_per_second,
        warnings=[*manifest.warnings, *warnings],
    )
