"""Kubernetes' ObjectMeta as far as a user writes it: names, labels and annotations by the API server's rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from distillchain_api.base import Document
from distillchain_api.faults import Expect, Fault, error_of, expected, quote, written_as
from distillchain_api.values import DNS_1123_LABEL, DNS_SUBDOMAIN

MAX_LABEL_CHARS = 63
LABEL_VALUE = f"at most {MAX_LABEL_CHARS} letters, digits, '-', '_' and '.', with a letter or digit at both ends"
MAX_PREFIX_CHARS = 253
MAX_ANNOTATIONS_BYTES = 256 * 1024  # of all keys and values together
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_SUBDOMAIN = re.compile(DNS_SUBDOMAIN)


def label_faults(labels: Mapping[str, Any]) -> Iterator[Fault]:
    """What the API server would refuse in labels or a node selector; fields are relative to them."""
    for key, value in labels.items():
        if problem := key_problem(key):
            yield Fault(key, problem)
        if not isinstance(value, str):
            # Of a number such as -1, quotation marks make no valid label.
            remedy = quote(value) if any(map(_is_label, written_as(value))) else f"write {LABEL_VALUE}"
            yield Fault(key, expected(value, "text", remedy))
        elif not _is_label(value):
            yield Fault(key, expected(value, LABEL_VALUE, "free text belongs in an annotation"))


def _is_label(value: str) -> bool:
    # An empty value is valid, as in `node-role.kubernetes.io/gpu: ""`.
    return not value or (len(value) <= MAX_LABEL_CHARS and bool(_LABEL_NAME.fullmatch(value)))


def annotation_faults(annotations: Mapping[str, Any]) -> Iterator[Fault]:
    """What the API server would refuse in annotations; fields are relative to them."""
    for key, value in annotations.items():
        # The API server lowers the case of an annotation's key before it checks it.
        if problem := key_problem(key.lower()):
            yield Fault(key, problem)
        if not isinstance(value, str):
            yield Fault(key, expected(value, "text", quote(value)))
    size_bytes = sum(len(f"{key}{value}".encode()) for key, value in annotations.items())
    if size_bytes > MAX_ANNOTATIONS_BYTES:
        yield Fault("", f"got {size_bytes} bytes, expected at most {MAX_ANNOTATIONS_BYTES} in all annotations together")


def key_problem(key: str) -> str | None:
    """Why a key is no qualified name: an optional domain with a slash, and a name like a label's value."""
    prefix, slash, name = key.rpartition("/")
    is_name = len(name) <= MAX_LABEL_CHARS and _LABEL_NAME.fullmatch(name)
    is_prefix = not slash or (len(prefix) <= MAX_PREFIX_CHARS and _SUBDOMAIN.fullmatch(prefix))
    if is_name and is_prefix:
        return None
    return (
        "not a valid key; expected a name of at most 63 letters, digits, '-', '_' and '.', optionally after a domain "
        "and a slash, such as example.com/team"
    )


def _checked_labels(labels: dict[str, Any]) -> dict[str, Any]:
    if found := list(label_faults(labels)):
        raise error_of(found)
    return labels


def _checked_annotations(annotations: dict[str, Any]) -> dict[str, Any]:
    if found := list(annotation_faults(annotations)):
        raise error_of(found)
    return annotations


ChainName = Annotated[
    str,
    Field(min_length=1, max_length=63, pattern=DNS_SUBDOMAIN),
    Expect("a name of 1 to 63 lowercase letters, digits, '-' and '.', each part between letters or digits"),
]
Namespace = Annotated[
    str,
    Field(min_length=1, max_length=63, pattern=DNS_1123_LABEL),
    Expect("the name of a namespace: 1 to 63 lowercase letters, digits and '-', with a letter or digit at both ends"),
]


class ObjectMeta(Document):
    """The metadata of a chain. The fields that only the API server writes pass through unchecked."""

    name: ChainName
    namespace: Namespace = "default"
    labels: Annotated[dict[str, Any], AfterValidator(_checked_labels)] | None = None
    annotations: Annotated[dict[str, Any], AfterValidator(_checked_annotations)] | None = None
    uid: str = ""
    generation: int = 0
    generate_name: str | None = None
    finalizers: list[str] | None = None
    owner_references: list[dict[str, Any]] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    managed_fields: list[dict[str, Any]] | None = None
    resource_version: str | None = None
    self_link: str | None = None
