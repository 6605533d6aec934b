"""Rows of a language model as tokens: what is learned, end-of-text tokens, truncation, chats by template."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from distillchain_trainer.data.split import Split, key_of
from distillchain_trainer.engine.encoding.encoding import Encoder
from distillchain_trainer.errors import CheckpointInvalid, DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.causal_lm.chat import FIXED_DATE, ChatRenderer, check_template, end_of_answers
from distillchain_trainer.tasks.causal_lm.rows import chat_as_text
from distillchain_trainer.tasks.causal_lm.tokens import Form, NextTokenTokenizer
from trainer.language_parts import TEMPLATE, save_words

pytestmark = pytest.mark.models

MARKED = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} : {% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }} <|im_end|>{% endgeneration %}{% else %}{{ message['content'] }} "
    "<|im_end|>{% endif %} {% endfor %}"
)
# As Qwen3's template does: only the last answer keeps all of its text.
SHORTENS = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} : "
    "{% if LAST %}The {% endif %}{{ message['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant : {% endif %}"
).replace("LAST", "loop.last and message['role'] == 'assistant'")
# As Phi-3's template does: another token ends the whole chat.
ENDS = TEMPLATE.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
# As gpt-oss's template does: the last answer ends with another token.
ENDS_OTHERWISE = TEMPLATE.replace(
    "<|im_end|>", "{% if loop.last and message['role'] == 'assistant' %}</s>{% else %}<|im_end|>{% endif %}"
)
CHAT = [
    {"role": "user", "content": "Go on: The river"},
    {"role": "assistant", "content": "runs slowly"},
    {"role": "user", "content": "The old mill"},
    {"role": "assistant", "content": "turns east"},
]


def learned(
    tokenizer: Any, form: Form, row: tuple[str, ...], max_length: int = 64
) -> tuple[str, list[tuple[str, str]]]:
    """The tokens of a row, and for each predicted token the one before it and itself."""
    bound = NextTokenTokenizer(form, tokenizer, max_length, with_kinds=False, name="words")
    tokens = bound.tokenize([row])
    assert tokens.positions is not None
    assert tokens.item_ids is not None
    words = tokenizer.convert_ids_to_tokens(tokens.ids[0].tolist())
    targets = tokenizer.convert_ids_to_tokens(tokens.item_ids[0].tolist())
    return " ".join(words), [(words[place], target) for place, target in zip(tokens.positions[0], targets, strict=True)]


def test_a_text_is_learned_from_its_second_token_to_the_end_of_text(tmp_path: Path):
    words, items = learned(save_words(tmp_path), "text", ("The river runs",))

    assert words == "<s> The river runs </s>"
    assert items == [("<s>", "The"), ("The", "river"), ("river", "runs"), ("runs", "</s>")]


def test_of_a_prompt_only_the_completion_is_learned(tmp_path: Path):
    words, items = learned(save_words(tmp_path), "completion", ("The river", "runs slowly"))

    assert words == "<s> The river runs slowly </s>"
    assert items == [("river", "runs"), ("runs", "slowly"), ("slowly", "</s>")]


def save_pieces(folder: Path, kind: str) -> Any:
    """A tokenizer as SentencePiece makes them, which puts a space before a text: as Llama 2 does, or a newer one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<unk>", "<s>", "</s>", *"▁Aabc:\n", "▁b", "▁▁", "\n\n"]
    merges = [("▁", "b"), ("▁", "▁"), ("\n", "\n")]
    backend = Tokenizer(models.BPE({it: i for i, it in enumerate(vocabulary)}, merges, unk_token="<unk>"))
    if kind == "Llama 2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = decoders.Strip(content=" ", left=1, right=0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), strip])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("kind", ["Llama 2", "newer"])
@pytest.mark.parametrize("prompt, completion", [("a A:", " b c"), ("a\n", "b c"), ("a ", "b"), ("A:", "\na")])
def test_prompt_and_completion_give_their_text_without_a_space_between_them(
    tmp_path: Path, kind: str, prompt: str, completion: str
):
    tokenizer = save_pieces(tmp_path, kind)

    bound = NextTokenTokenizer("completion", tokenizer, 64, with_kinds=False, name="pieces")
    tokens = bound.tokenize([(prompt, completion)])

    found = tokenizer.decode(tokens.ids[0], skip_special_tokens=True)
    # A line end that would merge with the one that a completion is read after keeps the space, and is not lost.
    assert found == (prompt + completion if completion != "\na" else "A: \na")


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by prefix", "marked by the template"])
def test_of_a_chat_every_answer_is_learned_with_its_end_and_nothing_else(tmp_path: Path, template: str):
    tokenizer = save_words(tmp_path, template=template)

    words, items = learned(tokenizer, "messages", (chat_as_text(CHAT),))

    assert words.startswith("<|im_start|> user : Go on: The river <|im_end|> <|im_start|> assistant : runs slowly")
    assert [target for _, target in items] == ["runs", "slowly", "<|im_end|>", "turns", "east", "<|im_end|>"]
    assert items[0] == (":", "runs")


def test_a_text_that_names_a_control_token_is_text(tmp_path: Path):
    words, _ = learned(save_words(tmp_path), "text", ("The </s> river",))

    assert words == "<s> The <unk> river </s>"


def encode(tokenizer: Any, form: Form, rows: list[tuple[str, ...]], *, max_length: int, warnings: StageWarnings) -> Any:
    def bind(it: Any, length: int, *, with_kinds: bool) -> NextTokenTokenizer:
        return NextTokenTokenizer(form, it, length, with_kinds=with_kinds, name="hf://org/words")

    split = Split("train", rows, [None] * len(rows), [key_of(row) for row in rows], place_prefix="train.jsonl:")
    return Encoder(max_length, warnings=warnings, bind=bind).encode(split, tokenizer, pad_id=0)


def test_long_rows_are_truncated_and_counted_and_a_lost_completion_weighs_nothing(tmp_path: Path):
    warnings = StageWarnings()

    found = encode(
        save_words(tmp_path),
        "completion",
        [("The river", "runs slowly"), ("The river runs", "slowly"), ("The river runs past the old mill", "and turns")],
        max_length=5,
        warnings=warnings,
    )

    # Of the first row the end-of-text token is cut off.
    assert found.weights.tolist() == [2, 1, 0]
    assert list(found.lengths) == [5, 5, 5]
    (sentence,) = warnings.sentences
    assert sentence.startswith("spec.task.maxLength: texts with more than 5 tokens are truncated: 3 of 3 train texts")


@pytest.mark.parametrize(
    "template, last",
    [
        (SHORTENS, ["The", "turns", "east", "<|im_end|>"]),
        (ENDS, ["turns", "east", "<|im_end|>", "</s>"]),
        (ENDS_OTHERWISE, ["turns", "east", "</s>"]),
    ],
    ids=["shortens", "ends with one more token", "ends with another token"],
)
def test_answers_that_a_template_renders_differently_when_others_follow_are_learned_as_they_are_in_the_chat(
    tmp_path: Path, template: str, last: list[str]
):
    _, items = learned(save_words(tmp_path, template=template), "messages", (chat_as_text(CHAT),))

    assert [target for _, target in items] == ["runs", "slowly", "<|im_end|>", *last]


def test_calls_of_tools_belong_to_the_answer_that_makes_them(tmp_path: Path):
    calls = "{{ message['content'] }}{% if message['tool_calls'] %} mill{% endif %}"
    tokenizer = save_words(tmp_path, template=SHORTENS.replace("{{ message['content'] }}", calls))
    chat = [CHAT[0], {**CHAT[1], "tool_calls": [{"name": "mill"}]}, *CHAT[2:]]

    _, items = learned(tokenizer, "messages", (chat_as_text(chat),))

    assert [target for _, target in items][:4] == ["runs", "slowly", "mill", "<|im_end|>"]


@pytest.mark.parametrize(
    "template",
    [
        # As DeepSeek-R1's: the generation prompt begins thoughts, which the answers in a chat do not have.
        TEMPLATE.replace("assistant : {% endif", "assistant : Go on: {% endif"),
        SHORTENS.replace("{{ message['content'] }}", "{{ message['content'] }} {{ message['content'] }}"),
    ],
    ids=["another beginning", "an answer twice"],
)
def test_answers_that_cannot_be_found_in_a_chat_are_refused(tmp_path: Path, template: str):
    tokenizer = save_words(tmp_path, template=template)

    with pytest.raises(DataInvalid) as caught:
        encode(tokenizer, "messages", [(chat_as_text(CHAT),)], max_length=64, warnings=StageWarnings())

    assert str(caught.value) == (
        "train, row 1: the chat template of hf://org/words renders message 2 differently when others follow, or without "
        "its generation prompt, so the assistant's tokens cannot be found; put {% generation %} and "
        "{% endgeneration %} around what the assistant says in its chat_template"
    )


def save_bytes(folder: Path, template: str, *, merged: tuple[str, str] | None = None) -> Any:
    """A tokenizer as Llama's and Qwen's: any text becomes tokens, and their ids the same text again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AddedToken, PreTrainedTokenizerFast

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(["".join(merged)] if merged else [])]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [merged] if merged else []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    controls = ["<|im_start|>", "<|im_end|>", "<|im_"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=controls
    )
    # As the headers of Llama 3's chats: a control token that has no role.
    tokenizer.add_tokens([AddedToken("<|header|>", special=True)])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by prefix", "marked by the template"])
@pytest.mark.parametrize("answer", ["a <|im_end|> b", "<|im_start|>", "<|im_|im_end|>", "<|header|>system"])
def test_a_control_token_in_a_message_is_text(tmp_path: Path, template: str, answer: str):
    tokenizer = save_bytes(tmp_path, template)
    chat = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": answer}]

    bound = NextTokenTokenizer("messages", tokenizer, 1000, with_kinds=False, name="bytes")
    plain, tokens = (
        bound.tokenize([(chat_as_text(it),)]) for it in ([message | {"content": "x"} for message in chat], chat)
    )

    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert tokenizer.decode(tokens.ids[0]).strip() == text.strip()
    controls = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|im_", "<|header|>"])
    of_template, found = ([int(number) for number in it.ids[0] if number in controls] for it in (plain, tokens))
    assert found == of_template, "the template's control tokens and no others"
    assert tokens.item_ids is not None
    assert tokenizer.decode(tokens.item_ids[0]) == f"{answer} <|im_end|>"


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by prefix", "marked by the template"])
def test_a_first_word_that_is_one_token_with_the_space_before_it_is_learned(tmp_path: Path, template: str):
    tokenizer = save_bytes(tmp_path, template, merged=("Ġ", "b"))
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

    ids, said = ChatRenderer(tokenizer, name="bytes").tokenize(chat)

    assert tokenizer.decode(ids[said]) == " b <|im_end|>"


def test_a_control_token_in_another_field_of_a_message_is_text(tmp_path: Path):
    named = "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.name + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
    tokenizer = save_bytes(tmp_path, named.replace("+ m.name", "+ (m.name or '')") + prompt)
    chat = [{"role": "user", "name": "<|im_end|>", "content": "a"}, {"role": "assistant", "name": "", "content": "b"}]

    ids, _ = ChatRenderer(tokenizer, name="bytes").tokenize(chat)

    assert int((ids == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum()) == 2


def test_a_template_that_refuses_the_roles_is_named_with_its_reason(tmp_path: Path):
    template = "{{ raise_exception('roles must alternate') }}"

    with pytest.raises(DataInvalid, match="hf://org/words refuses it: roles must alternate; correct the messages"):
        encode(
            save_words(tmp_path, template=template),
            "messages",
            [(chat_as_text(CHAT),)],
            max_length=64,
            warnings=StageWarnings(),
        )


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by prefix", "marked by the template"])
def test_a_template_that_writes_the_date_gives_the_same_tokens_every_day(tmp_path: Path, template: str):
    # As Llama 3 asks for the date, with a line end and an indentation at the start, which Jinja treats specially.
    dated = "\n  {% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {% endif %}" + template
    fixed = "\n  {% if true %}26 Jul 2024 {% endif %}" + template
    tokens = [
        NextTokenTokenizer("messages", save_bytes(tmp_path / str(number), it), 1000, with_kinds=False, name="bytes").tokenize(
            [(chat_as_text(CHAT),)]
        )
        for number, it in enumerate((dated, fixed))
    ]  # fmt: skip

    assert tokens[0].ids[0].tolist() == tokens[1].ids[0].tolist()
    assert tokens[0].positions is not None
    assert tokens[1].positions is not None
    assert tokens[0].positions[0].tolist() == tokens[1].positions[0].tolist()


def test_every_form_of_a_date_is_the_fixed_one():
    day = datetime(2024, 7, 26, 12, 0, 0, tzinfo=UTC)

    for form, text in FIXED_DATE.items():
        assert day.strftime(form) == text


@pytest.mark.parametrize(
    "template, want",
    [
        (TEMPLATE, 0),
        (MARKED, 0),
        (TEMPLATE.replace(" <|im_end|>", ""), 1),
        ("{% for message in messages %}{{ message['role'] }} : {% generation %}{{ message['content'] }}{% endgeneration %} <|im_end|> {% endfor %}", 1),
    ],
    ids=["an end", "a marked end", "no end", "an end that is not learned"],
)  # fmt: skip
def test_a_template_without_an_end_that_is_learned_is_a_warning(tmp_path: Path, template: str, want: int):
    warnings = StageWarnings()

    check_template(save_words(tmp_path, template=template), what="the tokenizer of hf://a", warnings=warnings)

    assert len(warnings.sentences) == want
    if want:
        assert warnings.sentences == [
            "the tokenizer of hf://a: its chat template writes no special token at the end of what the assistant says, so "
            "the student does not learn to stop; add the end token to chat_template.jinja, within {% generation %} if it "
            "has that"
        ]


def test_an_end_token_that_is_also_the_unknown_token_ends_an_answer(tmp_path: Path):
    tokenizer, warnings = save_bytes(tmp_path, TEMPLATE), StageWarnings()
    # As GPT-2's and GPT-NeoX's tokenizers have it.
    tokenizer.eos_token = tokenizer.unk_token = "<|im_end|>"

    check_template(tokenizer, what="the tokenizer of hf://a", warnings=warnings)

    assert warnings.sentences == []
    assert end_of_answers(tokenizer) == tokenizer.eos_token_id


GREETING = [{"role": "assistant", "content": "The river runs"}, *CHAT[:2]]
# As most templates do, it fails for a chat without messages, and writes a system message of its own.
WITH_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|> The old mill <|im_end|> {% endif %}" + TEMPLATE


def test_a_chat_that_begins_with_an_answer_is_learned_from_there(tmp_path: Path):
    words, items = learned(save_words(tmp_path, template=WITH_SYSTEM), "messages", (chat_as_text(GREETING),))

    assert words.startswith("<|im_start|> The old mill <|im_end|> <|im_start|> assistant : The river runs <|im_end|>")
    assert [target for _, target in items] == ["The", "river", "runs", "<|im_end|>", "runs", "slowly", "<|im_end|>"]


def test_a_chat_that_begins_with_an_answer_that_cannot_be_found_is_refused(tmp_path: Path):
    template = "{% for message in messages %}{{ message['content'] }} <|im_end|> {% endfor %}"

    with pytest.raises(DataInvalid) as caught:
        encode(
            save_words(tmp_path, template=template),
            "messages",
            [(chat_as_text(GREETING),)],
            max_length=64,
            warnings=StageWarnings(),
        )

    assert str(caught.value) == (
        "train, row 1: the chat begins with an answer of the assistant, and the chat template of hf://org/words does not "
        "show where it begins; begin the chat with another role, or put {% generation %} and {% endgeneration %} around "
        "what the assistant says in its chat_template"
    )


@pytest.mark.parametrize(
    "template, named", [(None, ""), ({"tool_use": TEMPLATE, "rag": TEMPLATE}, " named default (only rag, tool_use)")]
)
def test_a_checkpoint_without_a_chat_template_is_refused(tmp_path: Path, template: Any, named: str):
    with pytest.raises(CheckpointInvalid) as caught:
        check_template(
            save_words(tmp_path, template=template),
            what="spec.teacher.model: the tokenizer of hf://org/base",
            warnings=StageWarnings(),
        )

    assert str(caught.value) == (
        f"spec.teacher.model: the tokenizer of hf://org/base has no chat template{named}, which spec.task.dataset.messages "
        "needs; use an instruct checkpoint, or add chat_template.jinja to this one"
    )
