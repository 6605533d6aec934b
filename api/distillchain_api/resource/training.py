"""How students are trained: values of the template, and of single stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distillchain_api.base import Document
from distillchain_api.cel import rules
from distillchain_api.faults import Expect
from distillchain_api.resource.label_term import BLOCK_RULE, ClassWeights, LabelSmoothing
from distillchain_api.resource.selection import PATIENCE_RULE, Patience, Selection
from distillchain_api.values import Share

PositiveInt = Annotated[int, Field(ge=1, le=1_000_000), Expect("a whole number from 1 to 1000000")]
LearningRate = Annotated[
    float, Field(gt=0, le=1), Expect("a learning rate above 0 and at most 1", "for example 1.0e-4")
]
NonNegative = Annotated[float, Field(ge=0, le=1000), Expect("a number from 0 to 1000")]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1), Expect("a whole number from 0 to 2147483647")]
Scheduler = Literal["linear", "cosine", "constant"]
Precision = Literal["float32", "bfloat16"]


class TrainingOverrides(Document):
    """Training values of one stage; fields that are not set come from the template."""

    epochs: PositiveInt | None = None
    """Passes over the training split."""
    batch_size: PositiveInt | None = None
    """Rows of one optimizer step, over all devices."""
    learning_rate: LearningRate | None = None
    """Peak learning rate of AdamW."""
    weight_decay: NonNegative | None = None
    """Weight decay of AdamW."""
    warmup_ratio: Share | None = None
    """Share of the steps in which the learning rate rises."""
    scheduler: Scheduler | None = None
    """Schedule of the learning rate after the warm-up."""
    max_grad_norm: NonNegative | None = None
    """Gradients are clipped to this norm; 0: not clipped."""
    precision: Precision | None = None
    """float32, or bfloat16 autocast."""
    tf32: bool | None = None
    """Whether float32 matrix products on a GPU may use TF32: faster, with a mantissa of 10 bits. With bfloat16 only the
    head has such products."""
    seed: Seed | None = None
    """Seed of data order, dropout and new weights."""
    label_smoothing: LabelSmoothing | None = None
    """Share of each label that is spread evenly over all classes, in the loss on the labels."""
    class_weights: ClassWeights | None = None
    """Weights of the classes in the loss on the labels, by name; replaces the template's as a whole."""
    balanced_classes: bool | None = None
    """Weigh each class by rows / (classes * rows of the class), in the loss on the labels."""
    selection: Selection | None = None
    """Which epoch's weights are committed: those of the last one, or of the best one on validation."""
    patience: Patience | None = None
    """Stop after so many epochs in a row that do not improve; only with selection: Best. 0: train all epochs."""

    model_config = {"json_schema_extra": rules(BLOCK_RULE)}


class Training(Document):
    """How a student is trained."""

    epochs: PositiveInt = 3
    """Passes over the training split."""
    batch_size: PositiveInt = 32
    """Rows of one optimizer step, over all devices; `microBatchSize` is the number of rows on one device at a time."""
    learning_rate: LearningRate = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    warmup_ratio: Share = 0.0
    """Share of the steps in which the learning rate rises."""
    scheduler: Scheduler = "linear"
    """Schedule of the learning rate after the warm-up."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are clipped to this norm; 0: not clipped."""
    precision: Precision = "float32"
    """float32, or bfloat16 autocast."""
    tf32: bool = False
    """Whether float32 matrix products on a GPU may use TF32: faster, with a mantissa of 10 bits. With bfloat16 only the
    head has such products."""
    seed: Seed = 42
    """Seed of data order, dropout and new weights."""
    label_smoothing: LabelSmoothing = 0.0
    """Share of each label that is spread evenly over all classes, in the loss on the labels."""
    class_weights: ClassWeights | None = None
    """Weights of the classes in the loss on the labels, by name; a class that is not named weighs 1."""
    balanced_classes: bool = False
    """Weigh each class by rows / (classes * rows of the class), in the loss on the labels."""
    selection: Selection = "Last"
    """Which epoch's weights are committed: those of the last one, or of the best one by `task.metric` on validation; of
    equal epochs the earlier one. Test is never used for this choice."""
    patience: Patience = 0
    """Stop after so many epochs in a row that do not improve; only with selection: Best. 0: train all epochs. The
    learning rate keeps the schedule of `epochs`."""

    model_config = {"json_schema_extra": rules(BLOCK_RULE, PATIENCE_RULE)}
