"""An operator of this checkout or another one, as a process beside a test cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.controlplane import ControlPlane
from cluster.ports import free_ports

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS = ("api", "cli", "operator", "report", "store", "trainer")


@dataclass(frozen=True)
class Operator:
    """A running operator."""

    pid: int
    port: int

    def scrape(self) -> str:
        """Its metrics; empty before it serves them."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def memory_mb(self) -> tuple[float, float]:
        """Resident memory: the largest so far, and now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        peak, now = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) / 1024 for name in ("VmHWM", "VmRSS"))
        return peak, now

    def cpu_s(self) -> float:
        """CPU time so far."""
        times = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def total(page: str, metric: str, *, label: str = "") -> float:
    """The sum of a metric over its labels, or over those that contain `label`."""
    found = re.findall(rf"^{metric}(\{{.*\}})? (\S+)$", page, re.MULTILINE)
    return sum(float(value) for labels, value in found if label in labels)


def load() -> str:
    """The processes of the last minute that could run, on average."""
    return Path("/proc/loadavg").read_text().split()[0]


@contextmanager
def operator_of(
    checkout: Path, control_plane: ControlPlane, settings: Mapping[str, str] | None = None
) -> Iterator[Operator]:
    """The operator of a checkout.

    Args:
        settings: variables of its environment.
    """
    (port,) = free_ports(1)
    paths = os.pathsep.join(str(checkout / part) for part in PARTS)
    environment = {**os.environ, "PYTHONPATH": paths, "KUBECONFIG": str(control_plane.kubeconfig)}
    environment |= {"DISTILLCHAIN_METRICS_PORT": str(port), **(settings or {})}
    with (control_plane.directory / "operator.log").open("ab") as output:
        process = subprocess.Popen([sys.executable, "-m", "distillchain_operator"], env=environment, stderr=output)
        try:
            yield Operator(process.pid, port)
        finally:
            process.terminate()
            process.wait(30)


def install_crd(control_plane: ControlPlane) -> None:
    """Applies the CRD of this checkout."""
    control_plane.kubectl("apply", "--server-side", "-f", str(CHECKOUT / "crds"))
    control_plane.wait_until_served("distillationchains")
