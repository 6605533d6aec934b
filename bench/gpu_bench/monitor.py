"""GPU utilisation and memory, sampled while a stage runs. Without NVIDIA's library there are no samples."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

INTERVAL_S = 0.2  # NVML itself averages over 1/6 to 1 s


@dataclass(frozen=True)
class Sample:
    at_s: float
    """time.monotonic()."""
    utilisation: float
    """Share of the time in which a kernel was running, 0 to 1. It says nothing about how full the GPU was."""
    memory_bytes: int
    """Of the whole device."""


class GpuMonitor:
    """Samples in a thread, within a `with` block."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> GpuMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5)

    def utilisation(self, since_s: float, until_s: float) -> float | None:
        """The mean between two times."""
        found = [sample.utilisation for sample in self.samples if since_s <= sample.at_s <= until_s]
        return round(sum(found) / len(found), 3) if found else None

    def peak_memory_gib(self) -> float | None:
        """Of all samples; other processes on the device are included."""
        return round(max(sample.memory_bytes for sample in self.samples) / 2**30, 2) if self.samples else None

    def _run(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not self._ended.wait(INTERVAL_S):
                self.samples.append(self._sample(pynvml, handle))
        except Exception:  # no library, no driver, or a driver that refuses: the bench goes on without samples
            return

    @staticmethod
    def _sample(pynvml: Any, handle: Any) -> Sample:
        rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return Sample(time.monotonic(), rates.gpu / 100, int(memory.used))
