"""Keys of the store, relative to `spec.storage.uri`."""

from __future__ import annotations

import re

REPORT_FILE = "report.html"
CHECKPOINT_FOLDER = "checkpoint"
"""Folder of an attempt that holds the model and nothing else, so that transformers can load it as it is."""
RESULTS_FOLDER = "results"
"""Folder of an attempt with the files of distillchain_api.wire.records."""


def manifest_key(digest: str) -> str:
    """The manifest, whose existence commits the stage."""
    return f"stages/{digest}/manifest.json"


def manifest_digest(key: str) -> str | None:
    """The digest of the stage that the manifest with this key commits; None: it is another object."""
    found = re.fullmatch(r"stages/([0-9a-f]{64})/manifest\.json", key)
    return found[1] if found else None


def attempt_prefix(digest: str, attempt: str) -> str:
    """The folder of one attempt, without a slash at the end; files of a manifest are relative to it."""
    return f"stages/{digest}/attempts/{attempt}"


def checkpoint_prefix(digest: str, attempt: str) -> str:
    """The folder of one attempt's checkpoint, without a slash at the end."""
    return f"{attempt_prefix(digest, attempt)}/{CHECKPOINT_FOLDER}"


def export_prefix(digest: str, attempt: str) -> str:
    """The folder of an export, without a slash at the end."""
    return f"stages/{digest}/exports/{attempt}"


def export_record_key(digest: str, name: str) -> str:
    """The record of an export, whose existence says that all files of the export are stored.

    Args:
        name: see distillchain_api.resource.export.Export.
    """
    return f"stages/{digest}/exports/{name}.json"


def resume_prefix(digest: str) -> str:
    """The folder of a stage's resumable states."""
    return f"stages/{digest}/resume/"


def trace_key(digest: str, attempt: str, *, rank: int, step: int) -> str:
    """A profiler trace that was asked for during the training."""
    return f"stages/{digest}/traces/{attempt}-rank-{rank}-step-{step}.json.gz"


def pass_prefix(digest: str, attempt: str) -> str:
    """The folder of one attempt at a teacher's pass, without a slash at the end."""
    return f"passes/{digest}/attempts/{attempt}"


def pass_manifest_key(digest: str) -> str:
    """The manifest whose existence commits a teacher's pass."""
    return f"passes/{digest}/manifest.json"


def report_key(digest: str) -> str:
    """The chain's report, by the digest of its last stage."""
    return f"stages/{digest}/{REPORT_FILE}"


def evidence_prefix(digest: str) -> str:
    """The folder of the verdicts on a chain and its controls, by the digest of its last stage."""
    return f"stages/{digest}/evidence/"


def evidence_key(digest: str, verdict: str) -> str:
    """One verdict.

    Args:
        digest: of the last stage that is compared.
        verdict: digest of the verdict, which names all students.
    """
    return f"{evidence_prefix(digest)}{verdict}.json"


def logits_prefix(digest: str) -> str:
    """The folder of a teacher's outputs."""
    return f"logits/{digest}/"


def tensorboard_prefix(chain: str, stage: str, digest: str) -> str:
    """The folder of a stage's event files, without a slash at the end.

    Args:
        chain: namespace/name. TensorBoard shows the runs below the folder of a namespace or chain.
    """
    return f"tensorboard/{chain}/{stage}-{digest[:8]}"
