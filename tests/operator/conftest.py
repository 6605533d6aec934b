"""An operator as a process with its own ServiceAccount and the manifests of config/, and one chain for it.

Real Job and garbage-collection controllers create, replace and delete the pods; the tests write the pods' status, as a
kubelet would.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.controlplane import ControlPlane
from cluster.operator_process import OPERATOR_NAMESPACE, SERVICE_ACCOUNT, OperatorProcess
from cluster.ports import free_ports
from cluster.waiting import wait_until
from relay import Relay


@pytest.fixture(scope="module")
def metrics_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="module")
def operator(
    control_plane: ControlPlane, repository: Path, metrics_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """An operator of the whole cluster, which a test may kill and start again."""
    control_plane.kubectl("apply", "-f", str(repository / "crds"), "-f", str(repository / "config" / "access.yaml"))
    control_plane.restart_controllers()
    kubeconfig = control_plane.kubeconfig_for(OPERATOR_NAMESPACE, SERVICE_ACCOUNT)
    settings = {
        "DISTILLCHAIN_LOG_FORMAT": "plain",
        "DISTILLCHAIN_METRICS_PORT": str(metrics_port),
        "PYTHONWARNINGS": "error::RuntimeWarning",  # such as a coroutine that was never awaited
    }
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("operator") / "operator.log", settings) as running:
        # Before that, its modules are imported and SIGTERM ends it in Python's own way: a short test may end so soon.
        wait_until(
            "the operator to start",
            lambda: "operator started" in running.log.read_text(),
            deadline_s=60,
            dump=running.tail,
        )
        yield running
        running.stop()  # a test may have started it again a moment ago, so SIGTERM may come before it is handled
    log = running.log.read_text()
    assert "Traceback" not in log, log


@pytest.fixture
def relay(control_plane: ControlPlane, namespace: str, operator: OperatorProcess) -> Relay:
    return Relay(control_plane, namespace, operator)
