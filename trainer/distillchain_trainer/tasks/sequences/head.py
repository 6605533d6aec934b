"""What a task asks of a model's head: one vector of outputs for a whole text, or for each of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from distillchain_trainer.engine.encoding.encoding import Bind
from distillchain_trainer.engine.encoding.tokenizing import PlainTextTokenizer, Texts
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.stage_warnings import StageWarnings

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

TASK_TYPES = {SINGLE_LABEL: "TextClassification", MULTI_LABEL: "MultiLabelClassification", REGRESSION: "Regression"}
"""The task type of each `problem_type` of transformers."""


@dataclass(frozen=True)
class HeadKind:
    """A kind of head of transformers.

    Attributes:
        model_class: the Auto class that loads models with such a head.
        mapping: the model types that have it.
        suffix: ends the class name of a model with this head, in `architectures` of config.json.
        name: in a sentence.
        ability: what a model type without it cannot do.
        known_to_work: model types that have it.
        per_token: outputs are [tokens, ...] for each text, otherwise [...].
    """

    model_class: Any
    mapping: Any
    suffix: str
    name: str
    ability: str
    known_to_work: str
    per_token: bool = False


TEXT_HEAD = HeadKind(
    AutoModelForSequenceClassification,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "ForSequenceClassification",
    "classifier head",
    "classify text",
    "bert, roberta, distilbert, electra, deberta-v2, modernbert, gpt2, llama, qwen2 or bert-hash",
)
"""One vector of outputs for a whole text."""


@dataclass(frozen=True)
class Head:
    """The head that a task needs.

    Attributes:
        problem_type: as transformers names it; decides the task type in messages. None: such heads have none.
        purpose: what a model with this head was trained to do.
        names: of the outputs, in the order of the task.
        texts: how many a row has.
        max_length: tokens that a text is truncated to.
    """

    problem_type: str | None
    purpose: str
    names: tuple[str, ...]
    texts: int
    max_length: int

    kind: ClassVar[HeadKind] = TEXT_HEAD
    bind: ClassVar[Bind] = PlainTextTokenizer
    """How the task calls a tokenizer."""

    @property
    def task_type(self) -> str:
        """As in `spec.task.type`."""
        assert self.problem_type is not None
        return TASK_TYPES[self.problem_type]

    def is_in(self, config: Any) -> bool:
        """Whether a checkpoint was saved with a head of this kind."""
        return any(name.endswith(self.kind.suffix) for name in config.architectures or [])

    def fits(self, config: Any) -> bool:
        """Whether transformers has a head of this kind for the model type."""
        return type(config) in self.kind.mapping

    def row_of(self, text: str) -> Texts:
        """A row of the task with this text."""
        return (text,) * self.texts

    def prepare_tokenizer(self, tokenizer: Any, *, what: str, is_new: bool, warnings: StageWarnings) -> None:
        """Checks and sets what the task needs of a tokenizer.

        Args:
            is_new: the head starts new; otherwise it has been trained with the tokenizer as it is.
        Raises: CheckpointInvalid.
        """

    @property
    def has_classes(self) -> bool:
        """Whether the outputs are matched by name; the only output of a regression needs no name."""
        return self.problem_type != REGRESSION

    def check_outputs(self, count: int, what: str) -> None:
        """That a checkpoint with so many outputs can be one of the task. Raises: CheckpointInvalid."""
        if self.problem_type == REGRESSION and count != 1:
            raise CheckpointInvalid(
                f"{what}: num_labels: got {count}, expected 1; Regression needs a head with one output: use a "
                "checkpoint that has one, or one without a classifier head"
            )
        if self.problem_type == SINGLE_LABEL and count == 1:
            raise CheckpointInvalid(
                f"{what}: num_labels: got 1, expected a class for each of spec.task.labels; a head with one output is "
                "a regression"
            )
