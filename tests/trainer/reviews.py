"""The chains of examples/reviews, with small models of our own in place of those of the hub."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from distillchain_api.yaml_text import load_yaml

EXAMPLE = Path(__file__).parents[2] / "examples/reviews"
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def sentences() -> ModuleType:
    """examples/reviews/sentences.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("review_sentences", EXAMPLE / "sentences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_chain(root: Path, name: str, **changes: Any) -> Path:
    """The chain `name` of the example in `root`, with its data and a small encoder; `changes` replace fields of spec."""
    sentences().write(root / "data")
    save_encoder(root / "start", (root / "data/labels-train.tsv").read_text())
    document = load_yaml((EXAMPLE / name).read_text(), source=name)
    spec: dict[str, Any] = document["spec"]
    spec["teacher"]["model"] = "file://./start"
    spec["teacher"]["fineTune"] = {"epochs": 12, "learningRate": 0.003}
    spec["template"]["training"] |= {"epochs": 12, "learningRate": 0.003}
    spec["stages"][0]["student"] = {"model": "file://./start"}
    spec |= changes
    path = root / "chain.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def save_encoder(folder: Path, text: str) -> None:
    """A BERT with new weights and a tokenizer of the words in `text`."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(text.lower().split()))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), **SMALL)).save_pretrained(folder)


def distillchain(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distillchain_cli", *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
