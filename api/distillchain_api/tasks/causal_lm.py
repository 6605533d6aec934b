"""CausalLM: a language model that predicts the next token of plain texts, completions or chats."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, expected, got
from distillchain_api.metrics import Metric
from distillchain_api.task import CONFIG_RULE, UNKNOWN_FILE, Dataset, Task
from distillchain_api.values import Text

TOKEN_CROSS_ENTROPY = Metric(
    "tokenCrossEntropy", "token cross-entropy", higher_is_better=False, is_share=False, lowest=0.0
)
PERPLEXITY = Metric("perplexity", "perplexity", higher_is_better=False, is_share=False, lowest=1.0)
TEACHER_AGREEMENT = Metric("teacherAgreement", "agreement with the teacher")

CHATS_AS_TEXT = "keep chats in jsonl or parquet, not as text"
KNOWN_FILES = r"(?i)[.]((csv|tsv|jsonl)([.]gz)?|parquet)$"
FILES_OF_TEXT = r"(?i)[.](csv|tsv)([.]gz)?$"

FORMS = "exactly one of text, prompt with completion, and messages"


def _every_split(test: str, *, negated: bool = False) -> str:
    """A CEL condition that the names of all splits have to meet."""
    no = "!" if negated else ""
    train, validation, of_test = (f"{no}self.splits.{role}.{test}" for role in ("train", "validation", "test"))
    return f"({train} && {validation} && (!has(self.splits.test) || {of_test}))"


class CausalDataset(Dataset):
    """Rows of plain text, of prompts with completions, or of chats."""

    text: Annotated[list[Text], Field(min_length=1, max_length=2), Expect("a list with one column name")] | None = None
    """Column of plain texts, as a list with one name; the loss is on every token but the first."""
    prompt: Text | None = None
    """Column of prompts, which the model only reads; with `completion`."""
    completion: Text | None = None
    """Column of completions, which the model learns to write; with `prompt`."""
    messages: Text | None = None
    """Column of chats: lists of objects with `role` and `content`, rendered by the tokenizer's chat template. The loss
    is on what the assistant says."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.prompt is None) != (self.completion is None):
            missing = "completion" if self.completion is None else "prompt"
            raise fault(missing, "missing, expected the names of both columns; add it")
        stated = [name for name in ("text", "prompt", "messages") if getattr(self, name) is not None]
        if len(stated) != 1:
            raise fault("", f"got {' and '.join(stated) or 'none'}, expected {FORMS}")
        if self.text is not None and len(self.text) != 1:
            raise fault("text", expected(self.text, "one column", "for two columns write prompt and completion"))
        if self.prompt is not None and self.prompt == self.completion:
            raise fault("completion", expected(self.completion, "another column than prompt"))
        return self

    @model_validator(mode="after")
    def _files_can_hold_the_form(self) -> Self:
        """The trainer would refuse them too, but only when it reads them."""
        if self.uri.startswith("hf://"):
            return self
        for role, name in self.splits.to_document().items():
            if not re.search(KNOWN_FILES, name):
                raise fault(f"splits.{role}", f"{got(name)}, {UNKNOWN_FILE}")
            if self.messages is not None and re.search(FILES_OF_TEXT, name):
                raise fault(f"splits.{role}", f"{got(name)}, which has only text; {CHATS_AS_TEXT}")
        return self

    model_config = {
        "json_schema_extra": rules(
            CONFIG_RULE,
            cel(
                f"self.uri.startsWith('hf://') || {_every_split(f'matches({KNOWN_FILES!r})')}",
                f"splits: {UNKNOWN_FILE}",
                fieldPath=".splits",
            ),
            cel(
                "self.uri.startsWith('hf://') || !has(self.messages) || "
                + _every_split(f"matches({FILES_OF_TEXT!r})", negated=True),
                f"splits: {CHATS_AS_TEXT}",
                fieldPath=".splits",
            ),
            cel("has(self.prompt) == has(self.completion)", "expected prompt and completion, or neither of them"),
            cel(
                "(has(self.text) ? 1 : 0) + (has(self.prompt) ? 1 : 0) + (has(self.messages) ? 1 : 0) == 1",
                f"expected {FORMS}",
            ),
            cel("!has(self.text) || self.text.size() == 1", "text: expected one column", fieldPath=".text"),
            cel(
                "!has(self.prompt) || !has(self.completion) || self.prompt != self.completion",
                "completion: expected another column than prompt",
                fieldPath=".completion",
            ),
        )
    }


class CausalLM(Task):
    """The next token of a text. Teacher and student share the vocabulary, and the student gets the teacher's tokenizer.

    Of the teacher's prediction for a token, the `topK` most probable tokens are stored, and the probability of all
    others together.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (TOKEN_CROSS_ENTROPY, PERPLEXITY, TEACHER_AGREEMENT)
    outputs = "Tokens"
    output_fields = ("top_k",)

    type: Literal["CausalLM"]
    """CausalLM: the next token of plain texts, completions or chats."""
    dataset: CausalDataset
    metric: Literal["tokenCrossEntropy", "perplexity"] = "tokenCrossEntropy"
    """The metric of gates and results, lower is better. tokenCrossEntropy: mean nats per predicted token of the data.
    perplexity: e to the power of that."""
    top_k: Annotated[int, Field(ge=1, le=1024), Expect("a number of tokens from 1 to 1024")] = 64
    """How many of the teacher's most probable tokens are stored; each takes 8 bytes per predicted token."""


TASK = CausalLM
