"""The handlers of kopf's events. An event only reports the key of a chain; nothing is decided here."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import kopf

from distillchain_api import GROUP, PLURAL, VERSION
from distillchain_operator.api_server.connection import WATCH_TIMEOUT_S
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.watch.session import Notes, open_session

# Of a list: the metadata of a chain has up to 8 KB of JSON and ten times as much once it is parsed.
PAGE_OBJECTS = 50
IDLE_S = 0.1  # how long kopf keeps a task for each object that had an event


def build_registry() -> kopf.OperatorRegistry:
    """Only on.event handlers, so that kopf adds no finalizers and annotations."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(on_chain_event)
    return registry


def build_kopf_settings() -> kopf.OperatorSettings:
    """Kopf as a listener only: no Events of its own, no scanning for CRDs and namespaces, which needs more rights."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.server_timeout = WATCH_TIMEOUT_S
    settings.watching.connect_timeout = 30
    settings.watching.chunk_size = PAGE_OBJECTS
    settings.watching.reconnect_backoff = 1.0  # a watch that ends at once lists everything again
    settings.networking.error_backoffs = (1, 2, 5)
    settings.queueing.idle_timeout = IDLE_S
    settings.queueing.exit_timeout = 0.5  # handlers only report a key, so there is nothing to wait for
    return settings


async def login(memo: kopf.Memo, **kwargs: Any) -> kopf.AiohttpSession | None:
    """The same credentials as the client's: $KUBECONFIG, else the service account, else ~/.kube/config."""
    info = _credentials(**kwargs)
    notes: Notes = memo.notes
    return open_session(info, notes) if info else None


def _credentials(**kwargs: Any) -> kopf.ConnectionInfo | None:
    if not os.environ.get("KUBECONFIG") and (info := kopf.login_with_service_account(**kwargs)):
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        # kopf connects to kubernetes.default.svc, which needs DNS. Every pod has the address in its environment.
        address = f"[{host}]" if host and ":" in host else host
        return dataclasses.replace(info, server=f"https://{address}:{port}") if host else info
    return kopf.login_with_kubeconfig(**kwargs)


async def on_chain_event(event: kopf.RawEvent, meta: kopf.Meta, memo: kopf.Memo, **_: Any) -> None:
    """A chain was created, edited or deleted, or its status was written; without a type, it is in a list."""
    take = memo.listed if event["type"] is None else memo.changed
    take(ChainKey(meta["namespace"], meta["name"]), int(meta["resourceVersion"]))
