"""The verdict on a chain and its controls: reads predictions, computes for seconds on a CPU, and loads no model.

It is made again whenever it is asked for, because a student may have been committed again since.
"""

from __future__ import annotations

import logging

from distillchain_api.layout import evidence_key, manifest_key
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.evidence import EvidenceOrder
from distillchain_store.commit import read_manifest
from distillchain_store.errors import CheckpointCorrupt
from distillchain_trainer.stage.context import Context, utc_now
from distillchain_trainer.stage.report import ensure_report

log = logging.getLogger(__name__)


def run_verdict(context: Context, asked: EvidenceOrder) -> Committed:
    """Compares the students, and writes the verdict and the chain's report.

    Raises: CheckpointCorrupt if a student is not committed; NothingToCompare; errors of the store.
    """
    from distillchain_report.weigh_evidence import weigh  # no other stage needs it

    order, store = context.order, context.store
    context.reporter.report("Evaluate", 0, 1)
    last = read_manifest(store, asked.chain_digest)
    if last is None:
        raise CheckpointCorrupt(
            f"{store.uri}/{manifest_key(asked.chain_digest)} is missing: the chain's last stage is no longer committed"
        )
    document = weigh(store, order, made_at=utc_now())
    key = evidence_key(asked.chain_digest, order.digest)
    with context.patiently():
        store.write(key, document.to_json().encode())
    context.reporter.report("Evaluate", 1, 1)
    log.info("evidence written", extra={"evidence": f"{store.uri}/{key}", "outcome": document.last.outcome})
    with context.signals.deferred():  # the verdict is stored, so the report must not make it look interrupted
        ensure_report(store, order.chain, asked.chain_digest, adopted=False, verdict=order.digest)
    return Committed(
        stage=order.stage,
        digest=order.digest,
        attempt=context.attempt,
        checkpoint=f"{store.uri}/{key}",
        reused=False,
        pretrained=last.pretrained,
        student=last.student.summary(),
        elapsed_s=round(context.elapsed_s, 3),
        examples_per_second=0.0,
        evidence=document.summary(),
    )
