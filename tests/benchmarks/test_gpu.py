"""bench/gpu.py: its small size as a whole, and how it reads rates, losses and goals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.gpu_bench.flops import language_flops, layer_parameters, training_mfu
from bench.gpu_bench.results import table
from bench.gpu_bench.sizes import FULL
from bench.gpu_bench.stages import has_enough, loss_near, steady_rate
from bench.gpu_bench.trainer_process import Observed, ProgressLine, read_log_line, read_progress

CHECKOUT = Path(__file__).resolve().parents[2]
CHOSEN = "2026-01-01T12:00:00Z INFO distillchain_trainer.engine.training.stepper: training mode chosen mode=captured eager_ms=7.7"
OURS = {"who": "ours", "part": "tiny", "precision": "float32", "batch": 32}
REFERENCE = {**OURS, "who": "reference"}


@pytest.mark.models
@pytest.mark.slow
def test_the_small_bench_runs_every_part_on_a_cpu(tmp_path: Path):
    command = [sys.executable, "bench/gpu.py", "--small", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    measured = {(result["part"], result["who"]) for result in results}
    parts = ("tiny", "femto", "logits", "large", "causal-student", "causal-teacher")
    assert measured >= {(part, who) for part in parts for who in ("reference", "ours")}
    # Both start from the same weights and learn from the same rows, but in another order.
    losses = {result["who"]: result["loss"] for result in results if result["part"] == "tiny"}
    assert losses["ours"] == pytest.approx(losses["reference"], rel=0.05)
    assert "| tiny float32, examples/s |" in done.stdout
    assert "Small sizes: these numbers say only that the bench works." in done.stdout
    assert not list(tmp_path.iterdir()), "the temporary folder is left behind"


def test_a_bench_whose_time_is_up_names_what_it_has_not_measured(tmp_path: Path):
    command = [sys.executable, "bench/gpu.py", "--budget-s", "0", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1, done.stderr
    for part in ("tiny", "femto", "logits", "large", "causal-student", "causal-teacher"):
        assert f"\n- {part}: not run: --budget-s is used up" in done.stdout


def a_training(*lines: tuple[float, float]) -> Observed:
    """A training with lines at (seconds, epoch)."""
    return Observed(progress=[ProgressLine(at_s, "Train", 1, epoch, 0.5, 1.0) for at_s, epoch in lines])


def test_the_rate_counts_from_the_choice_of_the_mode():
    seen = a_training((10.0, 0.01), (20.0, 0.02), (22.0, 0.12), (24.0, 0.22))
    chosen = read_log_line(15.0, CHOSEN)
    assert chosen is not None
    assert (chosen.text, chosen.fields["mode"]) == ("training mode chosen", "captured")
    seen.log.append(chosen)

    assert steady_rate(seen, rows=1000) == pytest.approx(0.2 * 1000 / 4)
    assert has_enough(seen, 24.0, measure_s=4.0)
    assert not has_enough(seen, 24.0, measure_s=4.5)


def test_a_training_without_a_chosen_mode_is_not_stopped_while_modes_are_tried():
    seen = a_training((10.0, 0.01), (20.0, 0.1), (30.0, 0.2), (40.0, 0.3))

    assert not has_enough(seen, 40.0, measure_s=4.0)


def test_only_lines_of_the_trainer_are_read():
    assert read_log_line(1.0, "Traceback (most recent call last):") is None
    assert read_progress(1.0, "hello") is None
    assert read_progress(1.0, '["progress"]') is None
    line = read_progress(1.0, '{"kind":"progress","stage":"a","phase":"Train","step":50,"of":99,"examplesPerSecond":7}')
    assert line == ProgressLine(1.0, "Train", 50, None, None, 7)


def test_the_loss_is_the_mean_before_the_end_of_the_epoch():
    points = [{"epoch": epoch, "loss": epoch} for epoch in (1.0, 1.88, 1.95, 2.0, 2.05)]

    assert loss_near([*points, {"epoch": 2.0, "validation": {"accuracy": 1.0}}], epoch=2) == pytest.approx(1.975)


def test_mfu_of_bert_large_is_that_of_the_log():
    assert layer_parameters(FULL.large) == 302_309_376
    # 46.9 ms for 32 rows of 125 tokens were an MFU of 0.16.
    assert training_mfu(FULL.large, tokens_per_row=125, rows_per_second=32 / 0.0469) == pytest.approx(0.16, abs=0.001)


def test_the_arithmetic_of_a_language_model_is_that_of_its_weights_and_attention():
    # Llama-3.2-1B has 1,235,814,400 weights, of which 67,584 are norms; its head is its embedding.
    attention = 4 * 16 * 2048 * 1024
    found = language_flops(FULL.causal_student, vocabulary=128_256, tokens_per_row=1024)
    assert found == 2 * (1_235_814_400 - 67_584) + attention


@pytest.mark.parametrize(("mfu", "met"), [(0.41, "yes"), (0.39, "no")])
def test_a_language_model_is_compared_with_its_goal(mfu: float, met: str):
    part = {"part": "causal-student", "precision": "bfloat16", "batch": 8}

    shown = table(
        [
            {**part, "who": "reference", "loop": "compiled", "mfu": 0.5},
            {**part, "who": "ours", "mode": "eager", "mfu": mfu},
        ],
        is_small=False,
    )

    line = (
        f"| causal-student bfloat16, MFU | 0.500 (compiled) | {mfu:.3f} (eager) | {mfu / 0.5:.2f} | MFU 0.40 | {met} |"
    )
    assert line in shown.splitlines()


@pytest.mark.parametrize(("rate", "ratio", "met"), [(30_000.0, "0.75", "yes"), (29_000.0, "0.72", "no")])
def test_ours_is_compared_with_the_fastest_reference(rate: float, ratio: str, met: str):
    shown = table(
        [
            {**REFERENCE, "loop": "eager", "examples_per_second": 4_000.0},
            {**REFERENCE, "loop": "captured", "examples_per_second": 40_000.0},
            {**OURS, "mode": "captured", "examples_per_second": rate},
        ],
        is_small=False,
    )

    line = f"| tiny float32, examples/s | 40,000 (captured) | {rate:,.0f} (captured) | {ratio} | 0.75 | {met} |"
    assert line in shown.splitlines()


def test_parts_that_were_not_begun_are_notes_below_the_table():
    late = [
        {"part": part, "who": "ours", "error": "not run: --budget-s is used up"} for part in ("tiny", "logits", "large")
    ]

    shown = table([{**OURS, "part": "femto", "mode": "captured", "examples_per_second": 9.0}, *late], is_small=False)

    assert "| femto float32, examples/s | - (none) | 9 (captured) | - | - | - |" in shown.splitlines()
    assert [line for line in shown.splitlines() if "not run" in line] == [
        f"- {part}: not run: --budget-s is used up" for part in ("tiny", "logits", "large")
    ]


def test_an_eager_reference_is_no_goal_and_an_error_is_shown():
    shown = table(
        [
            {**REFERENCE, "loop": "eager", "examples_per_second": 4_000.0},
            {**OURS, "error": "exit code 70: a log\nRuntimeError: out of luck"},
        ],
        is_small=True,
    )

    assert "| tiny float32, examples/s | 4,000 (eager) | - (mode not named) | - | - | - |" in shown.splitlines()
    assert "- tiny float32: RuntimeError: out of luck" in shown.splitlines()
