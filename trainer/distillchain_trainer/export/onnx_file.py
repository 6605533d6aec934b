"""Writes ONNX files of a model and runs them. Knows neither stages nor tasks.

torch's exporter is used with `dynamo=True`. The older one, which traces, wrote BERT and bert-hash with logits that were
0.3 to 0.5 off, without an error.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from distillchain_trainer.errors import ExportInvalid, first_line, translate_unforeseen

MAX_WEIGHT_BYTES = 1_900_000_000  # an ONNX file is a protobuf message, which holds at most 2 GiB
AXES = {0: "rows", 1: "tokens"}


class _Logits(nn.Module):
    """A model that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        """Token ids [rows, tokens] -> logits."""
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **kinds).logits


def write_onnx(model: nn.Module, inputs: dict[str, Tensor], path: Path, *, who: str) -> None:
    """Writes a model on the CPU; its inputs and the output `logits` take any number of rows and tokens.

    Args:
        inputs: of at least two rows and two tokens; the exporter takes a size of 1 for a constant.
        who: begins the message.
    Raises: ExportInvalid when the exporter cannot export the model.
    """
    with _quiet(), _translated(who, "the model cannot be exported to ONNX"):
        program = torch.onnx.export(
            _Logits(model).eval(),
            kwargs=inputs,
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(inputs, AXES),
        )
        assert program is not None
        program.save(path, external_data=False)


def quantize_int8(source: Path, path: Path, *, who: str) -> None:
    """Writes the model with 8-bit weights; activations are quantized as they come (dynamic quantization).

    Raises: ExportInvalid when the quantizer cannot read or quantize the model.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), _translated(who, "the weights cannot be quantized to int8"):
        quantize_dynamic(source, path, weight_type=QuantType.QInt8)


class OnnxModel(nn.Module):
    """An ONNX file that is called as a model of transformers is, on as many threads as torch uses.

    Raises: ExportInvalid when ONNX Runtime cannot load or run it.
    """

    def __init__(self, path: Path, *, who: str) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; its warnings are about optimizations
        self._who = who
        with _translated(who, f"ONNX Runtime cannot load {path.name}"):
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [item.name for item in self._session.get_inputs()]
        # The engine asks a model for the device of its weights.
        self.device = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """Token ids [rows, tokens] -> an object with `logits`."""
        with _translated(self._who, "ONNX Runtime cannot run the exported graph"):
            (logits,) = self._session.run(None, {name: inputs[name].numpy() for name in self._names})
        return SimpleNamespace(logits=torch.from_numpy(logits))


@contextmanager
def _translated(who: str, what: str) -> Iterator[None]:
    """Within, errors of exporter, quantizer and runtime become ExportInvalid, OutOfMemory or DiskFull."""
    try:
        yield
    except Exception as error:  # these libraries raise errors of many classes for a model that they do not support
        raise translate_unforeseen(error) or ExportInvalid(
            f"{who}: {what}: {first_line(error)}; remove export.onnx of this stage"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, exporter and quantizer report nothing: their warnings are about their own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
