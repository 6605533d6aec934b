"""Exports of a committed stage, and what each is called in store and status."""

from __future__ import annotations

from typing import Literal

from distillchain_api.base import Document

Format = Literal["onnx", "onnx-int8"]


class OnnxExport(Document):
    """A model.onnx for ONNX Runtime; without `quantize` with the weights as they are."""

    quantize: Literal["int8"] | None = None
    """int8: also a model.int8.onnx, whose matrix products use 8-bit weights."""


class Export(Document):
    """What is stored beside the checkpoint for other runtimes. In no digest: it changes no model."""

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
