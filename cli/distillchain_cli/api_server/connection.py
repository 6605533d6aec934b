"""Connects to the cluster of the user's kubeconfig.

Apart from the other commands' modules, because the Kubernetes client takes a second to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillchain_cli.api_server.access import Access

if TYPE_CHECKING:
    from distillchain_cli.api_server.cluster import Cluster


def connect(access: Access) -> Cluster:
    """The cluster that the options name. Raises: BadInput, MissingExtra."""
    from distillchain_cli.api_server.cluster import Cluster

    return Cluster(access)
