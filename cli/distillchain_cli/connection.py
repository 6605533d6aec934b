"""Connects to the cluster of the user's kubeconfig.

Apart from the other commands' modules, because the Kubernetes client takes a second to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distillchain_cli.cluster import Cluster


def connect(kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    """The cluster that kubeconfig and context name. Raises: BadInput, MissingExtra."""
    from distillchain_cli.cluster import Cluster

    return Cluster(kubeconfig=kubeconfig, context=context, namespace=namespace)
