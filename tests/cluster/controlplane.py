"""etcd, kube-apiserver and kube-controller-manager: a Kubernetes without a node. It starts in seconds, without root.

This is enough for everything that an operator does: RBAC, admission, CRDs, the Job controller, garbage collection. Pods
stay Pending until a `cluster.node.Node` joins or a test writes their status. Any number of control planes can run at
the same time.
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

START_DEADLINE_S = 60  # measured 3 to 5; longer beside a build on two cores
KUBECTL_DEADLINE_S = 120


class ControlPlane:
    """A control plane, stopped when the `with` block ends. Its logs and kubeconfigs are in `directory`.

    Args:
        outlive_caller: if True, the cluster keeps running when this process ends; `stop` of a later instance with the
            same directory stops it. If False, the kernel kills every process when this one ends.
    Attributes:
        url: address of the API server, https on 127.0.0.1.
        etcd_url: address of etcd, which has no authentication; only of the instance that called `start`.
        kubeconfig: kubeconfig of an administrator (system:masters); it refers to no other file.
        ca: certificate of the authority that signed the API server's certificate.
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
        self.etcd_url = ""
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
        """Start a new, empty control plane; return when it is ready. Processes left in the directory are stopped."""
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
        """Stop all processes, each before those it depends on. May be called again."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            # No time to shut down in order: the data in etcd is not needed again.
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
        """Run kubectl as administrator; for another user pass `--kubeconfig`.

        Raises: CommandFailed with kubectl's error output, unless `check` is False.
        """
        own = [] if any(arg.startswith("--kubeconfig") for arg in args) else [f"--kubeconfig={self.kubeconfig}"]
        # A cache of its own: the default one is keyed by address, and a later cluster may get the same port.
        argv = [str(self.binaries / "kubectl"), *own, f"--cache-dir={self.directory / 'kubectl-cache'}", *args]
        done = subprocess.run(
            argv, input=input, text=True, capture_output=True, check=False, timeout=KUBECTL_DEADLINE_S
        )
        if check and done.returncode != 0:
            raise CommandFailed(["kubectl", *args], done.returncode, done.stderr)
        return done

    def get(self, *args: str) -> dict[str, Any]:
        """Run `kubectl get ARGS -o json`; return the parsed object."""
        answer: dict[str, Any] = json.loads(self.kubectl("get", *args, "-o", "json").stdout)
        return answer

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Run `kubectl apply` once for all objects."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "-f", "-", input=json.dumps(document))

    def wait_until_served(self, resource: str) -> None:
        """Wait until the API server serves a kind whose CRD was just applied.

        `kubectl wait --for=condition=Established` cannot do this: it fails while the CRD has no conditions at all.
        """
        wait_until(
            f"{resource} to be served",
            lambda: self.kubectl("get", resource, "--all-namespaces", check=False).returncode == 0,
            deadline_s=START_DEADLINE_S,
            dump=lambda: self.kubectl("get", "crds", "-o", "yaml", check=False).stdout,
        )

    def create_namespace(self, name: str) -> None:
        """Create a namespace and wait for its `default` service account: pods are refused without it."""
        self.kubectl("create", "namespace", name)
        wait_until(
            f"the default service account of namespace {name}",
            lambda: self.kubectl("get", "serviceaccount", "default", "-n", name, check=False).returncode == 0,
            deadline_s=START_DEADLINE_S,
            dump=lambda: self.processes.log_tail("kube-controller-manager"),
        )

    def kubeconfig_for(self, namespace: str, service_account: str) -> Path:
        """A kubeconfig with a token (24 h, by TokenRequest) of an existing ServiceAccount, for its namespace."""
        created = self.kubectl("create", "token", service_account, "--namespace", namespace, "--duration=24h")
        path = self.directory / f"{namespace}.{service_account}.kubeconfig"
        self.write_kubeconfig(path, token=created.stdout.strip(), namespace=namespace)
        return path

    def start_apiserver(self) -> None:
        """Start the API server and wait until it is ready. Only the instance that called `start` can do this."""
        if not self._apiserver_argv:
            raise ClusterError(f"the control plane in {self.directory} was not started by this process")
        self.processes.start("kube-apiserver", self._apiserver_argv)
        wait_until("kube-apiserver to be ready", self._is_ready, deadline_s=START_DEADLINE_S, dump=self._dump)

    def stop_apiserver(self) -> None:
        """Kill the API server, as in a crash: all connections break at once; etcd keeps the data."""
        self.processes.stop("kube-apiserver", grace_s=0)

    def restart_apiserver(self) -> None:
        """Interrupt the API server for some seconds; return when it is ready again at the same address."""
        self.stop_apiserver()
        self.start_apiserver()

    def restart_controllers(self) -> None:
        """Restart the controllers so that the garbage collector knows the CRDs applied so far. Takes about 1 s.

        The collector looks for new kinds only every 30 s. Without a restart, the dependents of a new kind's object can
        outlive it by 40 s (measured).
        """
        self.processes.stop("kube-controller-manager", grace_s=0.5)
        self._start_controller_manager()

    def write_kubeconfig(
        self, path: Path, *, pair: KeyPair | None = None, token: str | None = None, namespace: str = "default"
    ) -> None:
        """Write a kubeconfig with a client certificate or a token; only its owner can read the file."""
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
        self.etcd_url = url = f"http://127.0.0.1:{port}"
        peer_url = f"http://127.0.0.1:{peer_port}"
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
        old_log_bytes = log.stat().st_size if log.exists() else 0
        self.processes.start("kube-controller-manager", self._controller_manager_argv)

        def collector_runs() -> bool:
            """The garbage collector starts last, and only the log shows when."""
            self.processes.check("etcd", "kube-apiserver", "kube-controller-manager")
            return b"all resource monitors have synced" in log.read_bytes()[old_log_bytes:]

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
            # With the default of 20 calls a second the controllers take five seconds to start.
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
