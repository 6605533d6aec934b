"""The variables of a pod: they change neither the result nor make a stage wait for processes that never come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillchain_api.resource.training import Training
from distillchain_api.wire.answer import Committed
from distillchain_trainer.launch.environment import set_up_environment
from distillchain_trainer.stage_warnings import StageWarnings
from trainer.parts import an_order, answer_in, manifest_of, run_here, start_process, weights_of

RESULT_CHANGING = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_USE_FSDP": "true",
    "NVIDIA_TF32_OVERRIDE": "1",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
}
LAUNCHER = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.255.255.1",
    "MASTER_PORT": "29500",
    "OMPI_COMM_WORLD_SIZE": "4",
}


def committed(root: Path, name: str, **variables: str) -> Committed:
    folder = root / name
    folder.mkdir()
    order = an_order(root, storage={"uri": f"file://{folder}/store"})
    process = start_process(order, folder, **variables)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    answer = answer_in(folder)
    assert isinstance(answer, Committed)
    return answer


@pytest.mark.models
def test_variables_of_a_platform_change_no_byte_of_the_student(root: Path):
    plain = committed(root, "plain")

    odd = committed(root, "odd", **RESULT_CHANGING, **LAUNCHER, OMP_NUM_THREADS="1")

    assert weights_of(odd) == weights_of(plain)  # some of these change the bytes on every CPU
    named = [name for name in RESULT_CHANGING if any(name in warning for warning in odd.warnings)]
    assert named == list(RESULT_CHANGING), "the user sees which variables are ignored"
    assert not any(name in warning for name in LAUNCHER for warning in odd.warnings)


@pytest.mark.models
@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"])
@pytest.mark.parametrize("threads", ["0", "many", "100000", "-1", ""])
def test_an_impossible_number_of_threads_is_replaced_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str, variable: str
):
    monkeypatch.setattr(os, "environ", {**os.environ, "OMP_NUM_THREADS": "1", variable: threads})
    warnings = StageWarnings()

    set_up_environment(tmp_path, warnings)

    assert 1 <= int(os.environ["OMP_NUM_THREADS"]) <= (os.cpu_count() or 1)
    assert os.environ.get(variable) != threads
    assert [warning.partition(":")[0] for warning in warnings.sentences] == [
        f"environment variable {variable} is ignored"
    ]


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
@pytest.mark.parametrize(
    "value, is_kept",
    [
        ("expandable_segments:True", True),
        ("max_split_size_mb:64, roundup_power2_divisions:[256:1,512:2]", True),
        ("garbage", False),
        ("expandable_segments=True", False),
        ("expandable_segments:True,garbage", False),
        ("roundup_power2_divisions:[256:1", False),
    ],
)
def test_settings_of_the_allocator_that_would_end_the_process_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, is_kept: bool
):
    monkeypatch.setattr(os, "environ", {**os.environ, "OMP_NUM_THREADS": "1", name: value})
    warnings = StageWarnings()

    set_up_environment(tmp_path, warnings)

    assert (os.environ.get(name) == value) == is_kept
    assert [f"environment variable {name} is ignored" in sentence for sentence in warnings.sentences] == (
        [] if is_kept else [True]
    )


@pytest.fixture
def numbers_of_this_process() -> Iterator[None]:
    """Restores torch's settings for float32 products, which are those of the whole process."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.models
@pytest.mark.parametrize("tf32", [True, False])
def test_the_spec_alone_decides_whether_tf32_is_used(numbers_of_this_process: None, tf32: bool):
    import torch

    from distillchain_trainer.engine.device.precision import apply_tf32

    torch.set_float32_matmul_precision("highest" if tf32 else "medium")
    torch.backends.cudnn.allow_tf32 = not tf32

    apply_tf32(Training(tf32=tf32))

    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.models
def test_the_manifest_records_versions_threads_and_number_settings(root: Path, numbers_of_this_process: None):
    answer = run_here(an_order(root, training={"tf32": True}), root)

    environment = manifest_of(root, answer.digest).environment
    assert {
        "torch",
        "transformers",
        "tokenizers",
        "accelerate",
        "cuda",
        "tf32",
        "threads",
        "device",
    } <= environment.keys()
    assert (environment["threads"], environment["tf32"]) == ("1", "on")
