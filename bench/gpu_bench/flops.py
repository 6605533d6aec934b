"""Model FLOPs utilisation (MFU): the arithmetic of a training step over what the GPU's tensor cores could do."""

from __future__ import annotations

from typing import Any

PEAK_FLOPS = 989e12  # bfloat16, dense, H100 SXM and H200 by their data sheets
FORMULA = (
    "MFU = (6 * P + 12 * layers * hidden * tokens per row) * tokens per step / seconds per step / 989e12, "
    "with P the parameters of the layers, without embeddings, pooler and head"
)


def layer_parameters(config: dict[str, Any]) -> int:
    """Parameters of all layers of a BERT: four projections, two of the MLP, two LayerNorms."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    attention = 4 * (hidden * hidden + hidden)
    mlp = 2 * hidden * inner + inner + hidden
    norms = 4 * hidden
    return int(config["num_hidden_layers"] * (attention + mlp + norms))


def language_flops(config: dict[str, Any], *, vocabulary: int, tokens_per_row: int) -> float:
    """FLOPs of a forward pass for each token of a Llama; a training step has three times as many.

    2 for each weight of the layers and of the head, and 4 * layers * width * tokens for attention without regard to
    its mask, as is usual.
    """
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    keys = hidden * config["num_key_value_heads"] // heads
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * config["intermediate_size"])
    return float(2 * (weights + vocabulary * hidden) + 4 * layers * hidden * tokens_per_row)


def training_mfu(config: dict[str, Any], *, tokens_per_row: int, rows_per_second: float) -> float:
    """See FORMULA. Forward and backward of a matrix product are 6 FLOPs for each weight and token.

    The attention adds 12 * layers * hidden * tokens for each token: two products of 2 * hidden * tokens forward, and
    twice that backward.
    """
    attention = 12 * config["num_hidden_layers"] * config["hidden_size"] * tokens_per_row
    return (6 * layer_parameters(config) + attention) * tokens_per_row * rows_per_second / PEAK_FLOPS
