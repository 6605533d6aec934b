"""Kueue's controller beside a control plane: its CRDs, its webhooks on 127.0.0.1, and its process.

It runs as an administrator and manages batch Jobs only. Its webhooks apply to the whole cluster, so give it a control
plane of its own.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from cluster.build import KUEUE, ensure_kueue
from cluster.certificates import KeyPair, write_self_signed
from cluster.controlplane import ControlPlane
from cluster.ports import free_ports
from cluster.waiting import wait_until

START_DEADLINE_S = 180  # measured 23 beside a training run on two cores: it starts twice, and sleeps in between
NAMESPACE = "kueue-system"
SECRET = "kueue-webhook-server-cert"  # the name that Kueue expects
# Kueue keeps a certificate that is valid for both names. The API server connects to the address.
HOSTS = ("kueue-ca", f"kueue-webhook-service.{NAMESPACE}.svc", "127.0.0.1")
# Of the other kinds, the controller serves no webhook unless their frameworks are on.
WEBHOOKS = ("clusterqueue", "cohort", "job", "resourceflavor", "workload")


class Kueue:
    """Kueue on a control plane, stopped when the `with` block ends."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._cluster = control_plane
        self._directory = control_plane.directory / "kueue"
        self._built = ensure_kueue()
        self._health = ""

    def __enter__(self) -> Self:
        self._directory.mkdir()
        webhook, health = free_ports(2)
        self._health = f"http://127.0.0.1:{health}/readyz"
        pair = write_self_signed(self._directory / "certificates", hosts=HOSTS)
        self._cluster.create_namespace(NAMESPACE)
        url = f"https://127.0.0.1:{webhook}"
        manifests = [_secret(pair), *self._crds(url, pair), *self._webhooks(url, pair)]
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        # Not `apply`, whose annotation is too small for these CRDs.
        self._cluster.kubectl("create", "-f", "-", input=document)
        config = self._directory / "config.yaml"
        config.write_text(json.dumps(_configuration(webhook=webhook, health=health, certificates=pair.key.parent)))
        argv = [self._built / KUEUE, f"--config={config}", f"--kubeconfig={self._cluster.kubeconfig}"]
        self._cluster.processes.start(KUEUE, argv)
        try:
            wait_until("Kueue to be ready", self._is_ready, deadline_s=START_DEADLINE_S, dump=self.log_tail)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cluster.processes.stop(KUEUE, grace_s=0.5)

    def log_tail(self) -> str:
        return self._cluster.processes.log_tail(KUEUE)

    def _is_ready(self) -> bool:
        self._cluster.processes.check(KUEUE)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(self._health, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _crds(self, url: str, pair: KeyPair) -> Iterator[dict[str, Any]]:
        client = {"url": f"{url}/convert", "caBundle": _base64(pair.certificate)}
        for path in sorted(self._built.glob("kueue.x-k8s.io_*.yaml")):
            crd = yaml.safe_load(path.read_text())
            if len(crd["spec"]["versions"]) > 1:
                webhook = {"clientConfig": client, "conversionReviewVersions": ["v1"]}
                crd["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
            yield crd

    def _webhooks(self, url: str, pair: KeyPair) -> Iterator[dict[str, Any]]:
        for configuration in yaml.safe_load_all((self._built / "manifests.yaml").read_text()):
            configuration["metadata"]["name"] = f"kueue-{configuration['metadata']['name']}"
            names = {f"{kind}{webhook}.kb.io" for kind in "mv" for webhook in WEBHOOKS}
            configuration["webhooks"] = [each for each in configuration["webhooks"] if each["name"] in names]
            for each in configuration["webhooks"]:
                path = each["clientConfig"]["service"]["path"]
                each["clientConfig"] = {"url": f"{url}{path}", "caBundle": _base64(pair.certificate)}
            yield configuration


def _configuration(*, webhook: int, health: int, certificates: Path) -> dict[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "integrations": {"frameworks": ["batch/job"]},
        # Not the default; it changes nothing for a Job that has a queue.
        "manageJobsWithoutQueueName": True,
        # Each needs another port, or the right to read other clusters.
        "featureGates": {"VisibilityOnDemand": False, "MultiKueue": False},
    }


def _secret(pair: KeyPair) -> dict[str, Any]:
    certificate, key = _base64(pair.certificate), _base64(pair.key)
    # One certificate is both the authority and the server's. Kueue would replace it if it did not verify.
    data = {"ca.crt": certificate, "ca.key": key, "tls.crt": certificate, "tls.key": key}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}, "data": data}


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
