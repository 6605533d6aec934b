"""Reads the verdict on a chain and its controls from the store."""

from __future__ import annotations

from dataclasses import dataclass, field

from distillchain_api.faults import BadDocument
from distillchain_api.layout import evidence_prefix
from distillchain_api.wire.evidence import EvidenceDocument
from distillchain_report.load import ListableStore
from distillchain_store.commit import read_manifest
from distillchain_store.errors import CheckpointCorrupt, ObjectMissing, OtherRelease


@dataclass(frozen=True)
class LoadedEvidence:
    """What the store holds.

    Attributes:
        document: the verdict; None: there is none that can be used.
        missing: one sentence for each verdict that cannot be used.
    """

    document: EvidenceDocument | None = None
    missing: list[str] = field(default_factory=list)


def load_evidence(store: ListableStore, last_digest: str, *, chain: str, verdict: str = "") -> LoadedEvidence:
    """The verdict on a chain. Chains that end with the same student have theirs in one folder.

    Args:
        last_digest: of its last stage.
        chain: namespace/name. Its verdicts come before those of other chains, newer ones first.
        verdict: digest of the verdict that comes before all others; empty: unknown.
    Raises: StoreError if the store itself fails.
    """
    found: list[EvidenceDocument] = []
    missing: list[str] = []
    for item in store.list_objects(evidence_prefix(last_digest)):
        try:
            document = EvidenceDocument.parse(store.read(item.key))
        except ObjectMissing:
            continue  # deleted since it was listed
        except (BadDocument, UnicodeDecodeError) as error:
            missing.append(f"no verdict: {store.uri}/{item.key} cannot be read ({str(error).splitlines()[0]})")
            continue
        found.append(document)
    for document in sorted(
        found, key=lambda each: (each.digest == verdict, each.chain == chain, each.made_at), reverse=True
    ):
        if (fault := _fault(store, document)) is None:
            if document.chain != chain:
                missing.append(
                    f"no verdict on this chain itself: the verdict on {document.chain} is shown, which ends with the "
                    "same student"
                )
            return LoadedEvidence(document, missing)
        missing.append(f"no verdict: the one of {document.made_at} is not used, because {fault}")
    return LoadedEvidence(None, missing)


def _fault(store: ListableStore, document: EvidenceDocument) -> str | None:
    """Why a verdict says nothing about what is committed now."""
    for student in document.students:
        try:
            manifest = read_manifest(store, student.digest)
        except (CheckpointCorrupt, OtherRelease) as error:
            return f"{student.name} cannot be read ({error})"
        if manifest is None:
            return f"{student.name} is no longer committed"
        # Both times are UTC in the same form. A stage that was trained again has other weights.
        if manifest.committed_at > document.made_at:
            return f"{student.name} was trained again after it"
    return None
