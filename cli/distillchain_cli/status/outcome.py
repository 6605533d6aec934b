"""Whether a chain has ended, and how: it sets the exit code of `status -w`, and `logs -f` stops at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distillchain_api.resource.status import ChainStatus
from distillchain_api.retry_request import open_retry
from distillchain_cli.api_server.chains import outdated_status_warning, status_of, true_condition
from distillchain_cli.output.printing import troubleshooting_hint
from distillchain_cli.status.view import failure_of
from distillchain_operator.status.chain_status import INVALID_SPEC


@dataclass(frozen=True)
class Outcome:
    """How a chain ended.

    Attributes:
        lines: the outcome as the user reads it.
        final: False: the chain is stalled, and continues by itself once the cause is gone.
    """

    succeeded: bool
    lines: tuple[str, ...]
    final: bool = True


def outcome_of(status: ChainStatus) -> Outcome | None:
    """The outcome in a status; None while the chain runs or is suspended."""
    if status.phase == "Succeeded":
        where = status.result.checkpoint if status.result else status.message
        return Outcome(True, (f"succeeded: {where}",))
    stalled = true_condition(status, "Stalled")
    if stalled is None:
        return None
    # Stalled but not failed: for example an image that cannot be pulled, which may be corrected at any time.
    final = status.phase == "Failed"
    failure_class = failure_of(status)
    sentence = f"{'failed' if final else 'stalled'}: {status.message or stalled.message}"
    return Outcome(False, (sentence, *([troubleshooting_hint(failure_class)] if failure_class else [])), final)


def current_outcome(chain: dict[str, Any]) -> Outcome | None:
    """As `outcome_of`, but None while the operator has not yet seen an edit or a retry."""
    status = status_of(chain)
    if outdated_status_warning(chain, status):
        return None
    stalled = true_condition(status, "Stalled")
    # The operator handles a retry once the spec is valid, so a wait for the retry would not end before an edit.
    is_invalid = stalled is not None and stalled.reason == INVALID_SPEC
    is_retried = bool(open_retry(chain["metadata"].get("annotations"), status.handled_retry).stages)
    return None if is_retried and not is_invalid else outcome_of(status)
