"""Names by which the operator finds what it made."""

from __future__ import annotations

CHAIN_LABEL = "distillchain.io/chain"
STAGE_LABEL = "distillchain.io/stage"
DIGEST_LABEL = "distillchain.io/digest"
"""The first DIGEST_LABEL_CHARS of the stage's digest: a label holds 63 characters, a digest has 64."""

DIGEST_LABEL_CHARS = 32
TRAINER_CONTAINER = "trainer"


def digest_label(digest: str) -> str:
    """A digest as it stands in the label."""
    return digest[:DIGEST_LABEL_CHARS]
