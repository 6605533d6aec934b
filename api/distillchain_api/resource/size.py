"""Bounds that let every work order fit into an environment variable, in Python and as rules of the API server.

The fields that can be large share one budget. It is a part of the variable's 128 KiB: the rest is for all other fields,
each of which is short. tests/api/test_size.py computes the longest work order from the types.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distillchain_api.cel import cel, fault
from distillchain_api.resource.evidence import Evidence
from distillchain_api.resource.label_term import LabelFields
from distillchain_api.resource.lora import Lora
from distillchain_api.task import Task
from distillchain_api.transfer import transfer_of

LARGE_FIELDS_BYTES = 60_000
"""JSON of all fields that can be large, for one work order."""
SEPARATORS = 3  # two quotes and a comma
WEIGHT_BYTES = 25  # of the longest number, and a colon
COMPARED_BYTES = 180  # of one ComparedStudent: its digest has 64 characters, its name 45 at most

# A config has lists of numbers and small objects, such as rope_scaling; a config in a config has one level more.
CONFIG_LEVELS = 4
CONFIG_TEXT_CHARS = 1024
CONFIG_ITEMS = 512
CONFIG_FIELDS = 128


def large_fields(
    task: Task, weights: Iterable[LabelFields], loras: Sequence[Lora | None], evidence: Evidence | None
) -> Mapping[str, int]:
    """Bytes of JSON by field, as LARGE_FIELDS_RULE counts them.

    Args:
        weights: of template, `fineTune` and stages.
        loras: of all stages.
    """
    labels = _bytes_of(task.class_names)
    transfer = transfer_of(task)
    targets = [_bytes_of(lora.target_modules or []) if lora else 0 for lora in loras]
    weighed = any(fields.class_weights is not None for fields in weights)
    compared = len(loras) if evidence and evidence.stages == "Every" else 1
    students = evidence.seeds * (len(evidence.controls) + 1) * compared if evidence else 0
    return {
        # Weights name labels, so their size follows from that of the labels.
        "task.labels": labels + (labels + WEIGHT_BYTES * len(task.class_names) if weighed else 0),
        "task.transfer.files": _bytes_of(transfer.files if transfer else []),
        f"stages[{targets.index(max(targets))}].student.lora.targetModules": max(targets),
        "evidence": COMPARED_BYTES * students,
    }


def check_large_fields(sizes: Mapping[str, int]) -> None:
    """Raises: a fault of the largest field when all together are too large."""
    if (total := sum(sizes.values())) > LARGE_FIELDS_BYTES:
        field = max(sizes, key=sizes.__getitem__)
        raise fault(field, f"takes {sizes[field]} bytes as JSON, and {total} with other large fields; {TOO_LARGE}")


TOO_LARGE = (
    f"expected {LARGE_FIELDS_BYTES} at most for task.labels (twice with classWeights), transfer.files, "
    "lora.targetModules and evidence together, because an environment variable holds them; shorten them"
)


def _bytes_of(names: Sequence[str]) -> int:
    return sum(len(json.dumps(name, ensure_ascii=False).encode()) + 1 for name in names)


def _cel_bytes(names: str) -> str:
    """`_bytes_of` in CEL. The names have no control characters, so these two characters alone are escaped."""
    escaped = r"""name.replace('\\', '\\\\').replace('"', '\\"')"""
    return f"{names}.map(name, bytes({escaped}).size() + {SEPARATORS}).sum()"


def _large_fields_rule() -> dict[str, str]:
    weighed = (
        "((has(self.template) && has(self.template.training) && has(self.template.training.classWeights)) || "
        "(has(self.teacher.fineTune) && has(self.teacher.fineTune.classWeights)) || "
        "self.stages.exists(stage, has(stage.training) && has(stage.training.classWeights)))"
    )
    labels = (
        f"(has(self.task.labels) ? {_cel_bytes('self.task.labels')} * ({weighed} ? 2 : 1) + "
        f"({weighed} ? {WEIGHT_BYTES} * self.task.labels.size() : 0) : 0)"
    )
    files = f"(has(self.task.transfer) ? {_cel_bytes('self.task.transfer.files')} : 0)"
    lora = "stage.student.lora"
    targets = (
        f"self.stages.map(stage, has({lora}) && has({lora}.targetModules) ? {_cel_bytes(f'{lora}.targetModules')} : 0)"
        ".max()"
    )
    evidence = (
        f"(has(self.evidence) ? {COMPARED_BYTES} * self.evidence.seeds * (self.evidence.controls.size() + 1) * "
        "(self.evidence.stages == 'Every' ? self.stages.size() : 1) : 0)"
    )
    rule = f"{labels} + {files} + {targets} + {evidence} <= {LARGE_FIELDS_BYTES}"
    return cel(rule, TOO_LARGE)


LARGE_FIELDS_RULE = _large_fields_rule()
"""For ChainSpec."""


def config_schema(levels: int = CONFIG_LEVELS) -> dict[str, Any]:
    """Any JSON value of so many levels, without long texts and lists. The API server cannot bound names of fields."""
    deeper = levels > 1
    inner = {name: config_schema(levels - 1) for name in ("items", "additionalProperties")} if deeper else {}
    return {
        "x-kubernetes-preserve-unknown-fields": True,
        "maxLength": CONFIG_TEXT_CHARS,
        "maxItems": CONFIG_ITEMS if inner else 0,
        "maxProperties": CONFIG_FIELDS if inner else 0,
        **inner,
    }


def checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of an architecture, if it is as small as `config_schema` says. Raises: a fault of the first value."""
    # A stack of its own: a user may nest lists deeply.
    waiting: list[tuple[str, Any, int]] = [(name, value, CONFIG_LEVELS) for name, value in config.items()]
    while waiting:
        path, value, levels = waiting.pop()
        if isinstance(value, dict | list) and levels == 1 and value:
            raise fault(path, f"expected {CONFIG_LEVELS} levels of lists and mappings at most")
        if isinstance(value, str) and len(value) > CONFIG_TEXT_CHARS:
            raise fault(path, f"got {len(value)} characters, expected {CONFIG_TEXT_CHARS} at most")
        if isinstance(value, list):
            _check_count(path, len(value), CONFIG_ITEMS)
            waiting += [(f"{path}[{index}]", item, levels - 1) for index, item in enumerate(value)]
        if isinstance(value, dict):
            _check_count(path, len(value), CONFIG_FIELDS)
            waiting += [(f"{path}.{name}", item, levels - 1) for name, item in value.items()]
    return config


def _check_count(path: str, count: int, most: int) -> None:
    if count > most:
        raise fault(path, f"got {count} values, expected {most} at most")
