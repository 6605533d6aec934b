"""etcd, kube-apiserver and kube-controller-manager: a Kubernetes without a node, up in seconds, no root needed.

Enough for all that an operator does: real RBAC, real admission of CRDs, real Job and garbage-collection controllers.
Pods stay Pending until a `cluster.node.Node` joins or a test writes their status itself. Any number run side by side.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.build import ensure_binaries
from cluster.certificates import Authority, KeyPair, write_signing_key
from cluster.errors import ClusterError, CommandFailed
from cluster.lifetime import sigterm_unwinds
from cluster.ports import free_ports
from cluster.processes import Processes
from cluster.waiting import wait_until

START_DEADLINE_S = 60  # measured 3 to 5; two cores shared with a build need more
KUBECTL_DEADLINE_S = 120


class ControlPlane:
    """A control plane in `directory`, stopped when the `with` block ends; logs and kubeconfigs lie there.

    Args:
        outlive_caller: True for a cluster that stays when this process ends; `stop` of any later instance on the same
            directory ends it. False ties every process to this one.
    Attributes:
        url: of the API server, https on 127.0.0.1.
        kubeconfig: of an administrator (system:masters); self-contained, may be copied.
        ca: the certificate of the authority behind `url`.
    """

    def __init__(self, directory: Path, *, outlive_caller: bool = False) -> None:
        self.directory = directory.absolute()
        self.processes = Processes(self.directory, outlive_caller=outlive_caller)
        self.binaries = ensure_binaries()
        self.kubeconfig = self.directory / "admin.kubeconfig"
        self.ca = self.directory / "certificates" / "ca.crt"
        self._facts = self.directory / "control-plane.json"
        self._exits = ExitStack()
        self.url = json.loads(self._facts.read_text())["url"] if self._facts.exists() else ""
        self._apiserver_argv: list[str | Path] = []
        self._controller_manager_argv: list[str | Path] = []

    def __enter__(self) -> Self:
        self._exits.enter_context(sigterm_unwinds())
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._exits.close()

    def start(self) -> None:
        """Fresh and ready: whatever an earlier life left in the directory is ended and forgotten."""
        self.stop()
        etcd_port, peer_port, apiserver_port, manager_port = free_ports(4)
        self.url = f"https://127.0.0.1:{apiserver_port}"
        self._facts.write_text(json.dumps({"url": self.url}))
        self.authority = Authority(self.directory / "certificates")
        self._start_etcd(etcd_port, peer_port)
        self._apiserver_argv = self._build_apiserver_argv(etcd_port, apiserver_port)
        self._administrator = self.authority.issue("admin", common_name="admin", organization="system:masters")
        self.write_kubeconfig(self.kubeconfig, pair=self._administrator)
        self.start_apiserver()
        self._controller_manager_argv = self._build_controller_manager_argv(manager_port)
        self._start_controller_manager()

    def stop(self) -> None:
        """Ends all, in an order in which none misses another; may be repeated."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            # Nothing is drained: what etcd holds is thrown away with it.
            self.processes.stop(name, grace_s=0.5)

    def is_running(self) -> bool:
        names = ("etcd", "kube-apiserver", "kube-controller-manager")
        return all(self.processes.is_running(name) for name in names)

    def kubectl(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 (as of subprocess.run)
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """kubectl as administrator; for another user pass `--kubeconfig`.

        Raises: CommandFailed with what kubectl said, unless `check` is False.
        """
        own = [] if any(arg.startswith("--kubeconfig") for arg in args) else [f"--kubeconfig={self.kubeconfig}"]
        # Its own cache: the shared one is keyed by address, and a port may belong to another cluster tomorrow.
        argv = [str(self.binaries / "kubectl"), *own, f"--cache-dir={self.directory / 'kubectl-cache'}", *args]
        done = subprocess.run(
            argv, input=input, text=True, capture_output=True, check=False, timeout=KUBECTL_DEADLINE_S
        )
        if check and done.returncode != 0:
            raise CommandFailed(["kubectl", *args], done.returncode, done.stderr)
        return done

    def get(self, *args: str) -> dict[str, Any]:
        """`kubectl get ARGS -o json`, parsed."""
        answer: dict[str, Any] = json.loads(self.kubectl("get", *args, "-o", "json").stdout)
        return answer

    def apply(self, *manifests: dict[str, Any]) -> None:
        """`kubectl apply` of objects, all in one call."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "-f", "-", input=json.dumps(document))

    def wait_until_served(self, resource: str) -> None:
        """Until a kind that was just applied is answered for.

        Not by `kubectl wait --for=condition=Established`: that ends with an error while a CRD has no condition at all.
        """
        wait_until(
            f"{resource} to be served",
            lambda: self.kubectl("get", resource, "--all-namespaces", check=False).returncode == 0,
            deadline_s=START_DEADLINE_S,
            dump=lambda: self.kubectl("get", "crds", "-o", "yaml", check=False).stdout,
        )

    def create_namespace(self, name: str) -> None:
        """Ready for pods: with its `default` service account, without which they are refused."""
        self.kubectl("create", "namespace", name)
        wait_until(
            f"the default service account of namespace {name}",
            lambda: self.kubectl("get", "serviceaccount", "default", "-n", name, check=False).returncode == 0,
            deadline_s=START_DEADLINE_S,
            dump=lambda: self.processes.log_tail("kube-controller-manager"),
        )

    def kubeconfig_for(self, namespace: str, service_account: str) -> Path:
        """A kubeconfig with a real token (24 h, by TokenRequest) of a ServiceAccount that exists, and its namespace."""
        made = self.kubectl("create", "token", service_account, "--namespace", namespace, "--duration=24h")
        path = self.directory / f"{namespace}.{service_account}.kubeconfig"
        self.write_kubeconfig(path, token=made.stdout.strip(), namespace=namespace)
        return path

    def start_apiserver(self) -> None:
        """Returns when it is ready. Only the instance that started the control plane can start its parts again."""
        if not self._apiserver_argv:
            raise ClusterError(f"the control plane in {self.directory} was not started by this process")
        self.processes.start("kube-apiserver", self._apiserver_argv)
        wait_until("kube-apiserver to be ready", self._is_ready, deadline_s=START_DEADLINE_S, dump=self._dump)

    def stop_apiserver(self) -> None:
        """An outage, as a crash makes it: all connections break at once, etcd keeps everything."""
        self.processes.stop("kube-apiserver", grace_s=0)

    def restart_apiserver(self) -> None:
        """An outage of some seconds on the same address; returns when it is ready again."""
        self.stop_apiserver()
        self.start_apiserver()

    def restart_controllers(self) -> None:
        """Makes the garbage collector know the CRDs applied so far; by itself it looks for new kinds every 30 s.

        Without it the deletion of a fresh kind's object may leave its dependents for 40 s (measured). Takes about 1 s.
        """
        self.processes.stop("kube-controller-manager", grace_s=0.5)
        self._start_controller_manager()

    def write_kubeconfig(
        self, path: Path, *, pair: KeyPair | None = None, token: str | None = None, namespace: str = "default"
    ) -> None:
        """For a client that shows a certificate or a token; only its owner may read the file."""
        user = {"token": token} if pair is None else _inline(pair)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cluster",
            "clusters": [
                {"name": "cluster", "cluster": {"server": self.url, "certificate-authority-data": _base64(self.ca)}}
            ],
            "users": [{"name": "user", "user": user}],
            "contexts": [
                {"name": "cluster", "context": {"cluster": "cluster", "user": "user", "namespace": namespace}}
            ],
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML

    def _start_etcd(self, port: int, peer_port: int) -> None:
        data = self.directory / "etcd"
        subprocess.run(["rm", "-rf", str(data)], check=True)
        url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        self.processes.start(
            "etcd",
            [
                self.binaries / "etcd",
                f"--data-dir={data}",
                f"--listen-client-urls={url}",
                f"--advertise-client-urls={url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=default={peer_url}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        )

    def _build_apiserver_argv(self, etcd_port: int, port: int) -> list[str | Path]:
        hosts = ["localhost", "127.0.0.1", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        server = self.authority.issue("kube-apiserver", common_name="kube-apiserver", hosts=hosts)
        kubelet_client = self.authority.issue(
            "kubelet-client", common_name="kube-apiserver-kubelet-client", organization="system:masters"
        )
        signing_key = write_signing_key(self.ca.parent)
        return [
            self.binaries / "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",  # the latter as on OpenShift
            "--anonymous-auth=false",
            f"--client-ca-file={self.ca}",
            f"--tls-cert-file={server.certificate}",
            f"--tls-private-key-file={server.key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={signing_key}",
            f"--service-account-signing-key-file={signing_key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--kubelet-client-certificate={kubelet_client.certificate}",
            f"--kubelet-client-key={kubelet_client.key}",
            f"--kubelet-certificate-authority={self.ca}",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _start_controller_manager(self) -> None:
        log = self.processes.log("kube-controller-manager")
        former_lives = log.stat().st_size if log.exists() else 0
        self.processes.start("kube-controller-manager", self._controller_manager_argv)

        def collector_runs() -> bool:
            """The garbage collector is the last to be up, and only the log tells."""
            self.processes.check("etcd", "kube-apiserver", "kube-controller-manager")
            return b"all resource monitors have synced" in log.read_bytes()[former_lives:]

        wait_until(
            "the controllers to run",
            collector_runs,
            deadline_s=START_DEADLINE_S,
            dump=lambda: self.processes.log_tail("kube-controller-manager"),
        )

    def _build_controller_manager_argv(self, port: int) -> list[str | Path]:
        kubeconfig = self.directory / "kube-controller-manager.kubeconfig"
        user = "system:kube-controller-manager"
        self.write_kubeconfig(kubeconfig, pair=self.authority.issue("kube-controller-manager", common_name=user))
        return [
            self.binaries / "kube-controller-manager",
            f"--kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--leader-elect=false",
            # With the default of 20 calls a second the controllers start one by one, in five seconds.
            "--kube-api-qps=1000",
            "--kube-api-burst=1000",
            "--use-service-account-credentials=true",
            f"--root-ca-file={self.ca}",
            f"--service-account-private-key-file={self.ca.parent / 'service-accounts.key'}",
        ]

    def _is_ready(self) -> bool:
        self.processes.check("etcd", "kube-apiserver")
        trust = ssl.create_default_context(cafile=str(self.ca))
        trust.load_cert_chain(self._administrator.certificate, self._administrator.key)
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )
        try:
            with direct.open(f"{self.url}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _dump(self) -> str:
        return "\n".join(self.processes.log_tail(name) for name in ("kube-apiserver", "etcd"))


def _inline(pair: KeyPair) -> dict[str, str]:
    return {"client-certificate-data": _base64(pair.certificate), "client-key-data": _base64(pair.key)}


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
