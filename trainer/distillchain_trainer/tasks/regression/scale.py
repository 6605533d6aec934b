"""Trains a head in standard units and keeps its weights in the units of the data.

AdamW moves a weight by about the learning rate in each step, whatever the gradient. A head that starts at 0 would need
a million steps of 1e-4 to reach numbers around 100. So the trained weights give numbers with mean 0 and standard
deviation 1, and the layer rescales what they give. `fold` puts the scale into the weights: the saved checkpoint is a
plain model of transformers that gives the units of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.tasks.sequences.heads import SequenceModel, output_layer


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the training numbers."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Scale:
        """The scale of some numbers. At least two of them differ."""
        values = np.asarray(numbers, dtype=np.float64)
        return cls(float(values.mean()), float(values.std()))


class _Scaled:
    """Before the class of a linear layer: its output times `output_scale`, plus `output_shift`."""

    output_scale: Tensor
    output_shift: Tensor

    def forward(self, *inputs: Any) -> Tensor:
        output: Tensor = super().forward(*inputs)  # type: ignore[misc]  # of the layer's own class
        # float32: bfloat16 has three digits, too few for numbers far from 0.
        return output.float() * self.output_scale + self.output_shift


def put_in_standard_units(student: Loaded, scale: Scale) -> None:
    """Rescales the head of a student before its training.

    A new head then starts near the mean of the numbers. One that was trained before gives the same as before.

    Raises: CheckpointInvalid for a head without a linear layer.
    """
    layer = output_layer(student.model, 1)
    if layer is None:
        raise CheckpointInvalid(
            f"{student.start}: {type(student.model).__name__} has no linear head whose output could be scaled; use "
            "another model type"
        )
    # Without a bias, as in decoders, a shift could not be saved. The weights then learn the mean as well, in units in
    # which it is not large.
    shift = scale.mean if layer.bias is not None else 0.0
    factor = scale.deviation if layer.bias is not None else float(np.hypot(scale.mean, scale.deviation))
    is_new = isinstance(student, SequenceModel) and student.new_head
    if not is_new:
        with torch.no_grad():
            layer.weight /= factor
            if layer.bias is not None:
                layer.bias.copy_((layer.bias - shift) / factor)
    device = layer.weight.device
    # Buffers and not numbers: a recorded CUDA graph reads them again after `fold`. Not saved with the model.
    layer.register_buffer("output_scale", torch.tensor(factor, device=device), persistent=False)
    layer.register_buffer("output_shift", torch.tensor(shift, device=device), persistent=False)
    # Another class and not a wrapper, so that no parameter is renamed and copies of the model keep it.
    kind = type(layer)
    layer.__class__ = type(kind.__name__, (_Scaled, kind), {"__module__": kind.__module__})


def fold(model: Any) -> None:
    """Puts the scale of a trained head into its weights; the outputs stay the same. Of no effect the second time."""
    layer = output_layer(model, 1)
    assert isinstance(layer, nn.Linear)
    scale, shift = layer.output_scale, layer.output_shift
    assert isinstance(scale, Tensor)
    assert isinstance(shift, Tensor)
    with torch.no_grad():
        layer.weight *= scale
        if layer.bias is not None:
            layer.bias.copy_(layer.bias * scale + shift)
        scale.fill_(1.0)
        shift.zero_()
