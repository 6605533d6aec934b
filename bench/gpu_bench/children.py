"""What runs in processes of its own: building data and models, and the reference loops. A fault ends one child only.

A child writes one JSON object per result to stdout. Data and checkpoints go to a folder, where our stages find them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers

from . import synthetic
from .flops import training_mfu
from .loops import (
    CapturedLoop,
    Rows,
    Timing,
    grouped_batches,
    linear_rates,
    teacher_logits,
    train_eager,
    train_on_device,
)
from .sizes import BATCH, LARGE_LEARNING_RATE, Sizes

TEACHER_TOKENS = 65_536  # padded tokens of one forward pass
CHECKED_SHARE = 0.1  # of the last reference epoch: the mean loss over it is compared with ours
FIRST_STEPS = 50  # of the large model: their mean loss is compared with ours
TARGETS = "targets.safetensors"


@dataclass(frozen=True)
class Job:
    """What a child needs to know.

    Attributes:
        folder: of data and checkpoints.
        whole_model: compile the large reference as one graph instead of layer by layer.
    """

    sizes: Sizes
    folder: Path
    whole_model: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


RESULTS = sys.stdout


def emit(**result: Any) -> None:
    """Writes a result at once: a process that fails later has not measured in vain."""
    RESULTS.write(json.dumps(result) + "\n")
    RESULTS.flush()


def run_child(names: list[str], job: Job) -> None:
    """Runs some of CHILDREN."""
    sys.stdout = sys.stderr  # what libraries print is no result
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
    # As the stages have it: float32 is float32, also in matrix products.
    torch.set_float32_matmul_precision("highest")
    for name in names:
        CHILDREN[name](job)
        emit(part=name, who="child")  # nothing of it is missing


def machine(job: Job) -> None:
    """What the numbers were measured on."""
    emit(part="machine", who="machine", **_machine(job.device))


def prepare(job: Job) -> None:
    """The machine, the data of the small students, and a teacher that has learned it, with its logits."""
    machine(job)
    sizes, data = job.sizes, job.folder / "data"
    texts = synthetic.write_splits(data, sizes)
    tokenizer = synthetic.build_tokenizer(sizes)
    tokenizer.save_pretrained(job.folder / "tokenizer")
    rows = _rows(tokenizer, texts["train"])
    mean, longest = rows.lengths.float().mean().item(), int(rows.lengths.max())
    emit(part="machine", who="data", rows=len(rows.lengths), mean_tokens=round(mean, 1), longest=longest)
    teacher = synthetic.build_bert(sizes, sizes.teacher).to(job.device)
    batches = grouped_batches(rows.lengths.tolist(), sizes.teacher_batch, epochs=1 + _epochs_for(sizes))
    batches = batches[: sizes.teacher_steps]
    precision = "bfloat16" if job.device.type == "cuda" else "float32"
    rates = linear_rates(sizes.teacher_rate, len(batches))
    warm_up = max(1, len(batches) // 10)
    rates = [rate * min(1, (step + 1) / warm_up) for step, rate in enumerate(rates)]
    timing = train_eager(teacher, rows, batches, rates, precision=precision)
    synthetic.save(teacher.cpu(), tokenizer, job.folder / "teacher")
    teacher.to(job.device)
    dev = _rows(tokenizer, texts["dev"])
    logits, _ = teacher_logits(teacher, dev, precision="float32", tokens=TEACHER_TOKENS)
    accuracy = (logits.argmax(-1) == dev.targets).float().mean().item()
    emit(part="machine", who="teacher", accuracy=round(accuracy, 4), loss=timing.losses[-1], step_ms=_ms(timing))
    _teacher_pass(job, teacher, rows)


def _epochs_for(sizes: Sizes) -> int:
    return sizes.teacher_steps * sizes.teacher_batch // sizes.rows


def _teacher_pass(job: Job, teacher: Any, rows: Rows) -> None:
    """The reference of part `logits`. The float32 logits are the targets of the students' references."""
    for precision in job.sizes.precisions:
        logits, rate = teacher_logits(teacher, rows, precision=precision, tokens=TEACHER_TOKENS)
        if precision == "float32":
            kept = {"ids": rows.ids, "lengths": rows.lengths, "targets": logits}
            safetensors.torch.save_file(kept, job.folder / TARGETS)
        emit(part="logits", who="reference", loop="eager", precision=precision, rows_per_second=round(rate))


def tiny(job: Job) -> None:
    _student(job, "tiny", lambda: synthetic.build_bert(job.sizes, job.sizes.tiny))


def femto(job: Job) -> None:
    _student(job, "femto", lambda: synthetic.build_femto(job.sizes))


def _student(job: Job, part: str, build: Callable[[], Any]) -> None:
    sizes, device = job.sizes, job.device
    # cuDNN plans attention for each shape, which takes longer than a step of these models.
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = synthetic.build_tokenizer(sizes)
    synthetic.save(build(), tokenizer, job.folder / part)
    rows = Rows(**safetensors.torch.load_file(job.folder / TARGETS))
    batches = grouped_batches(rows.lengths.tolist(), BATCH, epochs=sizes.reference_epochs)
    per_epoch = len(batches) // sizes.reference_epochs
    # The course of a stage of all epochs, of which the reference makes the first ones.
    rates = linear_rates(sizes.learning_rate, per_epoch * sizes.epochs)[: len(batches)]
    for precision in sizes.precisions:
        if device.type == "cuda":
            loop = CapturedLoop(build().to(device), rows, batches, rates, precision=precision)
            timing = loop.run(timed_from=len(batches) - per_epoch)
            _emit_training(part, "captured", precision, BATCH, timing, loss=_end_of(timing.losses, per_epoch))
            del loop
        warm_up = sizes.eager_steps // 10
        short = batches[: warm_up + sizes.eager_steps] if device.type == "cuda" else batches
        eager = train_eager(build().to(device), rows, short, rates, precision=precision, warm_up=warm_up)
        # Only a loop over whole epochs has a loss to compare: on a CPU, where nothing is captured.
        loss = _end_of(eager.losses, per_epoch) if len(short) == len(batches) else None
        _emit_training(part, "eager", precision, BATCH, eager, loss=loss)


def large(job: Job) -> None:
    """The large model on its own data: eager, and compiled where there is a GPU."""
    sizes, device = job.sizes, job.device
    torch.backends.cuda.enable_cudnn_sdp(True)
    tokenizer = synthetic.build_tokenizer(sizes)
    texts = synthetic.write_long_splits(job.folder / "large-data", sizes)
    rows = _rows(tokenizer, texts["train"])
    with device:  # filling 335 million weights takes seconds on a CPU
        model = synthetic.build_bert(sizes, sizes.large)
    synthetic.save(model, tokenizer, job.folder / "large")
    start = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    for compiled in (None, "model" if job.whole_model else "layers") if device.type == "cuda" else (None,):
        for batch in sizes.large_batches:
            model.load_state_dict(start)
            steps = sizes.large_steps if compiled else max(sizes.large_steps // 3, 4)
            batches = grouped_batches(rows.lengths.tolist(), batch, epochs=1 + steps * batch // sizes.large_rows)
            rates = [LARGE_LEARNING_RATE] * steps
            timing = train_on_device(model, rows, batches[:steps], rates, precision="bfloat16", compiled=compiled)
            per_second = batch / timing.step_s
            mfu = training_mfu(sizes.large, tokens_per_row=sizes.large_tokens, rows_per_second=per_second)
            loss = _mean(timing.losses[:FIRST_STEPS]) if len(timing.losses) >= FIRST_STEPS else None
            loop = f"compiled ({compiled})" if compiled else "eager"
            _emit_training("large", loop, "bfloat16", batch, timing, loss=loss, mfu=round(mfu, 4))


def causal_student(job: Job) -> None:
    from .causal import measure_student

    for result in measure_student(job.sizes, job.device):
        emit(**result)


def causal_teacher(job: Job) -> None:
    from .causal import measure_teacher

    for result in measure_teacher(job.sizes, job.device):
        emit(**result)


def _emit_training(
    part: str, loop: str, precision: str, batch: int, timing: Timing, *, loss: float | None, **more: Any
) -> None:
    emit(
        part=part,
        who="reference",
        loop=loop,
        precision=precision,
        batch=batch,
        examples_per_second=round(batch / timing.step_s, 1),
        step_ms=_ms(timing),
        setup_s=round(timing.setup_s, 2),
        loss=None if loss is None else round(loss, 5),
        peak_memory_gib=round(timing.peak_memory_bytes / 2**30, 2),
        **more,
    )


def _rows(tokenizer: Any, texts: Iterable[tuple[str, int]]) -> Rows:
    sentences, labels = zip(*texts, strict=True)
    encoded = tokenizer(list(sentences), return_token_type_ids=False, return_attention_mask=False)["input_ids"]
    lengths = torch.tensor([len(ids) for ids in encoded])
    padded = torch.zeros(len(encoded), int(lengths.max()), dtype=torch.int64)
    for row, ids in enumerate(encoded):
        padded[row, : len(ids)] = torch.tensor(ids)
    return Rows(padded, lengths, torch.tensor(labels))


def _end_of(losses: list[float], per_epoch: int) -> float:
    return _mean(losses[-max(1, int(per_epoch * CHECKED_SHARE)) :])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _ms(timing: Timing) -> float:
    return round(1000 * timing.step_s, 3)


def _machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "card": torch.cuda.get_device_name(0) if on_gpu else "none",
        "gpu_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if on_gpu else 0,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


CHILDREN: dict[str, Callable[[Job], None]] = {
    "machine": machine,
    "prepare": prepare,
    "tiny": tiny,
    "femto": femto,
    "large": large,
    "causal-student": causal_student,
    "causal-teacher": causal_teacher,
}
