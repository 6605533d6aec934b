"""What the files of a checkpoint must be: all there, of a kind that can be loaded, with content that fits the name.

Reads the headers of weights, not the weights. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from distillchain_trainer.errors import CheckpointInvalid

Parts: TypeAlias = Literal["all", "weights", "tokenizer"]
"""Which parts of a checkpoint are used; "all" is weights and tokenizer."""

WANTED = (".json", ".safetensors", ".txt", ".model", ".jinja")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".gguf", ".onnx")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")  # written beside them by Trainer
TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))  # one of these sets is needed
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")

COPY_AGAIN = "copy the checkpoint again"
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
# The first bytes of formats that are found under the name of weights, and the remedy for each.
SIGNATURES = (
    (b"\x1f\x8b", "a gzip file; decompress it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; decompress it"),
    (b"BZh", "a bzip2 file; decompress it"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes; save the model with save_pretrained"),
    (b"\x80", "a pickle; save the model with save_pretrained"),
    (b"GGUF", "a GGUF file; save the model with save_pretrained"),
    (b"<", "an HTML or XML page, such as the error page of a failed download; download the file again"),
)
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


def check_names(names: Sequence[str], *, uri: str, field: str, parts: Parts) -> None:
    """Checks that the needed files are there and that their kinds can be loaded. Raises: CheckpointInvalid."""
    if parts != "weights":
        _check_tokenizer_names(names, f"{field}: {uri}")
    if parts != "tokenizer":
        _check_weight_names(names, f"{field}: {uri}")


def check_contents(folder: Path, names: Iterable[str], *, uri: str, field: str, parts: Parts) -> None:
    """Checks that each file is what its name says and that no shard is missing. Raises: CheckpointInvalid."""
    for name in sorted(name for name in names if name.endswith(WANTED)):
        # Weights beside a tokenizer are not used and not downloaded from S3.
        if parts == "tokenizer" and name.endswith(".safetensors"):
            continue
        if not (folder / name).exists():
            raise CheckpointInvalid(
                f"{field}: {uri}/{name} is a link to a file that does not exist, as in a snapshot of the hub's cache "
                "that was copied without its blobs; copy what the links lead to (cp -rL)"
            )
        with (folder / name).open("rb") as file:
            # Before the headers are read: a pointer is a short text, which would be reported as damaged weights.
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointInvalid(
                    f"{field}: {uri}/{name} is a Git LFS pointer, a short text in place of the file; run git lfs pull "
                    "in the clone that it comes from, and copy it again"
                )
    if parts == "tokenizer":
        return
    for name in weight_files(folder, uri=uri, field=field):
        if not (folder / name).exists():
            raise CheckpointInvalid(
                f"{field}: {uri}/{name} is missing, but {uri}/{INDEX} lists it as a part of the weights; {COPY_AGAIN}"
            )
        what = f"{field}: {uri}/{name}"
        for tensor, dtype in read_header(folder / name, what).items():
            if tensor.endswith("weight") and dtype not in FLOAT_TYPES:
                # torch would convert the codes to floats without the scales that belong to them.
                raise CheckpointInvalid(
                    f"{what}: {tensor} is quantized ({dtype}); use the checkpoint from before its quantization"
                )


def weight_files(folder: Path, *, uri: str, field: str) -> list[str]:
    """Names of the files that hold the weights. Raises: CheckpointInvalid for an index that cannot be read."""
    if not (folder / INDEX).exists():
        return [WEIGHTS]
    shards = read_json(folder / INDEX, f"{field}: {uri}/{INDEX}").get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else set()
    # No slash: a file of the index must not lie outside of the checkpoint's folder.
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[^/\\]+\.safetensors", name) for name in names):
        raise CheckpointInvalid(
            f"{field}: {uri}/{INDEX}: weight_map must give a file with a name in .safetensors for each tensor; "
            f"{COPY_AGAIN}"
        )
    return sorted(names)


def read_header(path: Path, what: str) -> dict[str, str]:
    """The type of each tensor of a safetensors file by its name, such as F32.

    `what` names the file in messages. Raises: CheckpointInvalid for another kind of file, or one that is cut short.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        # The format: 8 bytes with the size of the header, the header as JSON, the tensors.
        start = file.read(8)
        header_bytes = int.from_bytes(start, "little")
        fits = len(start) == 8 and header_bytes <= MAX_HEADER_BYTES
        # Another kind of file may announce any size here.
        content = file.read(header_bytes) if fits else b""
    try:
        header = json.loads(content)
        # Notes of the writer, not a tensor.
        header.pop("__metadata__", None)
        tensors = {name: (str(tensor["dtype"]), int(tensor["data_offsets"][1])) for name, tensor in header.items()}
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        # A header that ends too early. Anything else is another kind of file.
        if 0 < len(content) < header_bytes and content.startswith(b"{"):
            raise CheckpointInvalid(f"{what} is cut short within its header; {COPY_AGAIN}") from error
        raise CheckpointInvalid(f"{what} is not a safetensors file: {_kind(start)}") from error
    # The tensors follow each other without gaps, so the largest end is the size of all of them.
    expected_bytes = 8 + header_bytes + max((end for _, end in tensors.values()), default=0)
    if size_bytes != expected_bytes:
        raise CheckpointInvalid(
            f"{what} has {size_bytes:,} bytes, but by its header it should have {expected_bytes:,}; {COPY_AGAIN}"
        )
    return {name: dtype for name, (dtype, _) in tensors.items()}


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; `what` names the file in messages. Raises: CheckpointInvalid."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointInvalid(f"{what} is not JSON ({error}); {COPY_AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointInvalid(f"{what} is not a JSON object")
    return value


def _check_tokenizer_names(names: Sequence[str], what: str) -> None:
    if any(set(files) <= set(names) for files in TOKENIZERS):
        return
    pieces = next((name for name in names if name in SENTENCEPIECE), None)
    if pieces:
        raise CheckpointInvalid(
            f"{what} has its tokenizer only as {pieces}, which this trainer does not read; load it with AutoTokenizer "
            "where sentencepiece is installed and save it with save_pretrained, which writes tokenizer.json"
        )
    if "vocab.json" in names:
        raise CheckpointInvalid(f"{what} has vocab.json without merges.txt; add merges.txt or tokenizer.json")
    raise CheckpointInvalid(
        f"{what} has no tokenizer; put the tokenizer.json (or vocab.txt) it was trained with into the same folder"
    )


def _check_weight_names(names: Sequence[str], what: str) -> None:
    adapter = next((name for name in ADAPTER_FILES if name in names), None)
    if adapter:
        # transformers would load the base model and leave the adapter out where peft is not installed.
        raise CheckpointInvalid(
            f"{what} has {adapter}: it is an adapter (such as LoRA) of another model and would be ignored; merge it "
            "into its base with peft's merge_and_unload(), save the result with save_pretrained(), and use that folder"
        )
    if "config.json" not in names:
        raise CheckpointInvalid(f"{what} has no config.json; expected a checkpoint in Hugging Face format")
    # transformers would load the first and ignore the second without a word.
    if WEIGHTS in names and INDEX in names:
        raise CheckpointInvalid(
            f"{what} has both {WEIGHTS} and {INDEX}, which are two versions of the weights; delete the old one"
        )
    if WEIGHTS in names or INDEX in names:
        return
    # Pickles get their own message, because a user may have only them, and save_pretrained converts them.
    pickle = next((name for name in names if name.endswith(PICKLES) and name not in NO_WEIGHTS), None)
    if pickle and not any(name.endswith(".safetensors") for name in names):
        raise CheckpointInvalid(
            f"{what} has only pickled weights ({pickle}), which can run code when loaded; save it with "
            "save_pretrained(safe_serialization=True) or name a revision with safetensors"
        )
    formats = (*OTHER_WEIGHTS, ".safetensors")
    other = next((name for name in names if name.endswith(formats) and name not in NO_WEIGHTS), None)
    found = f" (found {other})" if other else ""
    raise CheckpointInvalid(f"{what} has no weights{found}; expected {WEIGHTS}, or {INDEX} and its parts")


def _kind(start: bytes) -> str:
    if not start:
        return f"it is empty; {COPY_AGAIN}"
    kind = next((kind for signature, kind in SIGNATURES if start.startswith(signature)), None)
    return f"it is {kind}" if kind else f"its header cannot be read; {COPY_AGAIN}"
