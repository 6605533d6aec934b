"""The bases of every document: frozen, camelCase outside, snake_case inside; unknown fields are refused or ignored."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from distillchain_api.faults import BadDocument
from distillchain_api.pydantic_errors import faults_of

MAX_INT64 = 2**63 - 1
"""The largest integer that the API server stores. It refuses a whole status with a larger one."""


class Document(BaseModel):
    """A frozen value that reads and writes JSON with camelCase names.

    Strict: `"5"` is not 5 and `no` is not the label "no", here as in the API server.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    @classmethod
    def parse(
        cls, document: str | bytes | dict[str, Any], *, source: str = "", context: dict[str, Any] | None = None
    ) -> Self:
        """A value from JSON text or an already decoded mapping.

        Args:
            source: where the document came from.
            context: what validators should know about its origin.
        Raises: BadDocument with every fault of the document.
        """
        # Always by JSON: in strict mode pydantic accepts from JSON what it refuses from Python, such as text for an
        # enum.
        text = document if isinstance(document, str | bytes) else json.dumps(document, default=str)
        try:
            # by_name: the API server knows maxLength alone, so max_length is an unknown field here too.
            return cls.model_validate_json(text, by_alias=True, by_name=False, context=context)
        except ValidationError as error:
            raise BadDocument(source, faults_of(error, cls)) from error

    def to_document(self) -> dict[str, Any]:
        """The value as plain JSON data: camelCase, no nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_json(self) -> str:
        """One line of compact JSON."""
        return json.dumps(self.to_document(), separators=(",", ":"), ensure_ascii=False)


class Record(Document):
    """What is kept in a store or status, perhaps by another release: fields that this one does not know are ignored."""

    model_config = ConfigDict(extra="ignore")
