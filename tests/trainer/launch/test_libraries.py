"""What the process of a stage imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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


def test_libraries_can_be_imported_after_a_part_of_transformers():
    import_both = "import transformers.pytorch_utils, distillchain_trainer.libraries as own; own.import_libraries()"

    subprocess.run([sys.executable, "-c", import_both], check=True, timeout=120)
