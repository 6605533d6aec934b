"""The namespace of a chain in a file, as kubectl chooses it."""

from __future__ import annotations

from typing import Any, Protocol

from distillchain_api.faults import BadDocument, Fault


class Namespaces(Protocol):
    """The namespaces that the user's options and kubeconfig name."""

    namespace: str
    """Of a chain that names none."""
    namespace_option: str | None
    """None: the options name none."""


def namespace_of(metadata: dict[str, Any], source: str, stated: Namespaces) -> str:
    """The namespace of an object with these metadata.

    Raises: BadDocument when `--namespace` names another one than the file.
    """
    namespace = str(metadata.get("namespace") or stated.namespace)
    if stated.namespace_option not in (None, namespace):
        problem = f"got {namespace}, expected {stated.namespace_option} as --namespace says; correct one of them"
        raise BadDocument(source, [Fault("metadata.namespace", problem)])
    return namespace
