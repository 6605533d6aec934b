"""A node for a control plane: containerd, kubelet and kube-scheduler. Pods run in real containers. Needs root.

Each node has its own bridge, and its pods have addresses there. They reach this machine at `gateway`, the API server
at the address of the Service `kubernetes`, and nothing else. Nodes of several control planes can run at the same time.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.controlplane import ControlPlane
from cluster.errors import ClusterError, CommandFailed
from cluster.guard import start_guard
from cluster.images import build_host_python_image, build_pause_image
from cluster.lifetime import sigterm_unwinds
from cluster.ports import free_ports
from cluster.prerequisites import Tools, ensure_tools
from cluster.processes import Processes
from cluster.slot import Slot, claim_slot
from cluster.waiting import wait_until

START_DEADLINE_S = 90  # measured 2 after the control plane
GPU = "nvidia.com/gpu"


class Node:
    """The only node of `control_plane`. It is removed with all its pods when the `with` block ends.

    Args:
        gpus: number of nvidia.com/gpu that the node advertises. Pods that request them queue as for real GPUs.
        outlive_caller: see `ControlPlane`.
    Attributes:
        gateway: the address at which pods reach this machine; pass it to `S3Server(address=...)`.
        name: name of the Node object.
    """

    def __init__(
        self, control_plane: ControlPlane, *, gpus: int = 0, name: str = "node-1", outlive_caller: bool = False
    ) -> None:
        self.control_plane = control_plane
        self.gpus = gpus
        self.name = name
        self.directory = control_plane.directory / "node"
        self.processes = Processes(self.directory, outlive_caller=outlive_caller)
        self._exits = ExitStack()
        self._facts = self.directory / "node.json"
        self._slot = self._recorded_slot()
        self._guard: subprocess.Popen[bytes] | None = None
        self._outlive_caller = outlive_caller

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

    @property
    def slot(self) -> Slot:
        if self._slot is None:
            raise ClusterError(f"node {self.name} is not running")
        return self._slot

    @property
    def gateway(self) -> str:
        return self.slot.gateway

    def start(self) -> None:
        """Remove leftovers, start the node with PAUSE_IMAGE and HOST_PYTHON_IMAGE, return when it is ready."""
        self.stop()
        self._slot = claim_slot()
        token = self._slot.occupy(self._tools.ip)
        self._slot.lead_to_api(self._tools.nft, int(self.control_plane.url.rpartition(":")[2]))
        self._facts.write_text(json.dumps({"slot": self._slot.number, "token": token}))
        if not self._outlive_caller:
            self._guard = start_guard(self._slot, token)
        self._start_containerd()
        self._start_scheduler()
        self.import_image(build_pause_image(self.directory / "pause.tar", self._tools.busybox))
        self._start_kubelet()
        self.import_image(build_host_python_image(self.directory / "host-python.tar"))
        wait_until("the node to be ready", self._is_ready, deadline_s=START_DEADLINE_S, dump=self._dump)
        if self.gpus:
            self.set_gpus(self.gpus)

    def stop(self) -> None:
        """Stop the node and its pods and free everything it used of the machine. May be called again."""
        self.processes.stop("kubelet", grace_s=2)
        self.processes.stop("kube-scheduler", grace_s=0.5)
        if self._slot is not None and self.control_plane.is_running():
            # Do not wait: the kubelet that would confirm the deletion has stopped, and a pod that its Job has not
            # counted yet keeps a finalizer. The sweep below ends the processes.
            now = ("--force", "--grace-period=0", "--wait=false")
            self.control_plane.kubectl("delete", "pods", "--all", "-A", *now, check=False)
            self.control_plane.kubectl("delete", "node", self.name, "--ignore-not-found", check=False)
        self.processes.stop("containerd", grace_s=2)
        if self._slot is not None:
            self._slot.sweep()
            self._slot.release()
            self._slot = None
        self._facts.unlink(missing_ok=True)
        if self._guard is not None:
            self._guard.communicate()  # closes its pipe; it finds the slot swept and exits
            self._guard = None

    def is_running(self) -> bool:
        return all(self.processes.is_running(name) for name in ("containerd", "kube-scheduler", "kubelet"))

    def import_image(self, archive: Path) -> None:
        """Load the image of an OCI or Docker archive into the node, under the name in the archive."""
        self.ctr("images", "import", str(archive), timeout_s=1800)  # 6 GB with CUDA, on a busy machine

    def ctr(self, *args: str, timeout_s: float = 300) -> str:
        """Run containerd's own client, for what Kubernetes does not show; return its standard output."""
        argv = [str(self._tools.ctr), "--address", str(self.slot.containerd_socket), "--namespace", "k8s.io", *args]
        done = subprocess.run(argv, text=True, capture_output=True, check=False, timeout=timeout_s)
        if done.returncode != 0:
            raise CommandFailed(argv, done.returncode, f"{done.stderr}\n{self.processes.log_tail('containerd')}")
        return done.stdout

    def set_gpus(self, count: int) -> None:
        """Change the number of GPUs that the node advertises; a kubelet keeps resources that it does not know."""
        amount = {GPU: str(count)}
        # Set allocatable too: the kubelet copies it from capacity only at its next report, ten seconds later.
        patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
        self.control_plane.kubectl("patch", "node", self.name, "--subresource=status", "--type=merge", "-p", patch)

    def evict(self, namespace: str, pod: str) -> None:
        """Evict a pod through the API as `kubectl drain` does: its status gets the condition DisruptionTarget."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        self.control_plane.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))

    @cached_property
    def _tools(self) -> Tools:
        return ensure_tools()

    def _recorded_slot(self) -> Slot | None:
        """The slot of a node that another process started in this directory, unless another node has taken it since."""
        if not self._facts.exists():
            return None
        facts = json.loads(self._facts.read_text())
        slot = Slot(facts["slot"], None)
        return slot if slot.is_occupied_as(facts["token"]) else None

    def _start_containerd(self) -> None:
        config = self.directory / "containerd.toml"
        config.write_text(self._build_containerd_config())
        cni = self.directory / "cni"
        cni.mkdir(exist_ok=True)
        (cni / "pods.conflist").write_text(json.dumps(self._build_cni_config(), indent=1))
        self.processes.start("containerd", [self._tools.containerd, "--config", config])
        self.wait_for_containerd()

    def wait_for_containerd(self) -> None:
        """Wait until it answers; its socket exists a little earlier."""

        def answers() -> bool:
            self.processes.check("containerd")
            try:
                self.ctr("version")
            except CommandFailed:
                return False
            return True

        wait_until("containerd to answer", answers, deadline_s=START_DEADLINE_S, dump=self._dump)

    def _start_scheduler(self) -> None:
        (port,) = free_ports(1)
        name = "kube-scheduler"
        kubeconfig = self._kubeconfig(name, common_name="system:kube-scheduler")
        argv: list[str | Path] = [
            self.control_plane.binaries / name,
            f"--kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--leader-elect=false",
        ]
        self.processes.start(name, argv, pass_fds=self._lock())

    def _start_kubelet(self) -> None:
        config = self.directory / "kubelet.json"
        config.write_text(json.dumps(self._build_kubelet_config(), indent=1))
        user = f"system:node:{self.name}"
        argv: list[str | Path] = [
            self.control_plane.binaries / "kubelet",
            f"--config={config}",
            f"--kubeconfig={self._kubeconfig('kubelet', common_name=user, organization='system:nodes')}",
            f"--root-dir={self.slot.data / 'kubelet'}",
            f"--cert-dir={self.slot.data / 'kubelet' / 'pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.gateway}",
        ]
        self.processes.start("kubelet", argv, pass_fds=self._lock())

    def _kubeconfig(self, name: str, *, common_name: str, organization: str | None = None) -> Path:
        path = self.directory / f"{name}.kubeconfig"
        pair = self.control_plane.authority.issue(name, common_name=common_name, organization=organization)
        self.control_plane.write_kubeconfig(path, pair=pair)
        return path

    def _lock(self) -> list[int]:
        assert self.slot.lock is not None
        return [self.slot.lock.fileno()]

    def _build_containerd_config(self) -> str:
        return f"""\
version = 2
root = "{self.slot.data / "containerd"}"
state = "{self.slot.run / "containerd"}"
[grpc]
address = "{self.slot.containerd_socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{self.slot.data / "containerd" / "opt"}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "distillchain.io/tests/pause:1"
netns_mounts_under_state_dir = true
# Where root lacks CAP_SYS_RESOURCE, runc may not lower a score and exits without naming the reason.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{self._tools.runc}"
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{self._tools.cni}"
conf_dir = "{self.directory / "cni"}"
"""

    def _build_cni_config(self) -> dict[str, Any]:
        """Without `isGateway`: `Slot` sets the bridge's address, and the plugin would make this machine a router."""
        pool = {"subnet": self.slot.subnet, "gateway": self.slot.gateway, "rangeStart": f"10.213.{self.slot.number}.10"}
        ipam = {
            "type": "host-local",
            "ranges": [[pool]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.slot.run / "addresses"),
        }
        bridge = {"type": "bridge", "bridge": self.slot.bridge, "isGateway": False, "ipMasq": False, "ipam": ipam}
        return {"cniVersion": "0.4.0", "name": self.slot.bridge, "plugins": [bridge]}

    def _build_kubelet_config(self) -> dict[str, Any]:
        (port,) = free_ports(1)
        serving = self.control_plane.authority.issue(
            "kubelet-server", common_name=self.name, hosts=[self.name, self.gateway]
        )
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.gateway,
            "port": port,
            "readOnlyPort": 0,
            "healthzPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.control_plane.ca)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "containerRuntimeEndpoint": f"unix://{self.slot.containerd_socket}",
            "podLogsDir": str(self.slot.data / "kubelet" / "pod-logs"),
            "clusterDomain": "cluster.local",
            "clusterDNS": [self.gateway],  # without a ClusterDNS there, a lookup in a pod fails at once
            "resolvConf": "",
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            # Do not evict pods because the machine's disk is nearly full.
            "evictionHard": {
                "memory.available": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        }

    def _is_ready(self) -> bool:
        """Whether the node is Ready and the taint of a new node is gone, which takes a moment longer."""
        self.processes.check("containerd", "kube-scheduler", "kubelet")
        got = self.control_plane.kubectl("get", "node", self.name, "-o", "json", check=False)
        if got.returncode != 0:
            return False
        node = json.loads(got.stdout)
        ready = any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
        return ready and not node["spec"].get("taints")

    def _dump(self) -> str:
        node = self.control_plane.kubectl("describe", "node", self.name, check=False).stdout
        return "\n".join([node, *(self.processes.log_tail(name) for name in ("kubelet", "containerd"))])
