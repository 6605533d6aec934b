"""Parts of the tests of TokenClassification: tasks, data files, and small taggers with a tokenizer."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.tasks.token_classification import TokenClassification as Task
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.data.split import TaskData
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.token_classification.rows import read_task_data
from trainer.parts import save_backend

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
EVERY_KIND = [["Anna", "B-PER"], ["Berg", "I-PER"], ["saw", "O"], ["Porto", "B-LOC"], ["Bank", "B-ORG"]]
"""Words and tags of a row with an entity of each kind."""


def a_task(folder: Path = Path("/nowhere"), train: str = "train.conll", **parts: Any) -> Task:
    splits = {"train": train, "validation": "validation.conll", **parts.pop("splits", {})}
    dataset = {"uri": f"file://{folder}", "splits": splits, **parts.pop("dataset", {})}
    return Task.parse({"type": "TokenClassification", "dataset": dataset, "labels": LABELS, "maxLength": 32, **parts})


def as_conll(rows: Sequence[Sequence[Sequence[str]]], *, mark: str = "\t") -> str:
    """CoNLL of rows of words with their columns."""
    return "\n".join("".join(mark.join(cells) + "\n" for cells in row) for row in rows)


def as_jsonl(rows: Sequence[Sequence[Sequence[str]]]) -> str:
    lines = [{"words": [word for word, _ in row], "tags": [tag for _, tag in row]} for row in rows]
    return "".join(json.dumps(line) + "\n" for line in lines)


def read_all(folder: Path, train: str, **parts: Any) -> tuple[TaskData, list[str]]:
    """All splits and the warnings. A validation file is written unless there is one."""
    if not (folder / "validation.conll").exists():
        (folder / "validation.conll").write_text(as_conll([[["held", "O"], ["out", "O"], *EVERY_KIND]]))
    warnings = StageWarnings()
    data = read_task_data(
        a_task(folder, train, **parts), endpoint_url=None, region=None, folder=folder / "scratch", warnings=warnings
    )
    return data, warnings.sentences


SENTENCES = Path(__file__).parents[2] / "examples/token-classification/sentences"
"""120 sentences of our own with names of people, places and organisations."""

LETTERS = string.ascii_letters

TAGGER = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def save_word_pieces(folder: Path, *, size: int = 220, lowercase: bool = False) -> Any:
    """A fast tokenizer whose pieces are letters and frequent words of the training sentences."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    lines = (SENTENCES / "train.conll").read_text().split("\n")
    words = sorted(word.lower() if lowercase else word for word in (line.split("\t")[0] for line in lines) if word)
    # The most frequent words, and every letter at the beginning of a word and within one, so that no word is unknown.
    # Not a trainer of tokenizers, which gives other pieces each time.
    frequent = sorted(set(words), key=words.count, reverse=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *frequent]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces[:size]))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return save_backend(folder, backend, mask_token="[MASK]")


def save_tagger(
    folder: Path, kind: str = "bert", *, labels: list[str] | None = LABELS, seed: int = 0, **config: Any
) -> Path:
    """A small random tagger with names for its outputs, or an encoder without a head; and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification

    tokenizer = save_word_pieces(folder)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 0, **(TAGGER if kind == "bert" else {}), **config}
    settings = AutoConfig.for_model(kind, **sizes)
    torch.manual_seed(seed)
    if labels is None:
        AutoModel.from_config(settings).save_pretrained(folder)
        return folder
    settings.id2label, settings.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    AutoModelForTokenClassification.from_config(settings).save_pretrained(folder)
    return folder


def a_chain_document(root: Path, **parts: Any) -> dict[str, Any]:
    """A chain on our own sentences, whose teacher is an encoder at root/start that is fine-tuned first."""
    return {
        "apiVersion": "distillchain.io/v1alpha1",
        "kind": "DistillationChain",
        "metadata": {"name": "names"},
        "spec": {
            "task": {
                "type": "TokenClassification",
                "dataset": {
                    "uri": f"file://{SENTENCES}",
                    "splits": {"train": "train.conll", "validation": "validation.conll", "test": "test.conll"},
                    **parts.get("dataset", {}),
                },
                "labels": LABELS,
                "maxLength": 32,
                **parts.get("task", {}),
            },
            "storage": {"uri": f"file://{root}/store"},
            "teacher": parts.get("teacher", {"model": f"file://{root}/start", "fineTune": {"epochs": 12}}),
            "template": {
                "training": {"epochs": 12, "batchSize": 8, "learningRate": 0.01, **parts.get("training", {})},
                "distillation": parts.get("distillation", {"alpha": 0.9}),
            },
            "stages": [{"name": "small", "student": student} for student in [parts.get("student", a_student(root))]],
        },
    }


def a_student(root: Path) -> dict[str, Any]:
    """A student with another tokenizer than its teacher's."""
    config = {**TAGGER, "hidden_size": 24}
    return {"architecture": {"modelType": "bert", "config": config}, "tokenizer": f"file://{root}/other-tokenizer"}


def write_models(root: Path) -> Path:
    """The encoder and the tokenizer that `a_chain_document` names."""
    save_tagger(root / "start", labels=None)
    save_word_pieces(root / "other-tokenizer", size=140, lowercase=True)
    return root


def an_order(root: Path, *, stage: int = 0, **parts: Any) -> WorkOrder:
    return build_plan(parse_chain(a_chain_document(root, **parts))).stages[stage].work_order
