"""The handlers of kopf's events. An event only adds a chain to the queue; nothing is decided here."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import kopf

from distillchain_api import GROUP, PLURAL, VERSION
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.labels import CHAIN_LABEL

WATCH_TIMEOUT_S = 300  # bounds how long a watch on a dead connection goes unnoticed


def build_registry() -> kopf.OperatorRegistry:
    """Only on.event handlers, so that kopf adds no finalizers and annotations."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(on_chain_event)
    kopf.on.event("batch", "v1", "jobs", labels={CHAIN_LABEL: kopf.PRESENT}, registry=registry)(on_child_event)
    kopf.on.event("", "v1", "pods", labels={CHAIN_LABEL: kopf.PRESENT}, registry=registry)(on_child_event)
    return registry


def build_kopf_settings() -> kopf.OperatorSettings:
    """Kopf as a listener only: no Events of its own, no scanning for CRDs and namespaces, which needs more rights."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.server_timeout = WATCH_TIMEOUT_S
    settings.watching.connect_timeout = 30
    settings.queueing.exit_timeout = 0.5  # handlers only add a key, so there is nothing to wait for
    # The API server sends only the operator's own Jobs and pods, not all of the cluster.
    settings.watching.label_selectors["batch", "jobs"] = CHAIN_LABEL
    settings.watching.label_selectors["", "pods"] = CHAIN_LABEL
    return settings


def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The same credentials as the client's: $KUBECONFIG, else the service account, else ~/.kube/config."""

    if not os.environ.get("KUBECONFIG") and (info := kopf.login_with_service_account(**kwargs)):
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        # kopf connects to kubernetes.default.svc, which needs DNS. Every pod has the address in its environment.
        address = f"[{host}]" if host and ":" in host else host
        return dataclasses.replace(info, server=f"https://{address}:{port}") if host else info
    return kopf.login_with_kubeconfig(**kwargs)


async def on_chain_event(namespace: str | None, name: str, memo: kopf.Memo, **_: Any) -> None:
    """A chain was created, edited or deleted, or its status was written."""
    assert namespace is not None  # every watched kind is namespaced
    memo.queue.add(ChainKey(namespace, name))


async def on_child_event(namespace: str | None, labels: kopf.Labels, memo: kopf.Memo, **_: Any) -> None:
    """A Job or pod of a chain changed."""
    assert namespace is not None
    memo.queue.add(ChainKey(namespace, labels[CHAIN_LABEL]))
