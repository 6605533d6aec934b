"""Language models with random weights: a 1B student and the top-k pass of an 8B teacher, ours beside plain loops.

Ours is the trainer's engine in this process, without a stage: no checkpoint of 16 GB is written and read. All rows have
the same length, and every token but the first is predicted.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillchain_api.resource.distillation import Distillation
from distillchain_api.resource.training import Training
from distillchain_api.tasks.causal_lm import CausalLM
from distillchain_trainer.engine.device.precision import autocast, choose_attention_kernels, keep_products_in_bfloat16
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.passes.pass_layers import PassLayers, pass_modes
from distillchain_trainer.engine.passes.shared_forward import forward_in_rounds, never
from distillchain_trainer.engine.ranks.world import ALONE
from distillchain_trainer.engine.training import loop
from distillchain_trainer.engine.training.history import History
from distillchain_trainer.engine.training.progress import TrainingProgress
from distillchain_trainer.engine.training.training_rows import TrainingRows
from distillchain_trainer.stage.row_losses import row_losses_of
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks import adapter_for
from distillchain_trainer.tasks.causal_lm.adapter import CPU_LOGITS, GPU_LOGITS
from distillchain_trainer.tasks.causal_lm.outputs import split_teacher_outputs, teacher_outputs

from .flops import language_flops
from .sizes import MAX_GRAD_NORM, Sizes

Result = dict[str, Any]
TRIAL_STEPS = 120
PARTITION = 512  # predictions whose logits the references have in float32 at a time


class Measured(Exception):
    """Ends a training whose rate is known. Not a stop, which would write a state of 15 GB."""


def measure_student(sizes: Sizes, device: torch.device) -> list[Result]:
    """Training on stored predictions: a plain loop, compiled where there is a GPU, then ours."""
    config, precision = sizes.causal_student, _precision(device)
    rows = _training_rows(sizes)
    tokens = sizes.causal_batch * sizes.causal_tokens
    flops = 3 * language_flops(config, vocabulary=sizes.causal_vocabulary, tokens_per_row=sizes.causal_tokens)
    common = {"part": "causal-student", "precision": precision, "batch": sizes.causal_batch}
    model = _model(config, sizes, device)
    reference_s = _plain_training(model, rows, sizes, device)
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()
    ours_s, mode, peak = _our_training(_model(config, sizes, device), rows, sizes, device)
    loop_name = "compiled" if device.type == "cuda" else "eager"
    return [
        {**common, "who": "reference", "loop": loop_name, **_rates(flops, tokens, reference_s)},
        {**common, "who": "ours", "mode": mode, "peak_memory_gib": peak, **_rates(flops, tokens, ours_s)},
    ]


def measure_teacher(sizes: Sizes, device: torch.device) -> list[Result]:
    """The top-k pass: ours as a stage makes it, with layers as they are and compiled, then a plain loop in bfloat16."""
    config, precision = sizes.causal_teacher, _precision(device)
    model = _model(config, sizes, device).eval()
    encoded = _encoded(sizes, device)
    flops = language_flops(config, vocabulary=sizes.causal_vocabulary, tokens_per_row=sizes.causal_tokens)
    tokens = len(encoded) * sizes.causal_tokens
    common = {"part": "causal-teacher", "precision": precision, "batch": len(encoded)}

    def outputs_of(answer: Any, items: dict[str, Tensor]) -> Tensor:
        k, vocabulary = sizes.causal_top_k, sizes.causal_vocabulary
        return teacher_outputs(answer.logits, items["positions"], items["item_ids"], k=k, tokens=vocabulary)

    def ours(layers: PassLayers) -> None:
        with autocast(device, precision):
            for _ in forward_in_rounds(
                ALONE, model, encoded, outputs_of, precision=precision, stop=never, layers=layers
            ):
                pass

    choose_attention_kernels()
    keep_products_in_bfloat16(model, precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # A pass of a stage tries both, and keeps the faster one.
    found, modes = {}, pass_modes(model)
    for mode in modes:
        with closing(PassLayers(model, modes, decided=mode)) as layers:
            elapsed_s = _second_time(partial(ours, layers), device)
            # Where the compiler fails, the pass goes on without it.
            found[str(layers.mode)] = elapsed_s
    mode = min(found, key=found.__getitem__)
    peak = _peak_gib(device)
    if device.type == "cuda":
        model.to(torch.bfloat16)
    reference_s = _second_time(lambda: _plain_pass(model, encoded, sizes, device), device)
    return [
        {**common, "who": "reference", "loop": "eager", **_rates(flops, tokens, reference_s)},
        {
            **common,
            "who": "ours",
            "mode": mode,
            "seconds_by_mode": {name: round(seconds, 3) for name, seconds in found.items()},
            "peak_memory_gib": peak,
            **_rates(flops, tokens, found[mode]),
        },
    ]


def _plain_training(model: Any, rows: TrainingRows, sizes: Sizes, device: torch.device) -> float:
    """Seconds of a step: forward, KL over the stored tokens and the rest, backward, clipping, AdamW."""
    assert rows.answers is not None
    ids = rows.encoded.ids.long().reshape(-1, sizes.causal_tokens).to(device)
    answers = rows.answers.reshape(len(ids), sizes.causal_tokens - 1, -1).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    if device.type == "cuda":
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    model.train()
    began = _now(device)
    warm_up = max(2, sizes.causal_steps // 5)
    for step in range(warm_up + sizes.causal_steps):
        if step == warm_up:
            began = _now(device)
        picked = (torch.arange(sizes.causal_batch) + step * sizes.causal_batch) % len(ids)
        with autocast(device, _precision(device)):
            logits = model(input_ids=ids[picked], use_cache=False).logits[:, :-1]
        loss = _plain_loss(logits.flatten(0, 1), answers[picked].flatten(0, 1))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (_now(device) - began) / sizes.causal_steps


def _plain_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Mean KL over the stored tokens and all others together."""
    picked, theirs = split_teacher_outputs(answers)
    total = logits.float().logsumexp(-1, keepdim=True)
    ours = logits.gather(-1, picked).float() - total
    rest = torch.log1p(-ours.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    log_q = torch.cat([ours, rest], dim=-1)
    return (theirs.exp() * (theirs - log_q)).sum(-1).mean()


@torch.inference_mode()
def _plain_pass(model: Any, encoded: Encoded, sizes: Sizes, device: torch.device) -> None:
    """Log-probabilities of the k most probable tokens, on the host."""
    ids = encoded.ids.long().reshape(-1, sizes.causal_tokens).to(device)
    assert encoded.most_tokens is not None
    for batch in ids.split(max(1, encoded.most_tokens // sizes.causal_tokens)):
        logits = model(input_ids=batch, use_cache=False).logits.flatten(0, 1)
        for part in logits.split(PARTITION):
            best, picked = part.float().log_softmax(-1).topk(sizes.causal_top_k, dim=-1)
            best.cpu(), picked.cpu()


def _our_training(model: Any, rows: TrainingRows, sizes: Sizes, device: torch.device) -> tuple[float, str, float]:
    """Seconds of a step once the mode is chosen, that mode, and the peak of the memory in GiB."""
    seen: list[tuple[float, TrainingProgress]] = []

    def on_step(progress: TrainingProgress) -> None:
        # Modes are tried in the first steps, and compilation takes seconds. The trial ends before this step.
        if device.type == "cuda" and progress.step < TRIAL_STEPS:
            return
        if seen and progress.mode != seen[-1][1].mode:
            seen.clear()
        seen.append((time.perf_counter(), progress))
        if seen[-1][0] - seen[0][0] > sizes.causal_measure_s and len(seen) > 2 and progress.step > sizes.causal_steps:
            raise Measured

    task = CausalLM.parse(
        {
            "type": "CausalLM",
            "dataset": {"uri": "hf://a/b", "splits": {"train": "a", "validation": "b"}, "text": ["text"]},
            "maxLength": max(4, sizes.causal_tokens),
            "topK": sizes.causal_top_k,
        }
    )
    losses = row_losses_of(adapter_for(task, StageWarnings()), Distillation())
    # Many epochs: a short plan would be a reason not to compile. The training ends by Measured.
    training = Training(epochs=100_000, batch_size=sizes.causal_batch, learning_rate=1e-5, precision=_precision(device))
    choose_attention_kernels()
    with tempfile.TemporaryDirectory() as folder:
        settings = loop.Settings(training, micro_batch_size=None, folder=Path(folder), save_interval_s=1e9)
        hooks = loop.Hooks(
            stop=lambda: False, on_step=on_step, save=lambda *_: True, validate=lambda _: {"tokenCrossEntropy": 0.0}
        )
        with contextlib.suppress(Measured):
            loop.train(
                model, rows, losses, settings, resume_from=None, train_s_before=0.0, history=History([]), hooks=hooks
            )
    (began, first), (ended, last) = seen[0], seen[-1]
    return (ended - began) / (last.step - first.step), last.mode, _peak_gib(device)


def _training_rows(sizes: Sizes) -> TrainingRows:
    encoded = _encoded(sizes, torch.device("cpu"))
    items, k = encoded.output_count, sizes.causal_top_k
    dice = torch.Generator().manual_seed(1)
    start = torch.randint(sizes.causal_vocabulary, (items, 1), generator=dice)
    # Distinct tokens for each prediction: neighbours, from any of them on.
    picked = (start + torch.arange(k)) % sizes.causal_vocabulary
    logs = torch.randn(items, k + 1, generator=dice).log_softmax(-1)
    # As teacher_outputs packs them; the last column is not used here.
    answers = torch.cat([logs[:, :k], picked.float(), logs[:, k:], logs[:, :1]], dim=-1)
    assert encoded.item_ids is not None
    place = torch.arange(len(encoded))
    return TrainingRows(encoded, encoded.item_ids.long(), answers, place, None, encoded.item_starts)


def _encoded(sizes: Sizes, device: torch.device) -> Encoded:
    dice = np.random.default_rng(0)
    rows = dice.integers(sizes.causal_vocabulary, size=(sizes.causal_rows, sizes.causal_tokens)).astype(np.int32)
    positions = np.arange(sizes.causal_tokens - 1, dtype=np.int32)
    encoded = Encoded.of(list(rows), pad_id=0, positions=[positions] * len(rows), item_ids=[row[1:] for row in rows])
    most = (CPU_LOGITS if device.type == "cpu" else GPU_LOGITS) // sizes.causal_vocabulary
    return Encoded(**{**vars(encoded), "most_tokens": most})


def _model(config: dict[str, Any], sizes: Sizes, device: torch.device) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    # With a cache of keys and values by default, as the checkpoints that users have.
    settings = LlamaConfig(vocab_size=sizes.causal_vocabulary, max_position_embeddings=8192, **config)
    torch.manual_seed(0)
    with device:  # billions of weights take minutes on a CPU
        return LlamaForCausalLM(settings)


def _rates(flops_per_token: float, tokens: int, elapsed_s: float) -> Result:
    from .flops import PEAK_FLOPS

    per_second = tokens / elapsed_s
    return {"tokens_per_second": round(per_second, 1), "mfu": round(flops_per_token * per_second / PEAK_FLOPS, 4)}


def _precision(device: torch.device) -> Any:
    return "bfloat16" if device.type == "cuda" else "float32"


def _second_time(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of a run, after one that warms up."""
    run()
    began = _now(device)
    run()
    return _now(device) - began


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_gib(device: torch.device) -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 1) if device.type == "cuda" else 0.0
