"""The same relay as a notebook would have it: transformers' Trainer in one process, nothing kept, nothing checked.

    python bench/plain.py FOLDER EPOCHS    # of train.tsv, dev.tsv and test.tsv

What `distillchain run` is measured against (bench/sst2.py --against-plain): teacher logits once, in order of length;
training grouped by length, the soft-target loss, the batch sizes and learning rates of examples/sst2/offline.yaml; root
teacher and students measured on dev and test. No store, no report. Prints seconds as JSON.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from distillchain_trainer.models import bert_hash

MODELS = Path(__file__).resolve().parent.parent.parent / "shared/models"
TEACHER, TINY = MODELS / "minilm-l6-sst2-lr1e-4-2ep", MODELS / "bert-tiny-splade-sst2-3ep"
MAX_LENGTH = 128


class SoftTargets(Trainer):
    """KL(teacher || student) at temperature 1."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        teacher = inputs.pop("teacher_logits")
        outputs = model(**inputs)
        student = outputs.logits.log_softmax(-1)
        loss = torch.nn.functional.kl_div(student, teacher.log_softmax(-1), reduction="batchmean", log_target=True)
        return (loss, outputs) if return_outputs else loss


def main(data: Path, epochs: int) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    bert_hash.register()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    rows, dev, test = (encode(data / f"{split}.tsv", tokenizer) for split in ("train", "dev", "test"))
    seconds = {"evaluation": 0.0}
    teacher = AutoModelForSequenceClassification.from_pretrained(TEACHER)
    tiny = AutoModelForSequenceClassification.from_pretrained(TINY)
    femto = AutoModelForSequenceClassification.from_config(
        bert_hash.BertHashConfig(vocab_size=len(tokenizer), num_labels=2)
    )
    for teaching, student, name, learning_rate in ((teacher, tiny, "tiny", 1e-4), (tiny, femto, "femto", 1e-3)):
        seconds["evaluation"] += evaluate(teaching, dev, test, tokenizer)
        began = time.perf_counter()
        answer(teaching, rows, tokenizer)
        answered = time.perf_counter()
        learn(student, rows, tokenizer, learning_rate, epochs)
        seconds |= {f"logits for {name}": answered - began, f"training {name}": time.perf_counter() - answered}
    seconds["evaluation"] += evaluate(femto, dev, test, tokenizer)
    print(json.dumps(seconds))


def encode(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """The rows of a split."""
    with path.open(newline="") as file:
        sentences = [row["sentence"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return [dict(tokenizer(text, truncation=True, max_length=MAX_LENGTH)) for text in sentences]


def evaluate(model: Any, dev: list[dict[str, Any]], test: list[dict[str, Any]], tokenizer: Any) -> float:
    """Measures a model. Returns: seconds."""
    began = time.perf_counter()
    answer(model, dev, tokenizer)
    answer(model, test, tokenizer)
    return time.perf_counter() - began


@torch.inference_mode()
def answer(teacher: Any, rows: list[dict[str, Any]], tokenizer: Any) -> None:
    """Adds `teacher_logits` to every row."""
    teacher.eval()
    names = tokenizer.model_input_names
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
    for start in range(0, len(order), 64):
        places = order[start : start + 64]
        batch = tokenizer.pad([{name: rows[place][name] for name in names} for place in places], return_tensors="pt")
        for place, logits in zip(places, teacher(**batch).logits.tolist(), strict=True):
            rows[place]["teacher_logits"] = logits


def learn(student: Any, rows: list[dict[str, Any]], tokenizer: Any, learning_rate: float, epochs: int) -> None:
    """Trains in place."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=learning_rate,
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        collator = DataCollatorWithPadding(tokenizer)
        SoftTargets(model=student, args=arguments, train_dataset=rows, data_collator=collator).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
