"""The process's environment: caches for libraries, threads, and nothing that changes a result behind the spec's back.

Runs before torch is imported, which reads its variables once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from distillchain_trainer.launch import threads
from distillchain_trainer.stage_warnings import StageWarnings

# Variables that make a library compute something else than the work order says, by library:
# accelerate and transformers (mixed precision, FSDP, DeepSpeed), NVIDIA and torch (TF32), and the choice of CPU kernels
# by torch, oneDNN and MKL (which may multiply float32 in bfloat16).
RESULT_CHANGING = re.compile(
    r"(ACCELERATE_|FSDP_|DEEPSPEED_|DNNL_|ONEDNN_).*|NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
    r"|ATEN_CPU_CAPABILITY|MKL_(CBWR|ENABLE_INSTRUCTIONS|DEBUG_CPU_TYPE|VERBOSE)"
)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")  # of torch, its MKL, and the tokenizers
# A launcher's variables. Platforms set them everywhere; a library that believes them waits for processes that never
# come. The trainer sets its own for the ranks that it starts.
LAUNCHER = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*|(OMPI_COMM_WORLD|PMI|MV2_COMM_WORLD)_.*"
)
MAX_THREADS_PER_CPU = 4
# Settings of torch's allocator. While torch is imported, a setting without a value ends the process with SIGABRT.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_SETTING = r"\s*\w+\s*:\s*(\[[^\[\]]*\]|[^,\[\]]+)"
ALLOCATOR_SETTINGS = re.compile(rf"{_SETTING}(,{_SETTING})*")


def set_up_environment(folder: Path, warnings: StageWarnings, *, processes: int = 1) -> None:
    """Prepares os.environ for the libraries, of this process or of the ranks that it starts.

    Args:
        folder: for their caches where there is no home to write to.
        processes: how many share the CPUs of this container.
    """
    _drop_foreign(warnings)
    _keep_caches_in(folder)
    _check_threads(warnings)
    _check_allocator(warnings)
    threads.choose(processes)


def _drop_foreign(warnings: StageWarnings) -> None:
    for name in sorted(os.environ):
        if RESULT_CHANGING.fullmatch(name):
            del os.environ[name]
            warnings.add(
                f"environment variable {name} is ignored: it would change the result, which spec.template.training "
                "alone decides; remove it from the pod template"
            )
        elif LAUNCHER.fullmatch(name):
            del os.environ[name]  # platforms set these everywhere; they change nothing here


def _keep_caches_in(folder: Path) -> None:
    """The root file system of a pod is read-only, and it may have no home."""
    caches = {
        "HF_HOME": "huggingface",
        "XDG_CACHE_HOME": "cache",
        "MPLCONFIGDIR": "cache",
        "TORCHINDUCTOR_CACHE_DIR": "cache",
        "TRITON_CACHE_DIR": "cache/triton",
    }
    home = Path(os.environ.get("HOME") or "/nonexistent")
    if not os.access(home, os.W_OK):
        for name, place in caches.items():
            # A value that is set in the pod template takes precedence.
            os.environ.setdefault(name, str(folder / place))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def _check_threads(warnings: StageWarnings) -> None:
    """More threads than the CPUs can run make a stage a hundred times slower: it seems to hang."""
    most = MAX_THREADS_PER_CPU * threads.cpu_share()
    for name in THREADS:
        value = os.environ.get(name)
        if value is None or (value.isdecimal() and 1 <= int(value) <= most):
            continue
        del os.environ[name]
        warnings.add(
            f"environment variable {name} is ignored: got {value[:40]!r}, expected a number from 1 to {most} on "
            f"{threads.cpu_share()} CPUs"
        )


def _check_allocator(warnings: StageWarnings) -> None:
    for name in ALLOCATOR:
        value = os.environ.get(name)
        if value is not None and not ALLOCATOR_SETTINGS.fullmatch(value):
            del os.environ[name]
            warnings.add(
                f"environment variable {name} is ignored: got {value[:40]!r}, expected settings such as "
                "expandable_segments:True, separated by commas"
            )
