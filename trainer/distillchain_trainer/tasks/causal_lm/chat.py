"""Chats as token ids by the tokenizer's template, with the tokens that the assistant says.

A template may mark them ({% generation %}). With any other, a chat is rendered up to each answer of the assistant and
up to its end: what lies between is the answer. That needs a template that renders the beginning of a chat as it renders
the whole; one that does not is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.engine.tokenizing import unchanged
from distillchain_trainer.errors import CheckpointInvalid, first_line
from distillchain_trainer.stage_warnings import StageWarnings

Messages: TypeAlias = list[dict[str, Any]]
Span: TypeAlias = tuple[int, int]
"""The characters of an answer in the rendered chat, from the first to the one after the last."""

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatRefused(ValueError):
    """A chat cannot be rendered, or the assistant's tokens cannot be found in it."""


class ChatRenderer:
    """The chat template of one tokenizer; messages call its checkpoint `name`."""

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        template = tokenizer.chat_template
        # A dict of named templates: transformers renders "default" unless tools are given.
        text = template.get("default", "") if isinstance(template, dict) else template or ""
        self._marks_answers = bool(MARKED.search(text))
        self._controls = [token for token in tokenizer.all_special_tokens if token]

    def control_token_in(self, messages: Messages) -> str | None:
        """A control token that one of the messages contains as text: the template writes such tokens itself."""
        contents = [message["content"] for message in messages]
        return next((token for token in self._controls if any(token in content for content in contents)), None)

    def tokenize(self, messages: Messages) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Token ids of a chat, and the indices of those that the assistant says.

        Raises: ChatRefused.
        """
        text, spans = self._marked(messages) if self._marks_answers else self._by_prefix(messages)
        with unchanged(self._tokenizer):
            # The template has written all control tokens.
            answer = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = np.array(answer["offset_mapping"], dtype=np.int64)[:, 0]
        said = np.zeros(len(starts), dtype=bool)
        for start, end in spans:
            # A token that begins before an answer is written by the user of the model, not by the model.
            said |= (starts >= start) & (starts < end)
        return np.asarray(answer["input_ids"], dtype=np.int32), np.flatnonzero(said)

    def _marked(self, messages: Messages) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            found: Any = render_jinja_template(
                conversations=[messages],
                chat_template=self._tokenizer.get_chat_template(),
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
            before = self._render(messages[:number], prompt=True)
            # White space after the end-of-turn token is part of the template and not of the answer.
            after = self._render(messages[: number + 1]).rstrip()
            if not (after.startswith(before) and whole.startswith(after)):
                raise ChatRefused(
                    f"the chat template of {self._name} renders message {number + 1} differently when others follow, "
                    "or without its generation prompt, so the assistant's tokens cannot be found; put {% generation %} "
                    "and {% endgeneration %} around what the assistant says in its chat_template"
                )
            spans.append((len(before), len(after)))
        return whole, spans

    def _render(self, messages: Sequence[dict[str, Any]], *, prompt: bool = False) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template may raise anything, such as for roles in an order that it refuses
            raise self._cannot_render(error) from error
        return text

    def _cannot_render(self, error: Exception) -> ChatRefused:
        return ChatRefused(
            f"the chat template of {self._name} refuses it: {first_line(error)}; correct the messages, or use a "
            "checkpoint whose template takes them"
        )


def check_template(tokenizer: Any, *, what: str, warnings: StageWarnings) -> None:
    """That a tokenizer can render chats and find answers in them. Raises: CheckpointInvalid."""
    if not tokenizer.chat_template:
        raise CheckpointInvalid(
            f"{what} has no chat template, which spec.task.dataset.messages needs; use an instruct checkpoint, or add "
            "chat_template.jinja to this one"
        )
    if not tokenizer.is_fast:
        raise CheckpointInvalid(
            f"{what} has no tokenizer.json, without which the assistant's tokens in a chat cannot be found; save it "
            "with save_pretrained where its tokenizer is a fast one"
        )
    # The digest and the stored outputs of the teacher do not know the day on which a chat was rendered.
    if "strftime_now" in str(tokenizer.chat_template):
        warnings.add(
            f"{what}: its chat template writes today's date (strftime_now), so the same chats differ from day to day, "
            "and a stage that is resumed or repeated on another day learns from other prompts; write a fixed date into "
            "chat_template.jinja"
        )
