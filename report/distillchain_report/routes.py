"""Routes: the committed stages of a store that lead from a root teacher to a student, whichever chain trained them.

Students of one recipe with different seeds are runs of one route. Knows no task type.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distillchain_api.layout import manifest_digest
from distillchain_api.wire.manifest import Manifest
from distillchain_report.load import ListableStore
from distillchain_store.commit import read_manifest
from distillchain_store.errors import CheckpointCorrupt, OtherRelease

StepKey = str
"""A step's recipe in canonical JSON, without its seed."""


@dataclass(frozen=True)
class Route:
    """The committed stages from the first one to a student.

    Attributes:
        manifests: each is the teacher of the next; a fine-tuned root teacher is the first one.
    """

    manifests: tuple[Manifest, ...]

    @property
    def last(self) -> Manifest:
        """The student's stage."""
        return self.manifests[-1]

    @property
    def root(self) -> str:
        """Revision of the root teacher's weights."""
        first = self.manifests[0]
        return first.teacher.revision if first.teacher else first.student.revision

    @property
    def steps(self) -> tuple[Manifest, ...]:
        """The stages that have a teacher."""
        return tuple(manifest for manifest in self.manifests if manifest.teacher)

    @property
    def key(self) -> tuple[StepKey, ...]:
        """Equal for two runs that differ in seeds only."""
        return tuple(step_key(manifest) for manifest in self.manifests)

    @property
    def students(self) -> tuple[str, ...]:
        """Where each step's student starts, in canonical JSON."""
        return tuple(student_key(manifest) for manifest in self.steps)

    def prefix(self, place: int) -> Route:
        """The route to one of its stages."""
        return Route(self.manifests[: place + 1])

    def shares_recipes_with(self, other: Route) -> bool:
        """Whether every student that both routes have was trained in the same way."""
        ours, theirs = (dict(zip(each.students, map(step_key, each.steps), strict=True)) for each in (self, other))
        # The last students are the same by choice, and may differ in what the labels alone teach.
        shared = set(ours) & set(theirs) - {self.students[-1]} if self.steps else set()
        return all(ours[student] == theirs[student] for student in shared)

    @property
    def names(self) -> list[str]:
        """The names of the steps."""
        return [manifest.stage for manifest in self.steps]


def student_key(manifest: Manifest) -> str:
    """Where a student starts, and its size: `fromTeacher` gives another student for another teacher."""
    return _canonical({"student": manifest.recipe.get("student"), "parameters": manifest.student.parameters})


def step_key(manifest: Manifest) -> StepKey:
    """The recipe of a step without its seed and without the teacher before."""
    recipe = manifest.recipe
    training = {name: value for name, value in recipe.get("training", {}).items() if name != "seed"}
    further = [[other.facts.revision, other.share] for other in manifest.further_teachers]
    return _canonical({**recipe, "training": training, "further": further})


def learns_from_labels_alone(manifest: Manifest) -> bool:
    """Whether there is no teacher, or its answers have no weight in the loss."""
    if manifest.teacher is None:
        return True
    distillation = manifest.recipe.get("distillation") or {}
    return distillation.get("alpha") == 0 and not distillation.get("hidden")


def has_same_rows(manifest: Manifest, other: Manifest) -> bool:
    """Whether both were measured by the same metrics on the same validation rows."""
    first, second = (
        (each.recipe.get("task", {}).get("type"), each.recipe.get("task", {}).get("labels"))
        for each in (manifest, other)
    )
    return first == second and manifest.data["validation"].sha256 == other.data["validation"].sha256


def has_same_goal(manifest: Manifest, other: Manifest) -> bool:
    """Whether both train the same student in the same way, except for the teacher and the seed.

    Learning from labels alone counts as the same way: it is the route without any teacher.
    """
    if student_key(manifest) != student_key(other):
        return False
    if step_key(manifest) == step_key(other):
        return True
    # Without a teacher there are no objectives that could be equal.
    first, second = (_for_labels(each) for each in (manifest, other))
    return first == second and (learns_from_labels_alone(manifest) or learns_from_labels_alone(other))


def read_routes(store: ListableStore) -> tuple[list[Route], list[str]]:
    """The route to every committed student of a store, and a sentence for each stage that cannot be used.

    A route that lacks a stage cannot be used: its root teacher is unknown.
    """
    found, missing = _read_manifests(store)
    routes = []
    for manifest in found.values():
        route = _walk(found, manifest)
        if route is None:
            missing.append(f"stage {manifest.stage} of {manifest.chain} ({manifest.digest[:12]}): a teacher is missing")
        else:
            routes.append(route)
    return sorted(routes, key=lambda route: (route.last.committed_at, route.last.digest)), missing


def group_runs(routes: Iterable[Route]) -> list[list[Route]]:
    """Routes that differ in seeds only, together; in the order of their first one."""
    groups: dict[tuple[StepKey, ...], list[Route]] = {}
    for route in routes:
        groups.setdefault(route.key, []).append(route)
    return list(groups.values())


def _read_manifests(store: ListableStore) -> tuple[dict[str, Manifest], list[str]]:
    found: dict[str, Manifest] = {}
    missing = []
    for item in store.list_objects("stages/"):
        digest = manifest_digest(item.key)
        if digest is None:
            continue
        try:
            manifest = read_manifest(store, digest)
        except (CheckpointCorrupt, OtherRelease) as error:
            missing.append(str(error))
            continue
        if manifest is not None:  # deleted since it was listed
            found[digest] = manifest
    return found, missing


def _walk(found: Mapping[str, Manifest], last: Manifest) -> Route | None:
    """None: a stage is missing, or the stages of a damaged store form a circle."""
    path = [last]
    while (teacher := path[0].teacher) is not None and teacher.digest is not None:
        before = found.get(teacher.digest)
        if before is None or before in path:
            return None
        path.insert(0, before)
    return Route(tuple(path))


def _for_labels(manifest: Manifest) -> str:
    """The part of a recipe that decides a training on labels alone."""
    recipe = manifest.recipe
    training = {name: value for name, value in recipe.get("training", {}).items() if name != "seed"}
    return _canonical({"task": recipe.get("task"), "training": training})


def _canonical(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(value, sort_keys=True)
