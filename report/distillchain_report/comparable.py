"""Whether students differ in nothing but what is compared. Equal digests mean equal recipes; inputs can have changed.

A file can be replaced under its URI, a model on the hub can move on, and a teacher can be trained again. Students from
before and after that are not compared: the difference could be that of the inputs. Knows no task type.
"""

from __future__ import annotations

from collections.abc import Sequence

from distillchain_api.wire.manifest import Manifest
from distillchain_report.commits import walk_back
from distillchain_report.load import LoadedStage
from distillchain_report.routes import Route
from distillchain_store.errors import CheckpointCorrupt, OtherRelease
from distillchain_store.store import ReadableStore

TRAINING = ("train", "transfer")
OTHER_ROWS = "restore the file, or give the new one another URI"


def why_not_comparable(students: Sequence[LoadedStage], reference: LoadedStage, *, root: str | None) -> str | None:
    """Why students of one recipe cannot be compared with a student of the chain; None: they can.

    Args:
        root: revision of the teacher that all of them must have; None: any, as long as it is the same for all.
    """
    if other := [each.wanted.name for each in students if _rows(each.manifest) != _rows(reference.manifest)]:
        names = f"{', '.join(other)} and {reference.wanted.name}"
        return f"not compared, because {names} have other training rows; {OTHER_ROWS}"
    if root is not None and (
        other := [each.wanted.name for each in students if _teachers(each.manifest)[:1] != [root]]
    ):
        return f"not compared, because the teacher of {', '.join(other)} is not the chain's root teacher as it is now"
    first, *rest = students
    if other := [each.wanted.name for each in rest if _teachers(each.manifest) != _teachers(first.manifest)]:
        return (
            f"not compared, because {', '.join(other)} and {first.wanted.name} were taught by different weights: their "
            "teacher has changed since"
        )
    return None


def root_revision(store: ReadableStore, digest: str) -> str | None:
    """Revision of the root teacher of a committed stage; None if a stage before it is no longer committed."""
    try:
        return Route(tuple(walk_back(store, digest))).root
    except (CheckpointCorrupt, OtherRelease):
        return None


def why_left_out(route: Route, reference: Manifest) -> str | None:
    """Why a route cannot be compared with another one to the same student; None: it can.

    Args:
        reference: the student of the other one.
    """
    name = f"{route.last.stage} of {route.last.chain} ({route.last.digest[:12]}) is not compared"
    if any(_rows(step) != _rows(reference) for step in route.steps or (route.last,)):
        return f"{name}, because it has other training rows"
    for before, after in zip(route.manifests, route.manifests[1:], strict=False):
        if after.teacher and after.teacher.revision != before.student.revision:
            return f"{name}, because {before.stage} was trained again after it had taught {after.stage}"
    return None


def _rows(manifest: Manifest | None) -> list[str | None]:
    """Identifies the labelled and the unlabelled rows of a training."""
    data = manifest.data if manifest else {}
    return [data[name].sha256 if name in data else None for name in TRAINING]


def _teachers(manifest: Manifest | None) -> list[str]:
    """Revisions of all teachers, the stage before first."""
    if manifest is None or manifest.teacher is None:
        return []
    return [manifest.teacher.revision, *(other.facts.revision for other in manifest.further_teachers)]
