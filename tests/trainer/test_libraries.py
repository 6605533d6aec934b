"""What the process of a stage imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distillchain_trainer.models.meta_device import QuickMeta
from trainer.parts import SMALL_BERT, an_order, start_process

pytestmark = pytest.mark.models

PROBE = """
import sys, json
from distillchain_trainer.libraries import import_libraries
import_libraries()
import distillchain_trainer.stage.prepare, distillchain_trainer.stage.compute, distillchain_trainer.stage.commit
import distillchain_trainer.tasks.text_classification.adapter
# What the model card of a stage needs of the report.
from distillchain_report.sections import section_of
from distillchain_report.statistics import share_interval
section_of({"type": "TextClassification"})
share_interval(1, 2)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_a_stage_imports_no_library_that_it_does_not_use():
    probe = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True, timeout=120)

    imported = set(json.loads(probe.stdout))
    assert "transformers" in imported
    assert imported & {"scipy", "sklearn", "pandas", "pyarrow", "matplotlib", "datasets", "onnx"} == set()


def a_stage(root: Path, name: str) -> dict[str, Any]:
    student = {"architecture": {"modelType": "bert", "config": SMALL_BERT}, "tokenizer": f"file://{root}/teacher"}
    return {"name": name, "student": student}


def test_a_stage_computes_without_torchs_compiler(root: Path):
    """From the first import to the commit: most of what the compiler imports is not torch's own."""
    order = an_order(root, stages=[a_stage(root, "first"), a_stage(root, "last")])

    process = start_process(order, root, PYTHONPROFILEIMPORTTIME="1")
    _, stderr = process.communicate(timeout=120)

    assert process.returncode == 0, stderr
    imported = {line.rpartition("|")[2].strip() for line in stderr.splitlines() if line.startswith("import time:")}
    assert "torch" in imported
    assert imported & {"torch._dynamo", "torch._inductor", "sympy", "triton", "accelerate.utils"} == set()


COMPILED = """
from distillchain_trainer.libraries import import_libraries
import_libraries()
import sys, torch
assert "torch._dynamo" not in sys.modules
model, rows = torch.nn.Linear(3, 2), torch.ones(4, 3)
torch.testing.assert_close(torch.compile(model, backend="eager")(rows), model(rows))
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


def test_the_compiler_can_be_used_after_it_was_left_out():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr


def test_a_tensor_without_memory_is_not_filled_and_one_with_memory_is():
    with QuickMeta(), torch.device("meta"):
        empty = [torch.nn.Embedding(5, 3).weight, torch.nn.Linear(3, 2).weight, torch.nn.Conv1d(2, 2, 1).weight]
    torch.manual_seed(1)
    want = [torch.nn.Embedding(5, 3).weight, torch.nn.Linear(3, 2).weight, torch.nn.Conv1d(2, 2, 1).weight]
    torch.manual_seed(1)
    with QuickMeta():
        found = [torch.nn.Embedding(5, 3).weight, torch.nn.Linear(3, 2).weight, torch.nn.Conv1d(2, 2, 1).weight]

    assert all(weight.is_meta for weight in empty)
    assert [weight.shape for weight in empty] == [weight.shape for weight in want]
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("shape, dims", [((2, 3, 4), (0, 1, 2)), ((2, 3, 4), (2, 0, 1)), ((), ()), ((0, 2), (0, 1))])
def test_memory_for_a_tensor_without_it_is_as_torch_gives_it(shape: tuple[int, ...], dims: tuple[int, ...]):
    model = torch.empty(shape, dtype=torch.int64, device="meta").permute(dims)
    want = torch.empty_like(model, device="cpu")

    with QuickMeta():
        found = torch.empty_like(model, device="cpu")

    assert (found.shape, found.dtype, found.stride(), found.device) == (
        want.shape,
        want.dtype,
        want.stride(),
        want.device,
    )
