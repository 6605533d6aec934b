"""Writes ONNX files of a model and runs them. Knows neither stages nor tasks.

torch's exporter is used with `dynamo=True`. The older one, which traces, wrote BERT and bert-hash with logits that were
0.3 to 0.5 off, without an error.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from distillchain_trainer.errors import ExportInvalid, first_line, translate_unforeseen

MOST_IN_ONE_FILE = 1_900_000_000
"""Bytes of weights that are written into the .onnx file: it is a protobuf message, which holds at most 2 GiB."""
ROWS, TOKENS = "rows", "tokens"


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
    Raises: as `write_graph`.
    """
    axes = {name: {0: ROWS, 1: TOKENS} for name in inputs}
    write_graph(_Logits(model), inputs, path, axes=axes, names=list(inputs), outputs=["logits"], who=who)


def write_graph(
    model: nn.Module,
    inputs: dict[str, Any],
    path: Path,
    *,
    axes: dict[str, Any],
    names: Sequence[str],
    outputs: Sequence[str],
    who: str,
) -> None:
    """Writes a module on the CPU. Weights that do not fit into the file lie beside it, see `weights_beside`.

    Args:
        inputs: an example of its arguments, with sizes that differ from 1.
        axes: the axes of arguments that may have any size, by number.
        names: of all input tensors.
        outputs: names of all output tensors.
        who: begins the message.
    Raises: ExportInvalid when the exporter cannot export the model; OutOfMemory, DiskFull.
    """
    with quiet(), translated(who, "the model cannot be exported to ONNX"):
        program = torch.onnx.export(
            model.eval(),
            kwargs=inputs,
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=axes,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # the exporter's stack traces, with the paths and the code of this machine
        size = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
        program.save(path, external_data=size > MOST_IN_ONE_FILE)


def weights_beside(path: Path) -> Path:
    """The file beside an ONNX file in which ONNX Runtime looks for weights that did not fit into it."""
    return path.with_name(f"{path.name}.data")


def size_of(path: Path) -> int:
    """Bytes of an ONNX file with its weights."""
    return sum(part.stat().st_size for part in (path, weights_beside(path)) if part.exists())


def quantize_int8(source: Path, path: Path, *, who: str) -> None:
    """Writes the model with 8-bit weights; activations are quantized as they come (dynamic quantization).

    Raises: ExportInvalid when the quantizer cannot read or quantize the model.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(), translated(who, "the weights cannot be quantized to int8"):
        is_large = weights_beside(source).exists()
        quantize_dynamic(source, path, weight_type=QuantType.QInt8, use_external_data_format=is_large)


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
        with translated(who, f"ONNX Runtime cannot load {path.name}"):
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        # The engine asks a model for the device of its weights.
        self.device = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """Token ids [rows, tokens] -> an object with `logits`."""
        (logits,) = self.run(["logits"], inputs)
        return SimpleNamespace(logits=logits)

    def run(self, outputs: list[str] | None, inputs: dict[str, Tensor]) -> list[Tensor]:
        """The outputs of these names, or all. Inputs that the graph does not have are left out."""
        wanted = {item.name: inputs[item.name].numpy() for item in self.session.get_inputs()}
        with translated(self._who, "ONNX Runtime cannot run the exported graph"):
            return [torch.from_numpy(found) for found in self.session.run(outputs, wanted)]


@contextmanager
def translated(who: str, what: str) -> Iterator[None]:
    """Within, errors of exporter, quantizer and runtime become ExportInvalid, OutOfMemory or DiskFull."""
    try:
        yield
    except Exception as error:  # these libraries raise errors of many classes for a model that they do not support
        why: BaseException = error
        while why.__cause__ is not None:  # the exporter's own message only names the step that failed
            why = why.__cause__
        raise translate_unforeseen(error) or ExportInvalid(
            f"{who}: {what}: {first_line(why)}; remove export.onnx of this stage"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within, exporter and quantizer report nothing: they raise what matters, and the rest is about their code."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
