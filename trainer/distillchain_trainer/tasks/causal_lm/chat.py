"""Chats as token ids by the tokenizer's template, with the tokens that the assistant says.

A template may mark them ({% generation %}). With any other, a chat is rendered up to each answer of the assistant and
up to its end: what lies between is the answer. Some templates render an answer differently when messages follow; its
end is then found by rendering the chat with another text in its place. A template that begins an answer otherwise than
its generation prompt is refused. The same chat gives the same tokens on every day: a template that writes the date gets
a fixed one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.engine.encoding.tokenizing import unchanged
from distillchain_trainer.errors import CheckpointInvalid, first_line
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.causal_lm.quoted_tokens import QuotedTokens

Messages: TypeAlias = list[dict[str, Any]]
STAND_IN = "\U000ffffe"
"""Takes the place of an answer: a noncharacter, which no text should have."""
Span: TypeAlias = tuple[int, int]
"""The characters of an answer in the rendered chat, from the first to the one after the last."""

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")

# 26 July 2024, the date that Llama 3's template writes where it cannot ask for today's.
FIXED_DATE = {
    "%d": "26", "%-d": "26", "%e": "26", "%m": "07", "%-m": "7", "%b": "Jul", "%B": "July", "%y": "24", "%Y": "2024",
    "%a": "Fri", "%A": "Friday", "%j": "208", "%F": "2024-07-26", "%H": "12", "%I": "12", "%M": "00", "%S": "00",
    "%p": "PM", "%T": "12:00:00", "%X": "12:00:00", "%x": "07/26/24", "%c": "Fri Jul 26 12:00:00 2024",
}  # fmt: skip


class ChatRefused(ValueError):
    """A chat cannot be rendered, or the assistant's tokens cannot be found in it."""


class ChatRenderer:
    """The chat template of one tokenizer; messages call its checkpoint `name`."""

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._template = with_fixed_date(tokenizer.get_chat_template())
        self._marks_answers = bool(MARKED.search(self._template))
        self._quoted = QuotedTokens(tokenizer)

    def tokenize(self, messages: Messages) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Token ids of a chat, and the indices of those that the assistant says.

        Raises: ChatRefused.
        """
        has_quoted = any(self._quoted.are_in(text) for text in _texts(messages))
        if has_quoted:
            messages = [_with_texts(message, self._quoted.marked) for message in messages]
        text, spans = self._marked(messages) if self._marks_answers else self._by_prefix(messages)
        if has_quoted:
            ids, offsets = self._encode_quoted(text)
            spans = [(self._quoted.place(text, start), self._quoted.place(text, end)) for start, end in spans]
        else:
            ids, offsets = self._encode(text)
        starts, ends = offsets.T
        said = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            # Also a first word that is one token with the space before it, which the template writes.
            said |= ((starts >= start) | ((starts == start - 1) & (ends > start))) & (starts < end)
        return ids, np.flatnonzero(said)

    def _encode(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        with unchanged(self._tokenizer):
            # The template has written all control tokens.
            answer = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return np.asarray(answer["input_ids"], dtype=np.int32), np.array(answer["offset_mapping"], dtype=np.int64)

    def _encode_quoted(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        try:
            return self._quoted.encode(text)
        except ValueError as error:
            raise ChatRefused(
                f"a message has the text {error}, which the tokenizer of {self._name} takes for its control token; "
                "remove it from the message"
            ) from error

    def _marked(self, messages: Messages) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            found: Any = render_jinja_template(
                conversations=[messages],
                chat_template=self._template,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # a template may raise anything
            raise self._cannot_render(error) from error
        texts, spans = found
        return texts[0], [(start, end) for start, end in spans[0]]

    def _by_prefix(self, messages: Messages) -> tuple[str, list[Span]]:
        whole = self._render(messages)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            # White space after the end-of-turn token is part of the template and not of the answer.
            after = self._render(messages[: number + 1]).rstrip()
            before = self._render(messages[:number], prompt=True) if number else self._before_first(message, after)
            end = len(after) if whole.startswith(after) else self._end_within(whole, messages, number)
            if not whole.startswith(before) or end is None or end < len(before):
                raise ChatRefused(
                    f"the chat template of {self._name} renders message {number + 1} differently when others follow, "
                    "or without its generation prompt, so the assistant's tokens cannot be found; put {% generation %} "
                    "and {% endgeneration %} around what the assistant says in its chat_template"
                )
            spans.append((len(before), end))
        return whole, spans

    def _end_within(self, whole: str, messages: Messages, number: int) -> int | None:
        """The end of an answer, with the control token that follows it; None if the template does not show it.

        For templates such as Phi-3's, which ends every chat with one more token, and Qwen3's, which leaves the
        thoughts of earlier answers out.
        """
        # Without further fields such as calls of tools: what a template makes of them belongs to the answer.
        alone = {"role": messages[number]["role"], "content": STAND_IN}
        try:
            _, *behind = self._render([*messages[:number], alone, *messages[number + 1 :]]).split(STAND_IN)
        except ChatRefused:  # a template may refuse the result of a tool that nobody has called
            return None
        if len(behind) != 1 or not whole.endswith(behind[0]):
            return None
        token = behind[0].lstrip()
        return len(whole) - len(token) + self._quoted.length_of_first(token)

    def _before_first(self, message: dict[str, Any], after: str) -> str:
        """What is rendered before the answer that a chat begins with: templates refuse a chat without messages.

        Raises: ChatRefused.
        """
        asked = [{"role": "user", "content": "a"}]
        prompt = self._render(asked, prompt=True).removeprefix(self._render(asked))
        # Before the answer, a template may write a system message of its own.
        for found in re.finditer(re.escape(prompt), after) if prompt else ():
            if after[found.end() :].startswith(message["content"].strip()):
                return after[: found.end()]
        raise ChatRefused(
            f"the chat begins with an answer of the assistant, and the chat template of {self._name} does not show "
            "where it begins; begin the chat with another role, or put {% generation %} and {% endgeneration %} around "
            "what the assistant says in its chat_template"
        )

    def _render(self, messages: Sequence[dict[str, Any]], *, prompt: bool = False) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template may raise anything, such as for roles in an order that it refuses
            raise self._cannot_render(error) from error
        return text

    def _cannot_render(self, error: Exception) -> ChatRefused:
        return ChatRefused(
            f"the chat template of {self._name} refuses it: {first_line(error)}; correct the messages, or use a "
            "checkpoint whose template takes them"
        )


def _texts(value: Any) -> Iterator[str]:
    """Every text in messages: a template may write fields other than `content` too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _with_texts(inner, change) for key, inner in value.items()}
    return [_with_texts(inner, change) for inner in value] if isinstance(value, list) else value


def check_template(tokenizer: Any, *, what: str, warnings: StageWarnings) -> None:
    """That a tokenizer can render chats and find answers in them. Raises: CheckpointInvalid."""
    template = tokenizer.chat_template
    # Several templates are a dict, of which the one named default is used.
    if not template or (isinstance(template, dict) and "default" not in template):
        named = f" named default (only {', '.join(sorted(template))})" if template else ""
        raise CheckpointInvalid(
            f"{what} has no chat template{named}, which spec.task.dataset.messages needs; use an instruct checkpoint, "
            "or add chat_template.jinja to this one"
        )
    if not tokenizer.is_fast:
        raise CheckpointInvalid(
            f"{what} has no tokenizer.json, which is needed to find the assistant's tokens in a chat; load it as a "
            "fast tokenizer and save it with save_pretrained"
        )
    last = _last_of_answer(tokenizer)
    if last is not None and last not in _end_ids(tokenizer):
        warnings.add(
            f"{what}: its chat template writes no special token at the end of what the assistant says, so the student "
            "does not learn to stop; add the end token to chat_template.jinja, within {% generation %} if it has that"
        )


def with_fixed_date(template: str) -> str:
    """The template with a date of its own in place of today's: digests and stored outputs do not know the day."""
    if "strftime_now" not in template:
        return template
    # A macro of this name hides the function of transformers, which takes no other one.
    replaced = "".join(f" | replace({name!r}, {text!r})" for name, text in FIXED_DATE.items())
    # Jinja removes the line end after a block, so the template begins at the start of a line as before.
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{template}"


def end_of_answers(tokenizer: Any) -> int | None:
    """The special token that ends what the assistant says; None if the template writes none."""
    last = _last_of_answer(tokenizer)
    return last if last in _end_ids(tokenizer) else None


def _last_of_answer(tokenizer: Any) -> int | None:
    """The last token that is learned of an answer; None if there is none."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        ids, said = ChatRenderer(tokenizer, name="").tokenize(chat)
    except ChatRefused:  # the rows of the data get this message, with their place
        return None
    return int(ids[said[-1]]) if len(said) else None


def _end_ids(tokenizer: Any) -> set[int]:
    marked = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    # A word that the tokenizer does not know is no end; but GPT-2's unknown token is its end token too.
    return ({*tokenizer.all_special_ids, *marked} - {tokenizer.unk_token_id}) | {tokenizer.eos_token_id}
