"""The head of a tagger: one vector of outputs for each token. And what it needs of a tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

from distillchain_api.tasks.token_classification import TokenClassification
from distillchain_trainer.engine.encoding.encoding import Bind
from distillchain_trainer.engine.encoding.tokenizing import Texts
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.sequences.head import Head, HeadKind
from distillchain_trainer.tasks.token_classification.words import WordTokenizer

TOKEN_HEAD = HeadKind(
    AutoModelForTokenClassification,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "ForTokenClassification",
    "head that tags words",
    "tag words",
    "bert, roberta, distilbert, electra, deberta-v2, modernbert, gpt2, llama, qwen2 or bert-hash",
    per_token=True,
)


@dataclass(frozen=True)
class TaggingHead(Head):
    """The head of a TokenClassification task."""

    kind: ClassVar[HeadKind] = TOKEN_HEAD
    bind: ClassVar[Bind] = WordTokenizer

    @property
    def task_type(self) -> str:
        """See Head."""
        return "TokenClassification"

    def row_of(self, text: str) -> Texts:
        """See Head. A row is a sentence, as words."""
        return tuple(text.split())

    def prepare_tokenizer(self, tokenizer: Any, *, what: str, is_new: bool, warnings: StageWarnings) -> None:
        """See Head. A new head learns from words that begin as they do within a text, with a space."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise CheckpointInvalid(
                f"{what} is a {type(tokenizer).__name__}, which is written in Python and does not say which token "
                "belongs to which word; save it as a fast tokenizer of transformers, which has a tokenizer.json"
            )
        if is_new and not _put_spaces(tokenizer, backend):
            warnings.add(
                f"{what} cannot put a space before each word: it reads every word as if a text began there, which a "
                "pretrained model has seen less often"
            )


def tagging_head(task: TokenClassification) -> TaggingHead:
    """The head that a task needs."""
    return TaggingHead(None, "give a tag to each word", tuple(task.labels), texts=1, max_length=task.max_length)


def _put_spaces(tokenizer: Any, backend: Any) -> bool:
    """Lets a byte-level tokenizer, such as GPT-2's or RoBERTa's, put a space before each word. False if it cannot."""
    from tokenizers import pre_tokenizers

    pre = json.loads(backend.to_str())["pre_tokenizer"] or {}
    # In a sequence, each piece of a word would get a space: "don't" would become " don" and " 't".
    parts = pre.get("pretokenizers", [pre])
    without = [part for part in parts if part.get("type") == "ByteLevel" and not part["add_prefix_space"]]
    if not without:
        return True
    if parts != [pre]:
        return False
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=True, trim_offsets=pre["trim_offsets"], use_regex=pre["use_regex"]
    )
    # Some classes build their parts from this setting when they are loaded again.
    tokenizer.add_prefix_space = True
    tokenizer.init_kwargs["add_prefix_space"] = True
    return True
