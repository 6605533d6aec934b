"""Where a student starts: a checkpoint, layers of its teacher, or new weights."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, expected
from distillchain_api.resource.from_teacher import FromTeacher
from distillchain_api.resource.lora import Lora
from distillchain_api.resource.size import CONFIG_FIELDS, checked_config, config_schema
from distillchain_api.values import SourceUri, Text

Config = Annotated[
    dict[str, Any],
    Field(max_length=CONFIG_FIELDS, json_schema_extra={"additionalProperties": config_schema()}),
    AfterValidator(checked_config),
    Expect(f"a mapping of {CONFIG_FIELDS} fields at most"),
]


class Architecture(Document):
    """A model with new weights."""

    model_type: Text
    """bert-hash (in the trainer), or a model type of transformers such as bert."""
    config: Config = Field(default_factory=dict)
    """Fields of its config.json that differ from the model type's defaults; unknown ones are refused."""


LORA_WITH_NEW_WEIGHTS = "expected none with architecture, whose new weights would stay untrained; remove it"


class Student(Document):
    """Where a student starts: a checkpoint (`model`), some layers of its teacher (`fromTeacher`), or new weights
    (`architecture` with a `tokenizer`)."""

    model: SourceUri | None = None
    """Pretrained checkpoint; a head for the task is added if it has none."""
    from_teacher: FromTeacher | None = None
    """Some layers of its teacher instead, with the teacher's head and tokenizer."""
    architecture: Architecture | None = None
    """New weights instead; flagged `pretrained: false` everywhere."""
    tokenizer: SourceUri | None = None
    """Checkpoint whose tokenizer is used; required with `architecture`, otherwise the model's own by default."""
    lora: Lora | None = None

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        starts = {"model": self.model, "fromTeacher": self.from_teacher, "architecture": self.architecture}
        stated = [name for name, start in starts.items() if start is not None]
        if len(stated) != 1:
            raise fault(
                "",
                f"got {' and '.join(stated) or 'none'}, expected one of model, fromTeacher and architecture; a "
                "pretrained model is the better start",
            )
        if self.architecture and not self.tokenizer:
            raise fault("tokenizer", "missing, expected a checkpoint with a tokenizer with architecture; add it")
        if self.from_teacher and self.tokenizer:
            raise fault("tokenizer", expected(self.tokenizer, "nothing with fromTeacher", "remove it"))
        if self.architecture and self.lora:
            raise fault("lora", LORA_WITH_NEW_WEIGHTS)
        return self

    model_config = {
        "json_schema_extra": rules(
            cel(
                "[has(self.model), has(self.fromTeacher), has(self.architecture)].exists_one(stated, stated)",
                "expected one of model, fromTeacher and architecture",
            ),
            cel("!has(self.architecture) || has(self.tokenizer)", "architecture needs a tokenizer"),
            cel(
                "!has(self.fromTeacher) || !has(self.tokenizer)",
                "tokenizer: expected nothing with fromTeacher; remove it",
                fieldPath=".tokenizer",
            ),
            cel("!has(self.architecture) || !has(self.lora)", f"lora: {LORA_WITH_NEW_WEIGHTS}", fieldPath=".lora"),
        )
    }
