"""Small real parts of the trainer's tests: sentences, a tokenizer made of their words, random BERTs, work orders.

What loads torch is imported where it is used: the quick loop imports this file too.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.answer import Committed, Failed, Interrupted, ProgressPhase, parse_answer
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.work_order import TERMINATION_PATH_ENV, WORK_DIRECTORY_ENV, WORK_ORDER_ENV, WorkOrder
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.progress import Reporter

if TYPE_CHECKING:
    import pytest
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


GOOD = ["good", "great", "fine", "lovely", "charming", "bright", "funny", "warm"]
BAD = ["bad", "dull", "poor", "boring", "bleak", "cold", "weak", "tired"]
FILLERS = [
    "the",
    "film",
    "a",
    "movie",
    "is",
    "was",
    "very",
    "quite",
    "story",
    "with",
    "and",
    "plot",
    "acting",
    "of",
    ",",
    ".",
    "it",
    "this",
]
LABELS = ["negative", "positive"]
SMALL_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def sentences(rows: int, seed: int) -> list[tuple[str, int]]:
    """Sentences of good or bad words, in turns."""
    dice = random.Random(seed)
    found = []
    for row in range(rows):
        words = dice.choices(FILLERS, k=dice.randint(2, 9)) + dice.choices((BAD, GOOD)[row % 2], k=2)
        dice.shuffle(words)
        found.append((" ".join(words), row % 2))
    return found


def write_tsv(path: Path, rows: list[tuple[str, int]]) -> None:
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))


def write_data(folder: Path, *, train: int = 160, validation: int = 60, test: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_tsv(folder / "train.tsv", sentences(train, 1))
    write_tsv(folder / "dev.tsv", sentences(validation, 2))
    if test:
        write_tsv(folder / "test.tsv", sentences(test, 3))
    return folder


def save_tokenizer(folder: Path, *, more_words: int = 0) -> PreTrainedTokenizerFast:
    """A real fast tokenizer whose words are those of the sentences."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLERS, *GOOD, *BAD, *(f"w{i}" for i in range(more_words))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return save_backend(folder, backend)


def save_backend(folder: Path, backend: Tokenizer, **more_tokens: str) -> PreTrainedTokenizerFast:
    """Saves a tokenizer that puts BERT's control tokens around one text or two; [CLS] and [SEP] are 2 and 3."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **more_tokens,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_bert(
    folder: Path, *, labels: list[str] | None = LABELS, seed: int = 0, vocabulary: int | None = None, **config: Any
) -> Path:
    """A small random BERT: a classifier of `labels`, or an encoder without a head."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    words = vocabulary or len(save_tokenizer(folder))
    torch.manual_seed(seed)
    settings = BertConfig(vocab_size=words, **{**SMALL_BERT, **config})
    if labels is None:
        BertModel(settings).save_pretrained(folder)
    else:
        settings.id2label = dict(enumerate(labels))
        settings.label2id = {name: i for i, name in enumerate(labels)}
        BertForSequenceClassification(settings).save_pretrained(folder)
    return folder


def a_chain_document(root: Path, **parts: Any) -> dict[str, Any]:
    """A chain whose teacher lies at root/teacher, data at root/data and store at root/store."""
    architecture = {"modelType": "bert", "config": {**SMALL_BERT, "hidden_size": 8}}
    return {
        "apiVersion": "distillchain.io/v1alpha1",
        "kind": "DistillationChain",
        "metadata": {"name": "small"},
        "spec": {
            "task": {
                "type": "TextClassification",
                "dataset": {
                    "uri": f"file://{root}/data",
                    "splits": {"train": "train.tsv", "validation": "dev.tsv", **parts.get("splits", {})},
                    "text": ["sentence"],
                    "label": "label",
                    **parts.get("dataset", {}),
                },
                "labels": LABELS,
                "maxLength": 16,
                **parts.get("task", {}),
            },
            "storage": parts.get("storage", {"uri": f"file://{root}/store"}),
            "teacher": parts.get("teacher", {"model": f"file://{root}/teacher"}),
            "template": {
                "training": {"epochs": 2, "batchSize": 16, "learningRate": 0.01, **parts.get("training", {})},
                "distillation": parts.get("distillation", {}),
                **parts.get("template", {}),
            },
            "stages": parts.get(
                "stages",
                [
                    {
                        "name": "small",
                        "student": parts.get(
                            "student", {"architecture": architecture, "tokenizer": f"file://{root}/teacher"}
                        ),
                        "gate": parts.get("gate", {}),
                    }
                ],
            ),
        },
    }


def new_student(root: Path, *, dropout: float, **config: Any) -> dict[str, Any]:
    """A student with new weights and the teacher's tokenizer; `config` replaces fields of SMALL_BERT."""
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    architecture = {"modelType": "bert", "config": {**SMALL_BERT, **dropouts, **config}}
    return {"architecture": architecture, "tokenizer": f"file://{root}/teacher"}


def an_order(root: Path, *, stage: int = 0, **parts: Any) -> WorkOrder:
    """The work order of one stage, made by the operator's own plan."""
    return build_plan(parse_chain(a_chain_document(root, **parts))).stages[stage].work_order


def run_here(order: WorkOrder, root: Path, *, attempt: str = "here", signals: Signals | None = None) -> Committed:
    """Runs a stage in this process."""
    from distillchain_trainer.stage.run import run_stage

    folder = root / f"work-{attempt}"
    folder.mkdir(exist_ok=True)
    return run_stage(
        order, attempt=attempt, folder=folder, reporter=Reporter(order.stage, None), signals=signals or Signals()
    )


def trained_rows(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The training rows of each student from now on, as the training loop gets them."""
    from distillchain_trainer.stage import train_student

    seen: list[Any] = []
    real = train_student.train

    def train(model: Any, rows: Any, *rest: Any, **more: Any) -> Any:
        seen.append(rows)
        return real(model, rows, *rest, **more)

    monkeypatch.setattr(train_student, "train", train)
    return seen


def environment(order: WorkOrder | str, root: Path, **more: str) -> dict[str, str]:
    """What the operator gives a trainer."""
    return {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "DISTILLCHAIN_", "KUBERNETES_"))
        },
        WORK_ORDER_ENV: order if isinstance(order, str) else order.to_json(),
        TERMINATION_PATH_ENV: str(root / "termination"),
        WORK_DIRECTORY_ENV: str(root / "work"),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def start_process(order: WorkOrder | str, root: Path, **more: str) -> subprocess.Popen[str]:
    """The trainer as its container starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "distillchain_trainer"],
        env=environment(order, root, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer_in(root: Path) -> Committed | Failed | Interrupted:
    """The termination message."""
    text = (root / "termination").read_text()
    answer = parse_answer(text)
    assert answer is not None, text
    return answer


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def manifest_of(root: Path, digest: str) -> Manifest:
    return Manifest.parse((root / f"store/stages/{digest}/manifest.json").read_text())


def weights_of(answer: Committed) -> bytes:
    return (Path(answer.checkpoint.removeprefix("file://")) / "model.safetensors").read_bytes()


class StopAfter(Signals):
    """Told to stop after so many looks: a signal at an exact moment."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        super().__init__()

    @property
    def requested(self) -> bool:  # type: ignore[override]  # read where the base class has an attribute
        self._looks -= 1
        return self._looks < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


class Rival(Reporter):
    """At the last moment before this trainer uploads, another one commits the same stage."""

    def __init__(self, order: WorkOrder, root: Path) -> None:
        super().__init__(order.stage, None)
        self._order, self._root = order, root

    def report(self, phase: ProgressPhase, step: int, of: int, **_: float | None) -> None:
        if (phase, step) == ("Upload", 0):
            run_here(self._order, self._root, attempt="rival")
