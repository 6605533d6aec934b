"""After the training: the student's final metrics, its gate, the upload and the manifest."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

from distillchain_api.layout import CHECKPOINT_FOLDER, RESULTS_FOLDER, checkpoint_prefix
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.manifest import Manifest, ModelFacts
from distillchain_store import commit as store_commit
from distillchain_trainer.engine.training.saved_state import clear_states
from distillchain_trainer.model_card.facts import gather_facts
from distillchain_trainer.model_card.markdown import render_card
from distillchain_trainer.models import bert_hash
from distillchain_trainer.models.checkpoints import fetch_checkpoint
from distillchain_trainer.models.licenses import CARD_FILE
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.lora import has_adapter, merge_adapter, trained_parameters
from distillchain_trainer.stage.answer import answer_of
from distillchain_trainer.stage.compute import Computed
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.describe import build_manifest
from distillchain_trainer.stage.gates import check_gates
from distillchain_trainer.stage.measure import Measurer, Origin
from distillchain_trainer.stage.placing import place_for_passes
from distillchain_trainer.stage.prepare import Prepared
from distillchain_trainer.stage.report import import_ahead
from distillchain_trainer.tasks.interface import Measurement

log = logging.getLogger(__name__)


def commit(context: Context, prepared: Prepared, computed: Computed) -> Committed:
    """Measures the trained student, checks its gate, uploads it and commits, or adopts the commit of a faster pod.

    All ranks measure; the rest is rank 0's, and the others wait for its answer.

    Raises: GateNotMet, TrainingDiverged; errors of the store.
    """
    attempt = context.scratch("attempt")
    student = _write_student(context, prepared, computed, attempt)
    check_gates(
        context.order,
        student,
        computed.teacher.facts if computed.teacher else None,
        kept=f"the trained student is kept in {computed.states.uri}: with a looser gate, it is committed without "
        "training again",
    )
    # The gates come before the upload: a student that misses one leaves nothing in the store but its saved state.
    publish = partial(_publish, context, prepared, computed, student, attempt)
    return Committed.parse(context.world.from_main(lambda: publish().to_json(), "commit"))


def _publish(context: Context, prepared: Prepared, computed: Computed, student: ModelFacts, attempt: Path) -> Committed:
    order = context.order
    own = build_manifest(
        context,
        prepared.data,
        start=prepared.student.start,
        pretrained=prepared.student.pretrained,
        licenses=_licenses(prepared),
        student=student,
        teacher=computed.teacher.facts if computed.teacher else None,
        further_teachers=[other.facts for other in computed.further_teachers],
        stats=computed.stats,
    )
    _write_card(context, prepared, own, attempt)
    manifest = _upload(context, own, attempt)
    adopted = manifest.attempt != context.attempt
    # Gates are not part of the digest, so the faster pod may have had looser ones.
    if adopted:
        check_gates(order, manifest.student, manifest.teacher, kept=f"its checkpoint is {manifest.checkpoint}")
    # Only after the commit: until then, the state is what the next attempt continues from.
    kept_behind = clear_states(context.store, order.digest)
    return _tracked(context, computed, manifest, answer_of(order, manifest, reused=adopted, warnings=kept_behind))


def _tracked(context: Context, computed: Computed, manifest: Manifest, answer: Committed) -> Committed:
    """The answer with what the user should know of the trackers, which get the final metrics."""
    with context.signals.deferred():  # the stage is committed, so a stop must not be reported any more
        stats = computed.stats
        context.tracking.follow(computed.history.points, step=stats.steps, train_s=stats.train_s)
        warnings = context.tracking.committed(manifest)
    # Not in the manifest: it says nothing about the student.
    return answer.model_copy(update={"warnings": [*answer.warnings, *warnings]})


def _licenses(prepared: Prepared) -> dict[str, str]:
    sources = {"teacher": prepared.teacher.checkpoint if prepared.teacher else None, "start": prepared.student_start}
    return {name: files.license for name, files in sources.items() if files and files.license}


def _write_card(context: Context, prepared: Prepared, manifest: Manifest, attempt: Path) -> None:
    folder = attempt / CHECKPOINT_FOLDER
    code_file = None
    if prepared.student.model.config.model_type == bert_hash.BertHashConfig.model_type:
        # transformers does not have this model type. The module needs nothing of this package.
        code_file = Path(bert_hash.__file__).name
        shutil.copyfile(bert_hash.__file__, folder / code_file)
    card = render_card(gather_facts(context.store, manifest, attempt, code_file=code_file))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _write_student(context: Context, prepared: Prepared, computed: Computed, attempt: Path) -> ModelFacts:
    """Writes checkpoint, predictions and history below the folder `attempt`. Returns: the student as it is measured."""
    model = computed.student.model
    if has_adapter(model):
        computed.stats.trained_parameters = trained_parameters(model)
        # Before anything is measured: the metrics are those of the weights that are committed.
        merge_adapter(model)
    prepared.task.after_training(computed.student)
    save = partial(_save, context, computed.student, attempt / CHECKPOINT_FOLDER)
    origin = Origin(**json.loads(context.world.from_main(lambda: json.dumps(asdict(save())), "writing the student")))
    # Only now, because a checkpoint is written from whole weights, in float32.
    place_for_passes(context, model)
    measurer = Measurer(context, prepared.task, computed.stats)
    facts, measured = measurer.facts(computed.student, origin, prepared.data.splits, "Evaluate")
    if context.world.is_main:
        _write_measurements(context, prepared, computed, measured, attempt / RESULTS_FOLDER)
    for sentence in measured["validation"].warnings:
        context.warnings.add(f"the trained model: {sentence}")
    log.info("student measured", extra={"parameters": facts.parameters, **facts.metrics.validation})
    # A warning and no failure: only a gate refuses a student. Status, table and report show the doubt.
    if facts.doubt and context.world.is_main:
        log.warning("the student may not have learned the task", extra={"why": facts.doubt})
    return facts


def _save(context: Context, student: Loaded, folder: Path) -> Origin:
    """Writes the checkpoint and describes it as the next stage will find it."""
    order = context.order
    student.model.save_pretrained(folder)
    # Without a limit of its own, a pipeline of transformers that truncates would read longer texts than were trained.
    student.tokenizer.model_max_length = order.task.max_length
    student.tokenizer.save_pretrained(folder)
    own = fetch_checkpoint(f"file://{folder}", field=order.field, endpoint_url=None, region=None, folder=folder)
    return Origin(
        source=f"{context.store.uri}/{checkpoint_prefix(order.digest, context.attempt)}",
        revision=own.revision,
        digest=order.digest,
        size_bytes=own.weight_bytes,
    )


def _write_measurements(
    context: Context, prepared: Prepared, computed: Computed, measured: dict[str, Measurement], folder: Path
) -> None:
    folder.mkdir(exist_ok=True)
    order, validation = context.order, measured["validation"]
    for name, measurement in measured.items():
        measurement.write_predictions(folder / f"predictions-{name}.jsonl")
    if computed.stats.selected is None:
        # The loop has measured every epoch but the last; this is the last one. Where the best epoch was chosen, it has
        # measured all of them.
        computed.history.measured(computed.stats.steps, float(order.training.epochs), validation.metrics)
    computed.history.write(folder)
    if computed.teacher is not None:
        assert order.teacher is not None
        prepared.task.write_comparison(
            folder,
            context.store,
            prepared.data.validation,
            student=validation,
            teacher=computed.teacher.on_validation,
            root=order.teacher.digest,
        )


def _upload(context: Context, manifest: Manifest, attempt: Path) -> Manifest:
    """Uploads the attempt, then commits it. Returns: the manifest that holds, which may be another attempt's."""
    context.reporter.report("Upload", 0, 1)
    # Only now: while models are measured, imports would slow them down.
    if context.order.final:
        import_ahead()
    with context.patiently():
        # The training is over, so an outage here is waited out for as long as the trained student is worth.
        files = store_commit.upload_attempt(context.store, manifest.digest, manifest.attempt, attempt)
        winner = store_commit.commit(context.store, manifest.model_copy(update={"files": files}))
    context.reporter.report("Upload", 1, 1)
    return winner
