"""A user's request to run stages again: an annotation of the chain, which `distillchain retry` writes. Pure.

The operator handles each value once and records it in `status.handledRetry`. So nothing else tries a stage again, such
as the removal of its Job or a restart of the operator. It is no field of the spec, because GitOps controllers undo
changes of the spec.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

RETRY_ANNOTATION = "distillchain.io/retry"
AGAIN = "again:"
"""Before the names: stages that are committed run again too."""


@dataclass(frozen=True)
class RetryRequest:
    """What to try again.

    Attributes:
        stages: names of stages, or of vertices beside the chain.
        token: makes two requests for the same stages different, such as the time.
        committed_too: committed stages run again as well. Their trainers find the commit in the store, unless it was
            discarded before.
    """

    stages: frozenset[str]
    token: str
    committed_too: bool = False

    def __str__(self) -> str:
        """The annotation's value: `tiny,micro@2026-01-01T12:00:00Z`."""
        return f"{AGAIN if self.committed_too else ''}{','.join(sorted(self.stages))}@{self.token}"


def annotated_retry(annotations: Mapping[str, Any] | None) -> str:
    """The value of the annotation; empty without one."""
    return str((annotations or {}).get(RETRY_ANNOTATION) or "")


def parse_retry(value: str) -> RetryRequest:
    """The request in the value of the annotation. A name that no stage has asks for nothing."""
    names, _, token = value.removeprefix(AGAIN).partition("@")
    stages = frozenset(filter(None, (name.strip() for name in names.split(","))))
    return RetryRequest(stages, token, committed_too=value.startswith(AGAIN))


def open_retry(annotations: Mapping[str, Any] | None, handled: str | None) -> RetryRequest:
    """The request that the operator has not handled yet; without stages if there is none."""
    value = annotated_retry(annotations)
    return parse_retry("" if value == (handled or "") else value)


def new_retry(stages: Collection[str], *, token: str, committed_too: bool = False) -> dict[str, str]:
    """The annotation that asks to run these stages again."""
    return {RETRY_ANNOTATION: str(RetryRequest(frozenset(stages), token, committed_too))}
