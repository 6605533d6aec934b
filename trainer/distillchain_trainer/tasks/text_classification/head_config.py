"""What config.json says about a classifier's head: its kind and the names of its classes."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from distillchain_api.tasks.text_classification import TextClassification as Task
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.checkpoints import Checkpoint

CLASSIFIER = "ForSequenceClassification"
SINGLE_LABEL = "single_label_classification"
KNOWN_TO_WORK = "bert, roberta, distilbert, electra, deberta-v2, modernbert, gpt2, llama, qwen2 or bert-hash"


def has_classifier_head(config: Any) -> bool:
    """Whether a checkpoint was saved with a head that classifies texts."""
    return any(name.endswith(CLASSIFIER) for name in config.architectures or [])


def supports_classification(config: Any) -> bool:
    """Whether transformers has a classifier of this model type."""
    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def class_names(config: Any) -> list[str]:
    """Names of the classes in the order of the head's outputs."""
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


def set_classes(config: Any, task: Task) -> Any:
    """Writes the classes of the task into a configuration, and returns it."""
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {name: index for index, name in enumerate(task.labels)}
    # Otherwise transformers guesses it from the labels of the first batch that has some.
    config.problem_type = SINGLE_LABEL
    # What is saved later is float32, whatever the checkpoint was.
    config.dtype = torch.float32
    return config


def check_head(checkpoint: Checkpoint, config: Any) -> None:
    """Checks that config.json says one class per text, without contradictions. Raises: CheckpointInvalid."""
    document, what = checkpoint.config(), f"{checkpoint.field}: config.json of {checkpoint.uri}"
    problem = document.get("problem_type")
    if problem not in (None, SINGLE_LABEL):
        raise CheckpointInvalid(
            f"{what}: problem_type: got {problem}, expected {SINGLE_LABEL}; TextClassification needs a model that was "
            "trained to choose one class for each text"
        )
    if config.num_labels == 1:
        raise CheckpointInvalid(
            f"{what}: num_labels: got 1, expected a class for each of spec.task.labels; a head with one output is a "
            "regression"
        )
    names, count = document.get("id2label"), document.get("num_labels")
    # Without names transformers makes up LABEL_0, LABEL_1, ..., which contradict nothing.
    if not isinstance(names, dict):
        return
    # JSON has only strings as keys, so the numbers are read from them.
    if sorted(int(index) for index in names) != list(range(len(names))):
        raise CheckpointInvalid(
            f"{what}: id2label: got the numbers {', '.join(map(str, names))}, expected 0 to {len(names) - 1}"
        )
    if isinstance(count, int) and count != len(names):
        raise CheckpointInvalid(f"{what}: num_labels is {count}, but id2label has {len(names)} classes; correct one")
    _check_inverse(names, document.get("label2id"), what)


def _check_inverse(names: dict[str, Any], numbers: Any, what: str) -> None:
    """label2id often has the default names; only the same names with other numbers are a contradiction."""
    if not isinstance(numbers, dict) or set(numbers) != set(names.values()):
        return
    for index, name in names.items():
        # A name that two classes have has no single number.
        if str(numbers[name]) != str(index) and list(names.values()).count(name) == 1:
            raise CheckpointInvalid(
                f"{what}: id2label says that class {index} is {name}, label2id says that {name} is {numbers[name]}; "
                "correct the one that is wrong"
            )
