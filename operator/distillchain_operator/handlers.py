"""What kopf hears. Any news is only a reason to look at a chain again; nothing is decided here."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import kopf

from distillchain_api import GROUP, PLURAL, VERSION
from distillchain_operator.controller import ChainKey
from distillchain_operator.labels import CHAIN_LABEL

WATCH_TIMEOUT_S = 300  # a watch whose connection died in silence is begun anew


def build_registry() -> kopf.OperatorRegistry:
    """The handlers: on.event alone, so that kopf adds no finalizer and no annotation to anything."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(on_chain_event)
    kopf.on.event("batch", "v1", "jobs", labels={CHAIN_LABEL: kopf.PRESENT}, registry=registry)(on_child_event)
    kopf.on.event("", "v1", "pods", labels={CHAIN_LABEL: kopf.PRESENT}, registry=registry)(on_child_event)
    return registry


def build_kopf_settings() -> kopf.OperatorSettings:
    """Kopf as a pure listener: no Events of its own, no scanning for CRDs and namespaces, which would need more
    rights."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.server_timeout = WATCH_TIMEOUT_S
    settings.watching.connect_timeout = 30
    settings.queueing.exit_timeout = 0.5  # handlers only add a key: there is nothing to wait for
    # Only what we made comes over the wire, not every Job and pod of the cluster.
    settings.watching.label_selectors["batch", "jobs"] = CHAIN_LABEL
    settings.watching.label_selectors["", "pods"] = CHAIN_LABEL
    return settings


def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The same credentials as the client's: $KUBECONFIG, else the service account, else ~/.kube/config."""

    if not os.environ.get("KUBECONFIG") and (info := kopf.login_with_service_account(**kwargs)):
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        # kopf names kubernetes.default.svc, which needs a DNS; the address is in every pod, and the client uses it.
        address = f"[{host}]" if host and ":" in host else host
        return dataclasses.replace(info, server=f"https://{address}:{port}") if host else info
    return kopf.login_with_kubeconfig(**kwargs)


async def on_chain_event(namespace: str | None, name: str, memo: kopf.Memo, **_: Any) -> None:
    """A chain was made, edited or deleted, or its status was written."""
    assert namespace is not None  # every kind we listen to lives in one
    memo.queue.add(ChainKey(namespace, name))


async def on_child_event(namespace: str | None, labels: kopf.Labels, memo: kopf.Memo, **_: Any) -> None:
    """A Job or pod of a chain changed."""
    assert namespace is not None
    memo.queue.add(ChainKey(namespace, labels[CHAIN_LABEL]))
