"""The pass of a teacher as a Job of its own: it is measured, its gate is checked, and it answers for all rows.

Its commit is a manifest of its own. The stage that needs it reads facts and outputs, and never loads the teacher.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from distillchain_api.gates import missed_teacher_gate, teacher_sentence
from distillchain_api.layout import CHECKPOINT_FOLDER, RESULTS_FOLDER
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.pass_manifest import OUTPUTS_FILE, PassManifest
from distillchain_store.errors import CheckpointCorrupt
from distillchain_store.passes import commit_pass, read_pass, verify_pass
from distillchain_trainer.errors import GateNotMet
from distillchain_trainer.gpus import check_gpus_are_seen
from distillchain_trainer.libraries import import_libraries
from distillchain_trainer.models.checkpoint_files import WANTED
from distillchain_trainer.stage.context import Context, utc_now
from distillchain_trainer.stage.pass_checks import check_same_teacher, withdrawn_if_unusable

if TYPE_CHECKING:
    from distillchain_trainer.tasks.interface import Measurement

log = logging.getLogger(__name__)


def run_pass(context: Context) -> Committed:
    """Makes the pass of a work order, or adopts the one that is committed.

    Raises: as a stage that measures its teacher does.
    """
    world = context.world

    def found() -> str:
        manifest = _find_usable(context)
        return manifest.to_json() if manifest else ""

    known = world.from_main(found, "search for the pass")
    if known:
        manifest = PassManifest.parse(known)
        _check_gate(context, manifest)
        log.info("pass found committed", extra={"digest": manifest.digest, "attempt": manifest.attempt})
        return _answer_of(context, manifest, reused=True)
    return _make(context)


def _find_usable(context: Context) -> PassManifest | None:
    """The committed pass, its files verified. One that is damaged or of other weights is withdrawn."""
    manifest = read_pass(context.store, context.order.digest)
    if manifest is None:
        return None
    try:
        check_same_teacher(context, manifest)
        with withdrawn_if_unusable(context, manifest):
            verify_pass(context.store, manifest)
    except CheckpointCorrupt as error:
        # Not where the store refuses the deletion: the commit would stay that of the old pass.
        if read_pass(context.store, context.order.digest) is not None:
            raise
        log.warning("the pass cannot be used and is made again", extra={"why": str(error)})
        return None
    return manifest


def _make(context: Context) -> Committed:
    # torch and transformers take seconds to import, and a committed pass needs neither.
    import_libraries()
    check_gpus_are_seen()
    from distillchain_trainer.engine.passes.teacher_outputs import outputs_digest
    from distillchain_trainer.stage.ask_teacher import teacher_outputs
    from distillchain_trainer.stage.compute import apply_numbers, measure_teacher
    from distillchain_trainer.stage.describe import environment
    from distillchain_trainer.stage.measure import Measurer
    from distillchain_trainer.stage.prepare import prepare_teacher
    from distillchain_trainer.stage.run_stats import RunStats

    order = context.order
    task, data, teacher = prepare_teacher(context)
    apply_numbers(order.training)
    stats = RunStats()
    measured = measure_teacher(context, task, data, teacher, Measurer(context, task, stats))
    outputs = teacher_outputs(context, task, data, teacher, stats)
    rows = len(outputs.place)
    manifest = PassManifest(
        digest=order.digest,
        chain=order.chain,
        stage=order.stage,
        attempt=context.attempt,
        # Sizes and hashes are known after the upload.
        files=[],
        teacher=measured.facts,
        teacher_files=teacher.checkpoint.digest,
        license=teacher.checkpoint.license,
        columns=None if teacher.loaded.columns is None else list(teacher.loaded.columns),
        data=data.facts,
        rows=rows,
        logits=outputs_digest(teacher.checkpoint.digest, order.task, order.training),
        elapsed_s=round(context.elapsed_s, 3),
        examples_per_second=round(rows / max(outputs.elapsed_s, 1e-9), 2) if not outputs.reused else 0.0,
        processes=context.world.size,
        warnings=context.warnings.sentences,
        environment=environment(context),
        committed_at=utc_now(),
    )
    commit = partial(_commit, context, manifest, teacher.checkpoint.folder, measured.splits)
    return Committed.parse(context.world.from_main(commit, "commit of the pass"))


def _commit(context: Context, own: PassManifest, checkpoint: Path, measured: Mapping[str, Measurement]) -> str:
    """Uploads the files of a pass and commits it. Returns: the answer, of another attempt if that was faster."""
    folder = context.scratch("attempt")
    _copy_small_files(checkpoint, folder / CHECKPOINT_FOLDER)
    (folder / RESULTS_FOLDER).mkdir()
    for name, measurement in measured.items():
        path = folder / RESULTS_FOLDER / OUTPUTS_FILE.format(split=name)
        safetensors.numpy.save_file({"outputs": np.ascontiguousarray(measurement.outputs)}, path)
    context.reporter.report("Upload", 0, 1)
    with context.patiently():
        manifest = commit_pass(context.store, own, folder)
    context.reporter.report("Upload", 1, 1)
    adopted = manifest.attempt != context.attempt
    if adopted:
        _check_gate(context, manifest)
    return _answer_of(context, manifest, reused=adopted).to_json()


def _copy_small_files(source: Path, folder: Path) -> None:
    """Configuration and tokenizer; the weights stay where they are."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name.endswith(WANTED) and not path.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(path, folder / path.name)


def _check_gate(context: Context, manifest: PassManifest) -> None:
    """The gate of the root teacher as the work order has it now. Raises: GateNotMet."""
    order = context.order
    if miss := missed_teacher_gate(order, manifest.teacher.metrics.validation[order.task.metric]):
        raise GateNotMet(teacher_sentence(miss, order, uri=manifest.teacher.source))


def _answer_of(context: Context, manifest: PassManifest, *, reused: bool) -> Committed:
    teacher = manifest.teacher.summary()
    return Committed(
        stage=context.order.stage,
        digest=manifest.digest,
        attempt=manifest.attempt,
        # It has no checkpoint of its own: this is the one that it asked.
        checkpoint=manifest.teacher.source,
        reused=reused,
        pretrained=True,
        student=teacher,
        teacher=teacher,
        elapsed_s=manifest.elapsed_s,
        examples_per_second=manifest.examples_per_second,
        warnings=manifest.warnings,
    )
