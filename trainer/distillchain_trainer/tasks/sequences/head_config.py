"""What config.json says about the head of a model: its kind and the names of its outputs."""

from __future__ import annotations

from typing import Any

import torch

from distillchain_api.tasks import task_types
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.tasks.sequences.head import TASK_TYPES, Head


def class_names(config: Any) -> list[str]:
    """Names of the head's outputs in their order."""
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


def set_head(config: Any, head: Head) -> Any:
    """Writes the head that a task wants into a configuration, and returns it."""
    # transformers derives num_labels from them.
    config.id2label = dict(enumerate(head.names))
    config.label2id = {name: index for index, name in enumerate(head.names)}
    # Otherwise transformers guesses it from the labels of the first batch that has some.
    config.problem_type = head.problem_type
    # What is saved later is float32, whatever the checkpoint was.
    config.dtype = torch.float32
    return config


def check_head(checkpoint: Checkpoint, config: Any, head: Head) -> None:
    """Checks that config.json describes a head of the task, without contradictions. Raises: CheckpointInvalid."""
    document, what = checkpoint.config(), f"{checkpoint.field}: config.json of {checkpoint.uri}"
    problem = document.get("problem_type")
    if problem not in (None, head.problem_type):
        fitting = TASK_TYPES.get(problem)
        other = f"; this one fits task type {fitting}" if fitting in task_types() else ""
        raise CheckpointInvalid(
            f"{what}: problem_type: got {problem}, expected {head.problem_type}; {head.task_type} needs a model that "
            f"was trained to {head.purpose}{other}"
        )
    head.check_outputs(config.num_labels, what)
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
