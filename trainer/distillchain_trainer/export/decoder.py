"""ONNX graphs of language models that generate: with a cache of keys and values. Knows neither stages nor tasks.

A graph reads the cache of the tokens so far, which is empty at first, and returns it with that of the new tokens. Its
inputs and outputs have the names of Hugging Face's exports: input_ids, attention_mask, position_ids,
past_key_values.0.key, past_key_values.0.value, ... -> logits, present.0.key, present.0.value, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from distillchain_trainer.errors import ExportInvalid
from distillchain_trainer.export.onnx_file import (
    ROWS,
    TOKENS,
    OnnxModel,
    quiet,
    translated,
    weights_beside,
    write_graph,
)

PAST, PRESENT = "past_key_values", "present"
# Sizes of the example that the exporter works on. They differ, and none is 1, which it takes for a constant.
EXAMPLE_ROWS, EXAMPLE_PAST, EXAMPLE_TOKENS = 2, 3, 5

BLOCK = 32
"""Weights that share a scale in the quantized graph."""
INT8_ACTIVATIONS = 4
"""`accuracy_level` of ONNX Runtime's MatMulNBits: activations are rounded to int8 too, block by block.

Measured with SmolLM2-135M on sentences: 4.329 nats per token in float32, 4.347 so, 4.336 with float32 activations in
three times the time, and 5.0 to 5.2 with dynamic quantization, which has one scale for all activations of a matrix.
"""


class _WithCache(nn.Module):
    """A language model whose cache is a list of tensors: key and value of each layer in turn."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """See the module; [rows, tokens], [rows, past + tokens], [rows, tokens], each [rows, heads, past, size]."""
        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(key, value, layer)
        answer = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return answer.logits, *_tensors(cache)


def write_decoder(model: nn.Module, path: Path, *, who: str) -> None:
    """Writes a language model on the CPU, for any number of rows, tokens and tokens before them.

    Args:
        who: begins the message.
    Raises: ExportInvalid when its cache is another one, or the exporter cannot export it; OutOfMemory, DiskFull.
    """
    tokens = EXAMPLE_PAST + EXAMPLE_TOKENS
    ids = torch.zeros(EXAMPLE_ROWS, tokens, dtype=torch.long)
    mask, positions = torch.ones_like(ids), torch.arange(tokens).expand(EXAMPLE_ROWS, tokens)
    past = _cache_of(model, ids[:, :EXAMPLE_PAST], who=who)
    names = [f"{layer}.{part}" for layer in range(len(past) // 2) for part in ("key", "value")]
    inputs = {
        "input_ids": ids[:, EXAMPLE_PAST:],
        "attention_mask": mask,
        "position_ids": positions[:, EXAMPLE_PAST:],
        "past": past,
    }
    new = {0: ROWS, 1: TOKENS}
    axes = {"input_ids": new, "attention_mask": {0: ROWS, 1: "past + tokens"}, "position_ids": new}
    write_graph(
        _WithCache(model),
        inputs,
        path,
        axes={**axes, "past": [{0: ROWS, 2: "past"} for _ in past]},
        names=["input_ids", "attention_mask", "position_ids", *(f"{PAST}.{name}" for name in names)],
        outputs=["logits", *(f"{PRESENT}.{name}" for name in names)],
        who=who,
    )


def _cache_of(model: Any, ids: Tensor, *, who: str) -> list[Tensor]:
    with translated(who, "the model does not run with a cache"), torch.no_grad():
        cache = model.eval()(input_ids=ids, use_cache=True).past_key_values
    found = _tensors(cache)
    if not found or not all(isinstance(tensor, Tensor) and tensor.shape[2] == ids.shape[1] for tensor in found):
        raise ExportInvalid(
            f"{who}: {model.config.model_type} keeps more between two tokens than the keys and values of all tokens, "
            "which cannot be exported; remove export.onnx of this stage"
        )
    return found


def _tensors(cache: Any) -> list[Any]:
    """Key and value of each layer in turn; None where a layer has none."""
    return [getattr(layer, part, None) for layer in getattr(cache, "layers", ()) for part in ("keys", "values")]


def quantize_decoder(source: Path, path: Path, *, who: str) -> None:
    """Writes the model with 8-bit weights in blocks; word embeddings stay in float32, and a head that shares them.

    Raises: ExportInvalid when the quantizer cannot read or quantize the model.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    with quiet(), translated(who, "the weights cannot be quantized to int8"):
        how = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS, bits=8)
        graph = ONNXModel(onnx.load(source))
        # The quantizer leaves out Gemm, a product with a bias, which GPT-2's and OPT's layers are.
        graph.replace_gemm_with_matmul()
        quantizer = MatMulNBitsQuantizer(graph.model, algo_config=how)
        quantizer.process()
        quantizer.model.save_model_to_file(path, use_external_data_format=weights_beside(source).exists())


class OnnxDecoder(OnnxModel):
    """A graph of `write_decoder`. Called as a model is, it reads whole texts from an empty cache."""

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """Token ids [rows, tokens] -> an object with `logits`."""
        (logits,) = self.run(["logits"], inputs | _positions(inputs["attention_mask"]) | self._empty(inputs))
        return SimpleNamespace(logits=logits)

    def in_pieces(self, inputs: dict[str, Tensor], cuts: list[int]) -> Tensor:
        """The logits of whole texts that are read piece after piece, each with the cache of those before it.

        Args:
            inputs: of whole texts, [rows, tokens].
            cuts: where a piece ends and the next one begins, in rising order.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        positions, past, logits = _positions(mask)["position_ids"], self._empty(inputs), []
        for start, stop in pairwise([0, *cuts, ids.shape[1]]):
            piece = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop]}
            found, *cache = self.run(None, piece | {"position_ids": positions[:, start:stop]} | past)
            logits.append(found)
            past = dict(zip(past, cache, strict=True))
        return torch.cat(logits, dim=1)

    def _empty(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A cache of no tokens, in the order of the outputs."""
        rows = len(inputs["input_ids"])
        sizes = {item.name: item.shape for item in self.session.get_inputs() if item.name.startswith(PAST)}
        return {name: torch.zeros(rows, heads, 0, size) for name, (_, heads, _, size) in sizes.items()}


def difference_with_cache(
    decoder: OnnxDecoder, model: nn.Module, texts: Sequence[Tensor], *, pad_id: int
) -> tuple[float, float]:
    """How far logits of texts that are read piece after piece, as a server does, are from the model's.

    For the graph the texts are padded on the left, and some pieces have a single token. The model reads each text at
    once and alone. So neither padding nor cache can hide a fault.

    Args:
        texts: ids of tokens, [tokens] each.
    Returns: the largest difference, and the largest logit.
    """
    width = max(len(text) for text in texts)
    ids, mask = (torch.full((len(texts), width), value) for value in (pad_id, 0))
    for row, text in enumerate(texts):
        ids[row, width - len(text) :], mask[row, width - len(text) :] = text, 1
    middle = width // 2
    cuts = sorted({cut for cut in (middle, middle + 1, middle + 2) if 0 < cut < width})
    found = decoder.in_pieces({"input_ids": ids, "attention_mask": mask}, cuts)
    with torch.inference_mode():
        wanted = [model(input_ids=text.unsqueeze(0)).logits[0] for text in texts]
    differences = [(found[row, width - len(want) :] - want).abs().max() for row, want in enumerate(wanted)]
    # torch.stack and max keep a NaN, which Python's max may lose.
    return float(torch.stack(differences).max()), float(torch.cat(wanted).abs().max())


def _positions(mask: Tensor) -> dict[str, Tensor]:
    """Counted from the first token that is not padding."""
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
