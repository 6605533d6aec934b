"""The manifest of a stage, and the environment that it records."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from distillchain_api.layout import checkpoint_prefix
from distillchain_api.wire.manifest import FurtherTeacher, Manifest, ModelFacts, RunFacts
from distillchain_trainer import __version__
from distillchain_trainer.data.split import TaskData
from distillchain_trainer.stage.context import Context, utc_now
from distillchain_trainer.stage.run_stats import RunStats

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate")
LORA_LIBRARY = "peft"


def build_manifest(
    context: Context,
    data: TaskData,
    *,
    start: str,
    pretrained: bool,
    licenses: dict[str, str],
    student: ModelFacts,
    teacher: ModelFacts | None,
    further_teachers: list[ModelFacts],
    stats: RunStats,
) -> Manifest:
    """The manifest of an attempt, still without files."""
    order = context.order
    parts = {"task": order.task, "student": order.student, "training": order.training}
    if order.distillation is not None:
        parts["distillation"] = order.distillation
    return Manifest(
        digest=order.digest,
        chain=order.chain,
        stage=order.stage,
        attempt=context.attempt,
        checkpoint=f"{order.storage.uri}/{checkpoint_prefix(order.digest, context.attempt)}",
        # Sizes and hashes are known after the upload.
        files=[],
        teacher=teacher,
        further_teachers=[
            FurtherTeacher(name=other.teacher.name, share=other.share, facts=facts)
            for other, facts in zip(order.further_teachers, further_teachers, strict=True)
        ],
        student=student,
        pretrained=pretrained,
        start=start,
        licenses=licenses,
        data_revision=data.revision,
        data=data.facts,
        recipe={name: part.to_document() for name, part in parts.items()},
        run=_run_facts(context, stats, rows=len(data.taught)),
        warnings=context.warnings.sentences,
        environment=environment(context),
        committed_at=utc_now(),
    )


def _run_facts(context: Context, stats: RunStats, *, rows: int) -> RunFacts:
    """How the training went that has so many rows."""
    order, world = context.order, context.world
    # Over all attempts, because train_s covers all of them too.
    epochs = stats.selected.trained_epochs if stats.selected else order.training.epochs
    return RunFacts(
        started_at=context.started_at,
        elapsed_s=round(stats.elapsed_before_s + context.elapsed_s, 3),
        model_s=round(stats.model_s, 3),
        examples_per_second=round(rows * epochs / max(stats.train_s, 1e-9), 2),
        steps=stats.steps,
        final_loss=stats.final_loss,
        logits_reused=stats.logits_reused,
        logits=stats.logits,
        resumed=stats.resumed,
        teacher_pass=order.teacher.pass_digest if order.teacher else None,
        # No process sees more rows than its share of a batch.
        micro_batch_size=min(stats.micro_batch_size, -(-order.training.batch_size // world.size)),
        processes=world.size,
        mode=stats.mode,
        trained_parameters=stats.trained_parameters,
        selected=stats.selected,
    )


def environment(context: Context) -> dict[str, str]:
    """Versions, devices and number settings: what may change a result by floating-point noise or more."""
    processes = f"{context.world.size}{', sharded' if context.is_sharded else ''}"
    gpu = torch.cuda.is_available()
    return {
        "distillchain": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        **({LORA_LIBRARY: version(LORA_LIBRARY)} if context.order.student.lora else {}),
        # None in a build of torch for CPUs.
        "cuda": torch.version.cuda or "none",
        "device": torch.cuda.get_device_name(0) if gpu else f"cpu ({torch.get_num_threads()} threads)",
        **({} if context.world.is_alone else {"processes": processes}),
        "threads": str(torch.get_num_threads()),
        # As torch has it, and not as the work order asks for it: a manifest records what was in effect.
        "tf32": "on" if torch.get_float32_matmul_precision() != "highest" else "off",
    }
