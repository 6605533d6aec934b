"""Names by which the operator finds what it made."""

from __future__ import annotations

CHAIN_LABEL = "distillchain.io/chain"
STAGE_LABEL = "distillchain.io/stage"
DIGEST_LABEL = "distillchain.io/digest"
"""The first DIGEST_LABEL_CHARS of the stage's digest: a label holds 63 characters, a digest has 64."""

PODS_ANNOTATION = "distillchain.io/pods"
"""Of a Job: the pods seen of it, by the first POD_UID_CHARS of their UIDs. An evicted pod is deleted, and the Job
controller does not count it: without this note nobody could tell how many attempts there were."""

SUSPENDED_ANNOTATION = "distillchain.io/suspended"
"""Of a Job: this operator has suspended it. One without it was suspended by another, such as Kueue, who resumes it."""

POD_UID_CHARS = 8
DIGEST_LABEL_CHARS = 32
TRAINER_CONTAINER = "trainer"


def digest_label(digest: str) -> str:
    """A digest as it stands in the label."""
    return digest[:DIGEST_LABEL_CHARS]
