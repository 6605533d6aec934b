"""Exports of a committed stage, which tasks have none, and what each is called in store and status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from distillchain_api.base import Document
from distillchain_api.cel import cel
from distillchain_api.faults import Fault, expected
from distillchain_api.task import Task

Format = Literal["onnx", "onnx-int8"]

WITHOUT_ONNX = ("CausalLM",)
"""Task types whose models have no ONNX export here: generation needs a cache of keys and values in the graph."""


class OnnxExport(Document):
    """A model.onnx for ONNX Runtime; without `quantize` with the weights as they are."""

    quantize: Literal["int8"] | None = None
    """int8: also a model.int8.onnx, whose matrix products use 8-bit weights (dynamic quantization)."""


class Export(Document):
    """What is stored beside the checkpoint for other runtimes. In no digest: it changes no student."""

    onnx: OnnxExport | None = None
    """Export to ONNX; empty: none."""

    @property
    def name(self) -> Format | None:
        """What the export as a whole is called; None: there is none."""
        if self.onnx is None:
            return None
        return "onnx-int8" if self.onnx.quantize else "onnx"

    @property
    def formats(self) -> list[Format]:
        """The formats that it has."""
        if self.onnx is None:
            return []
        return ["onnx", "onnx-int8"] if self.onnx.quantize else ["onnx"]


def export_faults(task: Task, exports: Mapping[str, Export | None]) -> Iterator[Fault]:
    """What does not fit the task.

    Args:
        exports: by their place, such as `template.export`.
    """
    for place, export in exports.items():
        if export is not None and export.onnx is not None and task.type in WITHOUT_ONNX:
            yield Fault(f"{place}.onnx", expected("an export", f"none for a {task.type} task", "remove it"))


EXPORT_RULES = [
    cel(
        f"!(self.task.type in {list(WITHOUT_ONNX)}) || !has(self.template) || !has(self.template.export) || "
        "!has(self.template.export.onnx)",
        f"template.export.onnx: expected none for a task of type {' or '.join(WITHOUT_ONNX)}; remove it",
        fieldPath=".template",
    ),
    cel(
        f"!(self.task.type in {list(WITHOUT_ONNX)}) || "
        "!self.stages.exists(stage, has(stage.export) && has(stage.export.onnx))",
        f"stages[].export.onnx: expected none for a task of type {' or '.join(WITHOUT_ONNX)}; remove it",
        fieldPath=".stages",
    ),
]
"""`export_faults` as CEL rules of ChainSpec."""
