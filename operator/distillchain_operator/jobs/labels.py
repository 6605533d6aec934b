"""Labels and annotations by which the operator finds its Jobs and pods."""

from __future__ import annotations

from distillchain_api import graph

CHAIN_LABEL = "distillchain.io/chain"
STAGE_LABEL = "distillchain.io/stage"
DIGEST_LABEL = "distillchain.io/digest"
"""The first DIGEST_LABEL_CHARS of the stage's digest: a label holds 63 characters, a digest has 64."""

PODS_ANNOTATION = "distillchain.io/pods"
"""On a Job: the pods of node 0 that it has had, by the first POD_UID_CHARS of their UIDs. An evicted pod is deleted,
and the Job controller does not count it, so the number of attempts could not be known without this annotation."""

SUSPENDED_ANNOTATION = "distillchain.io/suspended"
"""On a Job: this operator suspended it. A suspended Job without it is resumed by the controller that suspended it, such
as Kueue."""

SPEC_ANNOTATION = "distillchain.io/spec"
"""On a Job: what the chain asks for, as a hash. The operator's own image and pod template are not part of it, so an
upgrade that changes them can be told from an edit."""

EVENT_STAGE_ANNOTATION = STAGE_LABEL
EVENT_JOB_ANNOTATION = "distillchain.io/job"
EVENT_FAILURE_CLASS_ANNOTATION = "distillchain.io/failure-class"
"""On an Event about a stage: its name, its Job, and why it failed or waits. Programs need not parse the note."""

EXPORT_ANNOTATION = "distillchain.io/export-only"
"""On a Job: it exports a stage that is committed, and does not train."""

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
"""On each pod: its Job; Kubernetes sets it (1.27 and later)."""

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
"""On each pod of an Indexed Job: the number of its node, from 0."""

MANAGED_BY = {"app.kubernetes.io/managed-by": "distillchain"}

POD_UID_CHARS = 8
DIGEST_LABEL_CHARS = 32
TRAINER_CONTAINER = graph.TRAINER_CONTAINER


def digest_label(digest: str) -> str:
    """A digest in the form of the label."""
    return digest[:DIGEST_LABEL_CHARS]
