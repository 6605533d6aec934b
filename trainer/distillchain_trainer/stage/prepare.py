"""Before any model computes: rows read and checked, teacher and student pulled, verified and loaded."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import transformers

from distillchain_api.digests import sha256_of
from distillchain_api.resource.stage import TEACHER_STAGE
from distillchain_api.wire.work_order import KEEP_TEXTS_ENV, TeacherRef
from distillchain_store.errors import CheckpointCorrupt
from distillchain_trainer.data.handover import read_task_data, write_task_data
from distillchain_trainer.data.split import TaskData
from distillchain_trainer.engine.device.precision import best_device, compute_head_in_float32
from distillchain_trainer.errors import TrainerError, WorkOrderInvalid
from distillchain_trainer.input_cache import input_cache
from distillchain_trainer.models.checkpoint_files import Parts
from distillchain_trainer.models.checkpoints import Checkpoint, fetch_checkpoint, fetch_committed
from distillchain_trainer.models.fewer_layers import with_fewer_layers
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.lora import add_adapter, keep_frozen_in_bfloat16
from distillchain_trainer.models.memory import Processes
from distillchain_trainer.models.outline import load_on_main
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.pass_checks import read_teacher
from distillchain_trainer.stage.placing import place_for_passes
from distillchain_trainer.stage.recalled import Recalled, recall_teacher
from distillchain_trainer.tasks import adapter_for
from distillchain_trainer.tasks.interface import TaskAdapter
from distillchain_trainer.tasks.transfer_text import with_transfer

log = logging.getLogger(__name__)

# Its reports on loading look like faults: what a checkpoint lacks is checked and reported by models/.
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers has no types there


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in memory and the files that it came from."""

    loaded: Loaded
    checkpoint: Checkpoint
    recalled: Recalled | None = None
    """Its pass, which has measured and asked it; `loaded` has no weights then."""


@dataclass(frozen=True)
class Prepared:
    """All that a stage computes with.

    Attributes:
        teacher: None for stage zero, which learns from the labels.
        further_teachers: files of the others, in the order of the work order.
        student_start: None for new weights.
        source: sha256 over the training rows, the teacher and the student's start; with `selection: Best`, over the
            validation rows too. Saved states are of one source: a digest holds URIs, and what is behind them may have
            changed.
    """

    task: TaskAdapter
    data: TaskData
    teacher: LoadedTeacher | None
    student: Loaded
    student_start: Checkpoint | None
    source: str
    further_teachers: tuple[Checkpoint, ...] = ()


def prepare(context: Context) -> Prepared:
    """Raises: DataInvalid, CheckpointInvalid, LabelMismatch, WorkOrderInvalid; errors of the store."""
    check_keep_texts()
    task = adapter_for(context.order.task, context.warnings)
    # Data before models: a faulty row is found before gigabytes of weights are downloaded.
    data = _read_data(context, task)
    log.info("data read", extra={name: facts.rows for name, facts in data.facts.items()})
    teacher = _load_teacher(context, task)
    field = f"{context.order.field}.student" if context.order.teacher else context.order.field
    start, tokenizer = _fetch_student(context, teacher, field=field)
    student = _load_student(context, task, start, tokenizer, field=field)
    task.before_training(student, data.train)
    rows = [data.train.facts.sha256, *([data.transfer.facts.sha256] if data.transfer else [])]
    if context.order.training.selection == "Best":
        # The epochs of all attempts must be measured on the same rows.
        rows.append(data.validation.facts.sha256)
    further = _fetch_further_teachers(context)
    rows += [files.digest for files in further]
    start_digest = sha256_of([files.digest for files in (start, tokenizer) if files])
    source = sha256_of([*rows, teacher.checkpoint.digest if teacher else None, start_digest])
    _check_same(context, source)
    cache = input_cache()
    for sentence in cache.faults if cache else ():
        context.warnings.add(sentence)
    return Prepared(task, data, teacher, student, start, source, further)


def prepare_teacher(context: Context) -> tuple[TaskAdapter, TaskData, LoadedTeacher]:
    """As `prepare`, for a pass, which needs no student."""
    check_keep_texts()
    task = adapter_for(context.order.task, context.warnings)
    data = _read_data(context, task)
    teacher = _load_teacher(context, task)
    assert teacher is not None, "the pass of a teacher has one"
    rows = [facts.sha256 for facts in data.facts.values()]
    _check_same(context, sha256_of([*rows, teacher.checkpoint.digest]))
    return task, data, teacher


def check_keep_texts() -> None:
    """Checks before training what is read after it. Raises: WorkOrderInvalid."""
    value = os.environ.get(KEEP_TEXTS_ENV, "")
    if value not in ("", "0", "1"):
        raise WorkOrderInvalid(
            f"{KEEP_TEXTS_ENV}: got {value!r}, expected 0 or 1; with 0 no validation text is copied into the store"
        )


def _read_data(context: Context, task: TaskAdapter) -> TaskData:
    """The rows, which one process of each node fetches and checks, and hands to the others in a file."""
    world, storage, folder = context.world, context.order.storage, context.scratch("data")
    handed_over = folder / "rows.json"
    data = None
    if world.leads_node:
        data = task.read_data(endpoint_url=storage.endpoint_url, region=storage.region, folder=folder)
        data = with_transfer(
            data,
            context.order.task,
            endpoint_url=storage.endpoint_url,
            region=storage.region,
            folder=folder / "transfer",
            warnings=context.warnings,
        )
        if not world.is_alone:
            write_task_data(handed_over, data)
    world.meet("reading of the data")
    return data or read_task_data(handed_over)


def _check_same(context: Context, source: str) -> None:
    """That all ranks have read the same. Raises: TrainerError."""
    expected = context.world.from_main(lambda: source, "comparison of the data and models that were read")
    if source != expected:
        raise TrainerError(
            f"rank {context.world.rank} has read another version of data, teacher or student than rank 0: one of them "
            "was replaced while the processes fetched it; try again"
        )
    # Nodes download at different speeds, and a teacher that is split computes in collectives, which have a time limit.
    context.world.meet("loading of the models")


def _fetch_once(context: Context, fetch: Callable[[], Checkpoint], what: str) -> Checkpoint:
    """A checkpoint that one process of each node fetches and verifies, in the folder that they share."""

    def fetched() -> str:
        return json.dumps({name: str(value) for name, value in asdict(fetch()).items()})

    found = json.loads(context.world.from_leader(fetched, what))
    return Checkpoint(
        **{**found, "folder": Path(found["folder"]), "weight_bytes": int(found["weight_bytes"])},
    )


def _load_teacher(context: Context, task: TaskAdapter) -> LoadedTeacher | None:
    if context.order.teacher is None:
        return None
    digest = context.order.teacher.pass_digest
    if digest is not None:
        recalled = recall_teacher(context, digest)
        return LoadedTeacher(task.recall_teacher(recalled.load()), recalled.checkpoint, recalled)
    # Only a first and a last line: the clients that download report no progress to us.
    context.reporter.report("FetchTeacher", 0, 1)
    checkpoint = _fetch_once(context, lambda: _fetch_teacher(context), "download of the teacher")
    loaded = load_teacher(context, task.load_teacher, checkpoint)
    context.reporter.report("FetchTeacher", 1, 1)
    return LoadedTeacher(loaded, checkpoint)


def load_teacher(context: Context, load: Callable[[Checkpoint], Loaded], checkpoint: Checkpoint) -> Loaded:
    """A teacher on the device, or split over the devices of all ranks. Raises: CheckpointInvalid, LabelMismatch."""
    loaded = load_on_main(partial(load, checkpoint), context.world) if context.is_sharded else load(checkpoint)
    # Only now, because the checks of a loaded model run on the CPU, and in float32.
    compute_head_in_float32(loaded.model, context.order.training.precision)
    place_for_passes(context, loaded.model)
    return loaded


def _fetch_further_teachers(context: Context) -> tuple[Checkpoint, ...]:
    """Their files. They are loaded one after the other, when the stage asks them."""
    found = []
    for number, other in enumerate(context.order.further_teachers):
        fetch = partial(
            _fetch_teacher_files,
            context,
            other.teacher,
            field="spec.teacher.model" if other.teacher.name == TEACHER_STAGE else f"{context.order.field}.teachers",
            folder=further_teacher_folder(context, number),
        )
        found.append(_fetch_once(context, fetch, f"download of teacher {other.teacher.name}"))
    return tuple(found)


def further_teacher_folder(context: Context, number: int) -> Path:
    """For the downloaded files of one of `further_teachers`."""
    return context.folder / f"teacher-{number}"


def _teacher_files(context: Context, teacher: LoadedTeacher) -> Checkpoint:
    """The teacher's files, weights included. Raises: CheckpointCorrupt if its pass has asked another one."""
    if teacher.recalled is None:
        return teacher.checkpoint
    found = _fetch_once(context, lambda: _fetch_teacher(context), "download of the teacher")
    if found.digest != teacher.checkpoint.digest:
        raise CheckpointCorrupt(
            f"{found.uri} has changed since the pass {teacher.recalled.manifest.digest[:12]} of this teacher; restore "
            "it, or name another revision"
        )
    return found


def _fetch_teacher(context: Context) -> Checkpoint:
    assert context.order.teacher is not None
    return _fetch_teacher_files(
        context, context.order.teacher, field="spec.teacher.model", folder=context.folder / "teacher"
    )


def _fetch_teacher_files(context: Context, teacher: TeacherRef, *, field: str, folder: Path) -> Checkpoint:
    """
    Args:
        field: where the spec names the model, for messages.
    """
    order = context.order
    if teacher.model is not None:
        return fetch_checkpoint(
            teacher.model,
            field=field,
            endpoint_url=order.storage.endpoint_url,
            region=order.storage.region,
            folder=folder,
        )
    manifest = read_teacher(context.store, teacher)
    folder.mkdir()
    return fetch_committed(context.store, manifest, field=order.field, folder=folder)


def _fetch_student(
    context: Context, teacher: LoadedTeacher | None, *, field: str
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """The checkpoint that a student starts from and its tokenizer; None for what the spec does not name."""
    spec, storage = context.order.student, context.order.storage

    def fetch(uri: str, name: str, parts: Parts) -> Checkpoint:
        fetch_it = partial(
            fetch_checkpoint,
            uri,
            field=f"{field}.{'tokenizer' if parts == 'tokenizer' else 'model'}",
            endpoint_url=storage.endpoint_url,
            region=storage.region,
            folder=context.folder / name,
            parts=parts,
        )
        return _fetch_once(context, fetch_it, f"download of the {name}")

    tokenizer = fetch(spec.tokenizer, "tokenizer", "tokenizer") if spec.tokenizer else None
    # With a tokenizer of its own, the one of the checkpoint is not read and may be missing.
    start = fetch(spec.model, "student", "weights" if tokenizer else "all") if spec.model else None
    if spec.from_teacher is not None:
        assert teacher is not None, "the spec has stage zero start from a model"
        take_layers = partial(
            with_fewer_layers,
            _teacher_files(context, teacher),
            spec.from_teacher,
            field=f"{field}.fromTeacher",
            folder=context.folder / "student",
            warnings=context.warnings,
        )
        start = _fetch_once(context, take_layers, "layers of the teacher")
    return start, tokenizer


def _load_student(
    context: Context, task: TaskAdapter, start: Checkpoint | None, tokenizer: Checkpoint | None, *, field: str
) -> Loaded:
    """The student before its training; on all ranks, or on rank 0 if it is split."""
    spec, training = context.order.student, context.order.training

    def load() -> Loaded:
        if spec.architecture is not None:
            assert tokenizer is not None
            processes = Processes.in_world(context.world, sharded=context.is_sharded)
            student = task.build_student(
                spec.architecture, tokenizer, seed=training.seed, field=field, processes=processes
            )
        else:
            assert start is not None
            student = task.load_student(start, tokenizer=tokenizer, seed=training.seed)
        if spec.lora is not None:
            add_adapter(student.model, spec.lora, seed=training.seed, field=f"{field}.lora")
        return student

    if context.is_sharded:  # its parts go to the devices when it is trained
        return load_on_main(load, context.world)
    student = load()
    if spec.lora is not None and training.precision == "bfloat16":
        keep_frozen_in_bfloat16(student.model)
    student.model.to(best_device())
    return student
