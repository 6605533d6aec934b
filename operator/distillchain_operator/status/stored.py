"""Reads the status that is stored with a chain, also one that another release wrote."""

from __future__ import annotations

import logging
from typing import Any

from distillchain_api.base import Record
from distillchain_api.faults import BadDocument
from distillchain_api.resource.status import ChainStatus, Condition, StageStatus
from distillchain_operator.chain_key import ChainKey

log = logging.getLogger(__name__)


def parse_status(document: dict[str, Any], key: ChainKey) -> ChainStatus:
    """The status as stored; without the parts that this release cannot read.

    Values that only a later release knows, such as a failure class, must not hide what is committed. What is left out
    loses nothing for good: trainers find committed stages in the store again.
    """
    stored = document.get("status") or {}
    try:
        return ChainStatus.parse(stored)
    except BadDocument as error:
        log.warning("part of the status cannot be read", extra={"chain": str(key), "error": str(error)})
    if not isinstance(stored, dict):
        return ChainStatus()
    readable = {
        **stored,
        "stages": _readable(stored.get("stages"), StageStatus),
        "evidence": _readable(stored.get("evidence"), StageStatus),
        "conditions": _readable(stored.get("conditions"), Condition),
    }
    return ChainStatus.parse(_without_faults(readable, ChainStatus) or {})


def _readable(items: Any, model: type[Record]) -> list[dict[str, Any]]:
    """The items of a list, without the fields that cannot be read; none of an item that needs them."""
    found = (
        (_without_faults(item, model) for item in items if isinstance(item, dict)) if isinstance(items, list) else ()
    )
    return [item for item in found if item is not None]


def _without_faults(document: dict[str, Any], model: type[Record]) -> dict[str, Any] | None:
    """The document without its faulty fields; None if it cannot be read without them either."""
    try:
        model.parse(document)
    except BadDocument as error:
        faulty = {fault.field.partition(".")[0].partition("[")[0] for fault in error.faults}
    else:
        return document
    rest = {name: value for name, value in document.items() if name not in faulty}
    try:
        model.parse(rest)
    except BadDocument:
        return None
    return rest
