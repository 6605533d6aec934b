"""How many threads the models use, and how these wait for each other. Must run before torch is imported.

OpenMP threads spin while they wait. That is 1.5 times faster on idle cores (BERT-tiny, 2 cores: 1500 against 900
examples/s) and 10 to 30 times slower when another process holds one of them (30 to 280 against 900 to 1000).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

SAMPLE_S = 0.1  # ten of the kernel's ticks


def choose(processes: int = 1) -> None:
    """Sets OMP_NUM_THREADS and OMP_WAIT_POLICY unless they are set.

    Args:
        processes: how many share the CPUs; each gets an equal part, and at least one thread.
    """
    cpus = cpu_share()
    threads = max(1, cpus // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Half a CPU is left to the noise of other processes (a guess). A single thread has nobody to wait for.
    if threads > 1 and "OMP_WAIT_POLICY" not in os.environ and idle_cpus() < cpus - 0.5:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def cpu_share(limit_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs that this container may use: its affinity, bounded by its CPU limit (cgroup v2)."""
    # macOS has no affinity.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit_file.read_text().split()
    except (OSError, ValueError):
        return cpus
    # Rounded down: with a thread too many the kernel stops all of them when the quota of a period is used up.
    return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))


def idle_cpus(*, sample_s: float = SAMPLE_S, statistics: Path = Path("/proc/stat")) -> float:
    """CPUs of this machine that were idle during the sample."""
    try:
        before, at = _idle_ticks(statistics), time.monotonic()
        time.sleep(sample_s)
        idle = _idle_ticks(statistics) - before
    except (OSError, ValueError, IndexError):
        return float(os.cpu_count() or 1)
    return idle / os.sysconf("SC_CLK_TCK") / (time.monotonic() - at)


def _idle_ticks(statistics: Path) -> int:
    """The columns idle and iowait of the line `cpu`, over all CPUs."""
    fields = statistics.read_text().split("\n", 1)[0].split()
    return int(fields[4]) + int(fields[5])
