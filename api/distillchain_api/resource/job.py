"""What a chain adds to its Jobs: labels, annotations, another controller, and a queue of Kueue.

None of it decides a result, so it is in no digest. Keys that the operator, the Job controller or Kueue give a meaning
are refused: with another value the operator would not find the Job, or the Job would run with fewer pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from distillchain_api.base import Document
from distillchain_api.cel import cel, rules
from distillchain_api.faults import Expect, Fault, error_of, expected
from distillchain_api.resource.metadata import annotation_faults, label_faults
from distillchain_api.values import DNS_SUBDOMAIN

MAX_KEYS = 32  # a bound that the API server needs to estimate the cost of the rule
MAX_QUEUE_CHARS = 63  # it becomes the value of a label
MAX_MANAGER_CHARS = 63  # as the API server has it
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PARTIAL_ADMISSION = "kueue.x-k8s.io/job-min-parallelism"
JOB_CONTROLLER = "kubernetes.io/job-controller"

_OWN_PREFIXES = ("distillchain.io/", "batch.kubernetes.io/")
_OWN_KEYS = ("app.kubernetes.io/managed-by", "controller-uid", "job-name")
_OWN = "the operator and the Job controller find Jobs by it; use a domain of your own, such as example.com/"
_REMEDIES = {
    **dict.fromkeys(_OWN_KEYS, _OWN),
    QUEUE_LABEL: "set queueName instead, so that the Job is created suspended",
    PARTIAL_ADMISSION: "a stage needs all of its pods; set parallelism.nodes instead",
}


def _reserved(values: Mapping[str, Any]) -> Iterator[Fault]:
    for key, value in values.items():
        if remedy := _OWN if key.startswith(_OWN_PREFIXES) else _REMEDIES.get(key):
            yield Fault(key, expected(value, "another key", remedy))


def _checked_labels(labels: dict[str, Any]) -> dict[str, Any]:
    if found := [*label_faults(labels), *_reserved(labels)]:
        raise error_of(found)
    return labels


def _checked_annotations(annotations: dict[str, Any]) -> dict[str, Any]:
    if found := [*annotation_faults(annotations), *_reserved(annotations)]:
        raise error_of(found)
    return annotations


def _schema() -> dict[str, Any]:
    prefixes = " || ".join(f"key.startsWith('{prefix}')" for prefix in _OWN_PREFIXES)
    message = (
        f"expected keys of your own; {', '.join((*_OWN_PREFIXES, *_OWN_KEYS))} belong to the operator and the Job "
        f"controller; for {QUEUE_LABEL} set queueName"
    )
    return {
        "type": "object",
        "maxProperties": MAX_KEYS,
        "additionalProperties": {"type": "string"},
        **rules(cel(f"self.all(key, !({prefixes} || key in {sorted(_REMEDIES)}))", message)),
    }


Labels = Annotated[
    dict[str, Any],
    Field(max_length=MAX_KEYS),
    AfterValidator(_checked_labels),
    Expect(f"a mapping of at most {MAX_KEYS} labels"),
    WithJsonSchema(_schema()),
]
Annotations = Annotated[
    dict[str, Any],
    Field(max_length=MAX_KEYS),
    AfterValidator(_checked_annotations),
    Expect(f"a mapping of at most {MAX_KEYS} annotations"),
    WithJsonSchema(_schema()),
]


QueueName = Annotated[
    str,
    Field(min_length=1, max_length=MAX_QUEUE_CHARS, pattern=DNS_SUBDOMAIN),
    Expect("the name of a LocalQueue: 1 to 63 lowercase letters, digits, '-' and '.'"),
]
Manager = Annotated[
    str,
    Field(max_length=MAX_MANAGER_CHARS, pattern=f"{DNS_SUBDOMAIN.removesuffix('$')}/[A-Za-z0-9._-]+$"),
    Expect("a domain, a slash and a name, 63 characters at most", "for example example.com/job-controller"),
]


class JobTemplate(Document):
    """Metadata and controller of the chain's Jobs, in addition to what the operator writes."""

    labels: Labels | None = None
    """On the Job and its pods. On the pods, a label of `pod.metadata` takes precedence."""
    annotations: Annotations | None = None
    """On the Job and its pods. On the pods, an annotation of `pod.metadata` takes precedence."""
    managed_by: Manager | None = None
    """`spec.managedBy` of the Job: the controller that runs it. It must create the pods in the namespace of the chain,
    because the result of a stage is read from its pod; MultiKueue does not. Empty: Kubernetes' own."""
