"""Objects of a store that nothing needs: what killed pods, lost races and finished stages left behind.

Only what is known to be unneeded is named. A manifest, the files that it lists, reports, traces and objects of an
unknown kind are never garbage, and neither is anything in a stage or pass that was written to recently.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from distillchain_api.faults import BadDocument
from distillchain_api.wire.export import ExportRecord
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.pass_manifest import PassManifest
from distillchain_store.commit import read_manifest
from distillchain_store.discarding import discarded_prefix
from distillchain_store.errors import CheckpointCorrupt, ObjectMissing, OtherRelease
from distillchain_store.passes import read_pass
from distillchain_store.store import Store, StoredObject, Unfinished

PART = re.compile(
    r"(?P<vertex>(?:stages|passes)/[0-9a-f]{64})/(?P<kind>attempts|exports|resume|discarded)/(?P<name>[^/]+)"
)
FOLDERS = ("stages/", "passes/", "logits/")
LOGITS = re.compile(r"logits/(?P<digest>[0-9a-f]{64})/")


@dataclass(frozen=True)
class Garbage:
    """Objects in one folder that nothing needs.

    Attributes:
        folder: their common prefix.
        why: in a few words.
        objects: what to delete.
        writes: unfinished writes to abandon.
    """

    folder: str
    why: str
    objects: Sequence[StoredObject] = ()
    writes: Sequence[Unfinished] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes that a deletion frees, as far as the store says."""
        return sum(item.size_bytes for item in self.objects) + sum(write.size_bytes for write in self.writes)

    @property
    def modified_s(self) -> float:
        """When the newest of them was written."""
        return max([*(item.modified_s for item in self.objects), *(write.started_s for write in self.writes)])


@dataclass(frozen=True)
class Found:
    """All garbage of a store.

    Attributes:
        garbage: by folder.
        kept: a sentence for each part of the store that was left alone although it may hold garbage.
        logits: what a teacher's stored outputs take, whether they are garbage or not.
    """

    garbage: list[Garbage] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    logits: list[StoredObject] = field(default_factory=list)


def find_garbage(
    store: Store,
    *,
    written_before_s: float,
    with_logits: bool = False,
    needed_stages: Collection[str] | None = None,
) -> Found:
    """What nothing needs.

    Args:
        written_before_s: seconds since the epoch, by the store's clock. A stage or pass with an attempt, an export or a
            saved state written after it may be running, and one whose commit was discarded after it may be restored,
            so nothing of it is garbage.
        with_logits: stored outputs of teachers are garbage too. A later stage would compute them again.
        needed_stages: digests of the stages that are still to be trained; saved states of all others are garbage. None:
            every saved state of a stage without a commit is needed.
    Raises: errors of the store.
    """
    found = Found()
    vertices: dict[str, list[StoredObject]] = defaultdict(list)
    # Whatever else lies in the bucket or on the disk is not ours, and may be large or not readable.
    for item in (item for folder in FOLDERS for item in store.list_objects(folder)):
        if match := PART.match(item.key):
            vertices[match["vertex"]].append(item)
        elif LOGITS.match(item.key):
            found.logits.append(item)
    for vertex, objects in vertices.items():
        newest = max(objects, key=lambda item: item.modified_s)
        if newest.modified_s >= written_before_s:
            is_discarded = newest.key.startswith(discarded_prefix(_manifest_key(vertex)))
            why = (
                "discarded recently, so it may be restored"
                if is_discarded
                else "written to recently, so it may be running"
            )
            found.kept.append(f"{'pass' if _is_pass(vertex) else 'stage'} {_digest(vertex)[:12]} was {why}")
            continue
        try:
            found.garbage.extend(_of_vertex(store, vertex, objects, needed_stages))
        except (CheckpointCorrupt, OtherRelease) as error:
            # What such a manifest needs is unknown.
            found.kept.append(str(error))
    if with_logits:
        passes = outputs_of_passes(store, discarded_after_s=written_before_s)
        if passes:
            found.kept.append(
                "outputs that the pass of a teacher has computed: stages read them, and would not compute them again"
            )
        # As a whole: a pass that still runs relies on the parts that it wrote days ago.
        recent = {_folder(item) for item in found.logits if item.modified_s >= written_before_s}
        old = [item for item in found.logits if _folder(item) not in passes | recent]
        found.garbage.extend(_by_folder(old, "outputs of a teacher; they can be computed again"))
    for write in (write for folder in FOLDERS for write in store.list_unfinished(folder)):
        if write.started_s < written_before_s:
            found.garbage.append(Garbage(write.key, "a write that never ended", writes=[write]))
    return found


def outputs_of_passes(store: Store, *, discarded_after_s: float, others_than: Collection[str] = ()) -> set[str]:
    """Folders of outputs that a pass has promised to later stages: it is committed, or was discarded recently.

    Args:
        others_than: digests of passes that do not count.
    """
    needed = set()
    for item in store.list_objects("passes/"):
        if item.key.split("/")[1] in others_than:
            continue
        is_recent = "/discarded/" in item.key and item.modified_s >= discarded_after_s
        if item.key.endswith("/manifest.json") or is_recent:
            # Of another release, too: whatever it lists is kept.
            needed |= set(re.findall(r'"logits":\s*"([0-9a-f]{64})"', store.read(item.key).decode(errors="replace")))
    return {f"logits/{digest}" for digest in needed}


def _folder(item: StoredObject) -> str:
    return item.key.rpartition("/")[0]


def _is_pass(vertex: str) -> bool:
    return vertex.startswith("passes/")


def _digest(vertex: str) -> str:
    return vertex.partition("/")[2]


def _manifest_key(vertex: str) -> str:
    return f"{vertex}/manifest.json"


def _read_commit(store: Store, vertex: str) -> Manifest | PassManifest | None:
    return (read_pass if _is_pass(vertex) else read_manifest)(store, _digest(vertex))


def _committed_keys(vertex: str, manifest: Manifest | PassManifest) -> set[str]:
    return {f"{vertex}/attempts/{manifest.attempt}/{entry.path}" for entry in manifest.files}


def _of_vertex(
    store: Store, vertex: str, objects: Iterable[StoredObject], needed_stages: Collection[str] | None
) -> list[Garbage]:
    by_kind: dict[str, list[StoredObject]] = defaultdict(list)
    for item in objects:
        match = PART.match(item.key)
        assert match is not None
        by_kind[match["kind"]].append(item)
    manifest = _read_commit(store, vertex)
    if manifest is None:
        found = _by_folder(by_kind["attempts"], "an attempt that was never committed")
        # Exports have nothing to belong to, but they may be in use; a new commit makes them garbage.
        if needed_stages is not None and _digest(vertex) not in needed_stages:
            found += _by_folder(by_kind["resume"], "saved state of a stage that no given chain has")
        return found
    committed = _committed_keys(vertex, manifest)
    own_prefix = f"{vertex}/attempts/{manifest.attempt}/"
    own = [item for item in by_kind["attempts"] if item.key.startswith(own_prefix)]
    others = [item for item in by_kind["attempts"] if not item.key.startswith(own_prefix)]
    found = [
        *_by_folder([item for item in own if item.key not in committed], "not part of the commit"),
        *_by_folder(others, "an attempt that another one forestalled"),
        *_by_folder(by_kind["resume"], "saved state of a committed stage"),
    ]
    return found if isinstance(manifest, PassManifest) else found + _exports(store, manifest, by_kind["exports"])


def _exports(store: Store, manifest: Manifest, objects: Sequence[StoredObject]) -> list[Garbage]:
    """Exports of weights that are no longer committed, and files that no record lists."""
    records = [item for item in objects if item.key.endswith(".json") and item.key.count("/") == 3]
    needed: set[str] = set()
    for item in records:
        try:
            record = ExportRecord.parse(store.read(item.key))
        except (ObjectMissing, BadDocument, UnicodeDecodeError):
            return []  # what it lists is unknown
        if record.weights == manifest.student.revision:
            folder = f"{item.key.rpartition('/')[0]}/{record.attempt}"
            needed |= {item.key, *(f"{folder}/{entry.path}" for entry in record.files)}
    return _by_folder([item for item in objects if item.key not in needed], "an export of other weights, or cut short")


def _by_folder(objects: Iterable[StoredObject], why: str) -> list[Garbage]:
    folders: dict[str, list[StoredObject]] = defaultdict(list)
    for item in objects:
        match = PART.match(item.key) or LOGITS.match(item.key)
        assert match is not None
        folders[match[0].rstrip("/")].append(item)
    return [Garbage(folder, why, objects=items) for folder, items in folders.items()]


def delete_garbage(store: Store, garbage: Garbage, *, written_before_s: float) -> bool:
    """Deletes it, unless its stage or pass was committed or discarded since it was found.

    Args:
        written_before_s: as it was given to `find_garbage`.
    Returns: whether it was deleted. Raises: errors of the store.
    """
    # A pass may have been committed since, and then it has promised these outputs to later stages.
    is_logits = LOGITS.match(f"{garbage.folder}/")
    if is_logits and garbage.folder in outputs_of_passes(store, discarded_after_s=written_before_s):
        return False
    match = PART.match(garbage.folder)
    if match and match["kind"] == "attempts":
        vertex = match["vertex"]
        # A pod that was asleep for a day could commit an old attempt after it was listed.
        manifest = _read_commit(store, vertex)
        if manifest and not _committed_keys(vertex, manifest).isdisjoint(item.key for item in garbage.objects):
            return False
        # After the manifest is read: its copy is written before it is deleted.
        discarded = store.list_objects(discarded_prefix(_manifest_key(vertex)))
        if any(item.modified_s >= written_before_s for item in discarded):
            return False
    store.delete([item.key for item in garbage.objects])
    store.abandon(list(garbage.writes))
    return True
