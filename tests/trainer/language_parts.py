"""Small language models of the tests: a random Llama with a tokenizer of the words of our sentences."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillchain_api.tasks.causal_lm import CausalLM
from distillchain_trainer.stage_warnings import StageWarnings
from smollm2.texts import as_text, write_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from distillchain_trainer.tasks.causal_lm.adapter import CausalLMAdapter

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
OTHERS = ["The", "river", "runs", "slowly", "past", "old", "mill", "and", "turns", "east"]


def in_order(rows: int, seed: int) -> list[str]:
    """Days or months in their order, from any of them on: a small model learns what comes next."""
    dice, found = random.Random(seed), []
    for _ in range(rows):
        names, start = dice.choice((DAYS, MONTHS)), dice.randrange(12)
        found.append(" ".join(names[(start + step) % len(names)] for step in range(dice.randint(5, 14))))
    return found


TRAIN, HELD_OUT = in_order(160, 1), in_order(24, 2)
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} : {{ message['content'] }} <|im_end|> \n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant : {% endif %}"
)
SMALL_LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
FORMS: dict[str, dict[str, Any]] = {
    "text": {"text": ["text"]},
    "completion": {"prompt": "prompt", "completion": "completion"},
    "messages": {"messages": "messages"},
}


def save_words(
    folder: Path, *, template: str | None = TEMPLATE, more_words: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A real fast tokenizer of the sentences' words, which puts <s> before a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*DAYS, *MONTHS, *OTHERS]
    vocabulary = [
        "<unk>",
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
        ":",
        "user",
        "assistant",
        "Go",
        "on:",
        *words,
        *more_words,
    ]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_llama(folder: Path, *, seed: int = 0, padding_rows: int = 0, **words: Any) -> Path:
    """A small random Llama; `padding_rows` are embeddings beyond the vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = save_words(folder, **words)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + padding_rows,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        **SMALL_LLAMA,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_sentences(folder: Path, row_of: Callable[[str], dict[str, Any]] = as_text) -> Path:
    """train.jsonl and dev.jsonl."""
    write_jsonl(folder / "train.jsonl", [row_of(sentence) for sentence in TRAIN])
    write_jsonl(folder / "dev.jsonl", [row_of(sentence) for sentence in HELD_OUT])
    return folder


def a_task(folder: Path, form: str = "text", **fields: Any) -> CausalLM:
    return CausalLM.parse(json.dumps(a_task_document(folder, form, **fields)))


def a_task_document(folder: Path, form: str = "text", **fields: Any) -> dict[str, Any]:
    return {
        "type": "CausalLM",
        "dataset": {
            "uri": f"file://{folder}",
            "splits": {"train": "train.jsonl", "validation": "dev.jsonl"},
            **FORMS[form],
        },
        "maxLength": 32,
        **fields,
    }


def an_adapter(task: CausalLM, warnings: StageWarnings | None = None) -> CausalLMAdapter:
    from distillchain_trainer.tasks import adapter_for
    from distillchain_trainer.tasks.causal_lm.adapter import CausalLMAdapter

    found = adapter_for(task, warnings or StageWarnings())
    assert isinstance(found, CausalLMAdapter)
    return found


def a_chain_document(root: Path, *, task: dict[str, Any], stages: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "distillchain.io/v1alpha1",
        "kind": "DistillationChain",
        "metadata": {"name": "llm"},
        "spec": {
            "task": task,
            "storage": {"uri": f"file://{root}/store"},
            "teacher": {"model": f"file://{root}/teacher"},
            "stages": stages,
            **spec,
        },
    }
