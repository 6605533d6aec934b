"""Teacher in, student out: the part of a stage that needs models. `run` has found that it is not committed yet."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import transformers

from distillchain_api import layout
from distillchain_api.digests import sha256_of
from distillchain_api.wire.answer import Committed, ProgressPhase
from distillchain_api.wire.manifest import Manifest, ModelFacts, SplitMetrics
from distillchain_store import commit
from distillchain_store.errors import CheckpointCorrupt, StorageUnavailable
from distillchain_store.store import with_patience
from distillchain_trainer.engine.encode import Encoder, best_device
from distillchain_trainer.engine.history import History
from distillchain_trainer.engine.loop import Batches, Standing, load_weights, save_weights, train
from distillchain_trainer.engine.saved_state import ResumeIndex, ResumeStates, clear_states
from distillchain_trainer.engine.teacher_logits import logits_digest, teacher_logits
from distillchain_trainer.models.checkpoints import Checkpoint, fetch_checkpoint, fetch_committed, forget
from distillchain_trainer.stage import describe
from distillchain_trainer.stage.comparison import keeps_texts, write_comparison
from distillchain_trainer.stage.describe import Tally
from distillchain_trainer.tasks.text_classification import chance as gates
from distillchain_trainer.tasks.text_classification.evaluate import Measurement, measure, write_predictions
from distillchain_trainer.tasks.text_classification.labels import ClassOrder
from distillchain_trainer.tasks.text_classification.models import (
    Loaded,
    build_student,
    load_student,
    load_teacher,
    renew_head,
)
from distillchain_trainer.tasks.text_classification.rows import Split, TaskData, read_task_data

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distillchain_trainer.stage.run import Context

log = logging.getLogger(__name__)

TRAINED_PATIENCE_S = 1800.0
STOP_PATIENCE_S = 60.0  # of the 120 that the operator gives its pods

# Its load reports would be mistaken for faults: what is new or missing in a checkpoint we say ourselves.
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers has no types there


@dataclass(frozen=True)
class Teacher:
    """A measured teacher."""

    loaded: Loaded
    checkpoint: Checkpoint
    facts: ModelFacts
    on_validation: Measurement


def train_stage(context: Context) -> Committed:
    """Runs a stage that is not committed. See run.run_stage."""
    from distillchain_trainer.stage.run import answer_of, check_gate

    order, tally = context.order, Tally()
    keeps_texts()  # a misspelt wish is said before training, not after
    storage = order.storage
    data = read_task_data(
        order.task, endpoint_url=storage.endpoint_url, region=storage.region, folder=_fresh(context, "data")
    )
    log.info("data read", extra={name: len(split) for name, split in data.splits.items()})
    encoder = Encoder(order.task.max_length, check=context.signals.raise_if_requested)
    teacher = _prepare_teacher(context, data, encoder, tally)
    student, start_digest = _load_student(context, data, encoder, tally)
    source = sha256_of([data.train.facts.sha256, teacher.checkpoint.digest if teacher else None, start_digest])
    states = ResumeStates(context.store, order.digest, context.attempt, source=source)
    found = states.load_newest(_fresh(context, "resume"))
    history = History.read(found[1] if found else None)
    if found:
        _take_over(context, tally, found[0])
    if found and found[0].finished:
        if teacher:
            _dismiss(context, teacher)
        load_weights(student.model, found[1])
        log.info("training was finished before; its student is measured again", extra={"step": found[0].step})
    else:
        _train(context, data, encoder, teacher, student, tally, states, history, found[1] if found else None)
    attempt = _fresh(context, "attempt")
    student_facts = _describe_student(context, data, encoder, teacher, student, tally, history, attempt)
    teacher_facts = teacher.facts if teacher else None
    check_gate(
        order,
        student_facts,
        teacher_facts,
        kept=f"the trained student is kept under {states.uri}, and with another gate the chain applied again goes on "
        "from it without training",
    )
    manifest = describe.build_manifest(
        order,
        data,
        attempt=context.attempt,
        pretrained=student.pretrained,
        start=student.start,
        student=student_facts,
        teacher=teacher_facts,
        tally=tally,
        started_at=context.started_at,
        elapsed_s=tally.elapsed_before_s + context.elapsed_s,
    )
    manifest = _commit(context, manifest, attempt)
    adopted = manifest.attempt != context.attempt
    if adopted:
        check_gate(order, manifest.student, manifest.teacher, kept=f"its checkpoint is {manifest.checkpoint}")
    clear_states(context.store, order.digest)
    return answer_of(order, manifest, reused=adopted)


def _prepare_teacher(context: Context, data: TaskData, encoder: Encoder, tally: Tally) -> Teacher | None:
    """Pull and verify, match classes, measure, hold the gate."""
    order = context.order
    if order.teacher is None:
        return None
    context.reporter.report("FetchTeacher", 0, 1)
    checkpoint = _fetch_teacher(context)
    loaded = load_teacher(checkpoint, order.task)
    loaded.model.to(best_device())
    context.reporter.report("FetchTeacher", 1, 1)
    measured = _measure(context, data, encoder, loaded, tally, "MeasureTeacher", given=checkpoint)
    facts = describe.facts_of(
        loaded,
        checkpoint.uri,
        checkpoint.revision,
        order.teacher.digest,
        checkpoint.weight_bytes,
        measured,
        metric=order.task.metric,
    )
    on_validation = measured["validation"]
    gates.check_teacher(
        order.teacher,
        checkpoint.uri,
        on_validation.metrics,
        metric=order.task.metric,
        classes=data.validation.classes,
        predicted=on_validation.predicted.tolist(),
        labels=order.task.labels,
        named=loaded.order.named,
    )
    log.info("teacher measured", extra={"teacher": checkpoint.uri, **on_validation.metrics})
    return Teacher(loaded, checkpoint, facts, on_validation)


def _fetch_teacher(context: Context) -> Checkpoint:
    order, folder = context.order, context.folder / "teacher"
    teacher = order.teacher
    assert teacher is not None
    if teacher.model is not None:
        return fetch_checkpoint(
            teacher.model,
            field="spec.teacher.model",
            endpoint_url=order.storage.endpoint_url,
            region=order.storage.region,
            folder=folder,
        )
    assert teacher.digest is not None
    manifest = commit.read_manifest(context.store, teacher.digest)
    if manifest is None:
        raise CheckpointCorrupt(
            f"{context.store.uri}/{layout.manifest_key(teacher.digest)} is missing: stage {teacher.name}, which "
            "teaches this one, is not committed (any more): try again (distillchain retry), and stage "
            f"{teacher.name} is made anew"
        )
    folder.mkdir()
    return fetch_committed(context.store, manifest, field=order.field, folder=folder)


def _load_student(context: Context, data: TaskData, encoder: Encoder, tally: Tally) -> tuple[Loaded, str]:
    """The student before its training, and a sha256 over the files it starts from."""
    order, storage = context.order, context.order.storage
    wish, field = order.student, f"{order.field}.student" if order.teacher else order.field

    def fetch(uri: str, name: str, *, tokenizer_only: bool = False) -> Checkpoint:
        return fetch_checkpoint(
            uri,
            field=f"{field}.{'tokenizer' if tokenizer_only else 'model'}",
            endpoint_url=storage.endpoint_url,
            region=storage.region,
            folder=context.folder / name,
            tokenizer_only=tokenizer_only,
        )

    tokenizer = fetch(wish.tokenizer, "tokenizer", tokenizer_only=True) if wish.tokenizer else None
    checkpoint = fetch(wish.model, "student") if wish.model else None
    if wish.architecture is not None:
        assert tokenizer is not None
        student = build_student(wish.architecture, tokenizer, order.task, seed=order.training.seed, field=field)
    else:
        assert checkpoint is not None
        student = load_student(checkpoint, order.task, tokenizer=tokenizer, seed=order.training.seed)
    student.model.to(best_device())
    if not student.order.named:
        _prove_order(context, data, encoder, student, tally, checkpoint)
    return student, sha256_of([files.digest for files in (checkpoint, tokenizer) if files])


def _prove_order(
    context: Context, data: TaskData, encoder: Encoder, student: Loaded, tally: Tally, start: Checkpoint | None
) -> None:
    """A head without class names is kept only if it beats chance in class order and fits no other better."""
    order, classes = context.order, data.validation.classes
    measured = _measure_split(context, data.validation, encoder, student, tally, "MeasureStudent", given=start)
    predicted = measured.predicted.tolist()
    _, needed = gates.chance_to_beat(classes, predicted, metric=order.task.metric)
    accuracy = measured.metrics["accuracy"]
    facts = {"student": student.start, "accuracy": accuracy}
    if accuracy > needed and gates.best_order(classes, predicted, count=len(order.task.labels)) is None:
        log.info("unnamed classes are taken in class order", extra=facts)
        return
    log.warning("unnamed classes do not beat chance in class order; the student gets a new head", extra=facts)
    renew_head(student.model, seed=order.training.seed)


def _train(
    context: Context,
    data: TaskData,
    encoder: Encoder,
    teacher: Teacher | None,
    student: Loaded,
    tally: Tally,
    states: ResumeStates,
    history: History,
    resume_from: Path | None,
) -> None:
    """Trains the student in place; saves its state on the way, when stopped, and at the end (the weights alone)."""
    order, training = context.order, context.order.training
    soft = _teach(context, data, encoder, teacher, tally) if teacher else None
    encoded = encoder.encode(data.train, student.tokenizer, pad_id=student.pad_id)

    def note(standing: Standing) -> None:
        tally.model_s += standing.train_s - tally.train_s  # `validate` has added its own meanwhile
        tally.train_s, tally.steps, tally.final_loss = standing.train_s, standing.step, standing.loss

    def on_step(standing: Standing) -> None:
        context.reporter.report(
            "Train",
            standing.step,
            standing.of,
            epoch=standing.epoch,
            loss=standing.loss,
            examples_per_second=standing.examples_per_second,
            eta_s=standing.eta_s,
        )

    def validate() -> SplitMetrics:
        in_order = _in_order(order.task.labels, student)
        check = context.signals.raise_if_requested
        return _measure_split(context, data.validation, encoder, in_order, tally, "Evaluate", check=check).metrics

    def save(folder: Path, standing: Standing) -> None:
        note(standing)
        history.write(folder)
        states.save(folder, _index(context, tally, standing))
        context.signals.saved_step = standing.step

    def save_on_the_way(folder: Path, standing: Standing) -> bool:
        """While the store is away nothing is lost yet: training needs it again at the next save, or at its end."""
        if context.signals.requested:
            with _patiently(context):
                save(folder, standing)
            return True
        try:
            save(folder, standing)
        except StorageUnavailable as error:
            log.warning("the state is not saved; training goes on", extra={"step": standing.step, "why": str(error)})
            return False
        return True

    with context.signals.deferred():
        standing = train(
            student.model,
            Batches(encoded, data.train.classes, soft),
            training=training,
            distillation=order.distillation,
            folder=_fresh(context, "training"),
            resume_from=resume_from,
            before_s=tally.train_s,
            save_interval_s=order.save_interval_s,
            stop=lambda: context.signals.requested,
            on_step=on_step,
            save=save_on_the_way,
            history=history,
            validate=validate,
        )
        final = _fresh(context, "final")
        save_weights(student.model, final)
        with _patiently(context):
            save(final, standing)
    context.signals.raise_if_requested()


def _teach(
    context: Context, data: TaskData, encoder: Encoder, teacher: Teacher, tally: Tally
) -> NDArray[np.float32] | None:
    """The teacher's logits of the training rows, in the order of the task; None where only the labels count."""
    order = context.order
    if order.distillation is None or order.distillation.alpha == 0:
        _dismiss(context, teacher)
        return None
    loaded, precision = teacher.loaded, order.training.precision
    with context.signals.deferred():
        answer = teacher_logits(
            context.store,
            logits_digest(teacher.checkpoint.digest, order.task, data.train, precision=precision),
            loaded.model,
            data.train,
            encoder.encode(data.train, loaded.tokenizer, pad_id=loaded.pad_id),
            given=teacher.checkpoint,
            classes=len(order.task.labels),
            precision=precision,
            folder=_fresh(context, "logits"),
            save_interval_s=order.save_interval_s,
            stop=lambda: context.signals.requested,
            on_batch=_on_batch(context, "TeacherLogits"),
        )
    context.signals.raise_if_requested()
    tally.model_s += answer.elapsed_s
    tally.logits_reused = answer.reused
    _dismiss(context, teacher)
    return answer.logits[:, list(loaded.order.columns)]


def _dismiss(context: Context, teacher: Teacher) -> None:
    """It has said all that it was needed for: the GPU and the disk are the student's."""
    teacher.loaded.model.to("cpu")
    forget(context.folder / "teacher")


def _index(context: Context, tally: Tally, standing: Standing) -> ResumeIndex:
    return ResumeIndex(
        step=standing.step,
        of=standing.of,
        elapsed_s=tally.elapsed_before_s + context.elapsed_s,
        model_s=tally.model_s,
        train_s=standing.train_s,
        final_loss=standing.loss,
        logits_reused=tally.logits_reused,
    )


def _take_over(context: Context, tally: Tally, index: ResumeIndex) -> None:
    context.signals.saved_step = index.step
    tally.resumed = True
    tally.elapsed_before_s = index.elapsed_s
    tally.model_s += index.model_s
    tally.train_s, tally.steps, tally.final_loss = index.train_s, index.step, index.final_loss
    tally.logits_reused = index.logits_reused


def _describe_student(
    context: Context,
    data: TaskData,
    encoder: Encoder,
    teacher: Teacher | None,
    student: Loaded,
    tally: Tally,
    history: History,
    attempt: Path,
) -> ModelFacts:
    """Measures the student and puts its checkpoint, and what tells how it came to be, into the folder `attempt`."""
    order = context.order
    in_order = _in_order(order.task.labels, student)
    measured = _measure(context, data, encoder, in_order, tally, "Evaluate")
    student.model.save_pretrained(attempt)
    student.tokenizer.save_pretrained(attempt)
    for name, measurement in measured.items():
        write_predictions(attempt / f"predictions-{name}.jsonl", measurement, order.task.labels)
    history.measured(tally.steps, float(order.training.epochs), measured["validation"].metrics)
    history.write(attempt)
    if teacher:
        write_comparison(attempt, order, context.store, data.validation, measured["validation"], teacher.on_validation)
    weights = [path for path in attempt.iterdir() if path.name.endswith(".safetensors")]
    own = fetch_checkpoint(f"file://{attempt}", field=order.field, endpoint_url=None, region=None, folder=attempt)
    facts = describe.facts_of(
        in_order,
        f"{context.store.uri}/{layout.attempt_prefix(order.digest, context.attempt)}",
        own.revision,
        order.digest,
        sum(path.stat().st_size for path in weights),
        measured,
        metric=order.task.metric,
    )
    log.info("student measured", extra={"parameters": facts.parameters, **measured["validation"].metrics})
    if facts.doubt:
        log.warning("the student may not have learned the task", extra={"why": facts.doubt})
    return facts


def _in_order(labels: list[str], student: Loaded) -> Loaded:
    """A student whose head is in the order of the task."""
    straight = ClassOrder(tuple(range(len(labels))), named=True)
    return Loaded(student.model, student.tokenizer, straight, student.start, student.pretrained)


def _commit(context: Context, manifest: Manifest, attempt: Path) -> Manifest:
    """Uploads the attempt, then commits it. Returns: the manifest that holds, which may be another attempt's."""
    context.reporter.report("Upload", 0, 1)
    with _patiently(context):
        files = commit.upload_attempt(context.store, context.order.digest, context.attempt, attempt)
        winner = commit.commit(context.store, manifest.model_copy(update={"files": files}))
    context.reporter.report("Upload", 1, 1)
    return winner


def _patiently(context: Context) -> contextlib.AbstractContextManager[None]:
    """Within, the store is waited for: what is written there is trained, and nowhere else. Who is told to stop has the
    grace period of its pod, and ends with a word before it is over."""
    return with_patience(context.store, lambda: STOP_PATIENCE_S if context.signals.requested else TRAINED_PATIENCE_S)


def _measure(
    context: Context,
    data: TaskData,
    encoder: Encoder,
    loaded: Loaded,
    tally: Tally,
    phase: ProgressPhase,
    *,
    given: Checkpoint | None = None,
) -> dict[str, Measurement]:
    """A model on validation, and on test where there is one."""
    splits = {"validation": data.validation} | ({"test": data.test} if data.test else {})
    return {
        name: _measure_split(context, split, encoder, loaded, tally, phase, given=given)
        for name, split in splits.items()
    }


def _measure_split(
    context: Context,
    split: Split,
    encoder: Encoder,
    loaded: Loaded,
    tally: Tally,
    phase: ProgressPhase,
    *,
    given: Checkpoint | None = None,
    check: Callable[[], None] = lambda: None,
) -> Measurement:
    """Measures; `check` may end it between two batches by raising."""
    measured = measure(
        loaded.model,
        split,
        encoder.encode(split, loaded.tokenizer, pad_id=loaded.pad_id),
        columns=loaded.order.columns,
        precision=context.order.training.precision,
        on_batch=_on_batch(context, phase, check),
        given=given,
    )
    tally.model_s += measured.elapsed_s
    return measured


def _on_batch(
    context: Context, phase: ProgressPhase, check: Callable[[], None] = lambda: None
) -> Callable[[int, int], None]:
    started = time.monotonic()

    def report(done: int, of: int) -> None:
        check()
        elapsed_s = max(time.monotonic() - started, 1e-9)
        context.reporter.report(
            phase, done, of, examples_per_second=done / elapsed_s, eta_s=(of - done) * elapsed_s / max(done, 1)
        )

    return report


def _fresh(context: Context, name: str) -> Path:
    folder = context.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
