"""`template.cache`: its volume is checked as a volume of a pod is."""

from __future__ import annotations

from typing import Any

import pytest

from distillchain_api.faults import BadDocument
from distillchain_api.resource.cache import Cache

CLAIM = {"persistentVolumeClaim": {"claimName": "models"}}


@pytest.mark.parametrize(
    "volume, want",
    [
        ({"persistentVolumeClaim": {"claim": "models"}}, "volume.persistentVolumeClaim.claim: unknown field; did you mean claimName?"),
        ({"hostPat": {"path": "/mnt"}}, "volume.hostPat: unknown field; did you mean hostPath?"),
        ({"persistentVolumeClaim": {"name": "models"}}, "volume.persistentVolumeClaim.name: unknown field; no volume of a pod has it; remove it"),
        ({"hostPath": {"path": 5}}, "volume.hostPath.path: got 5, expected text; in YAML, quote it"),
        ({"name": "models", **CLAIM}, "volume.name: unknown field; the operator names the volume: remove it"),
        ({}, "volume: got none, expected one source of a volume, such as persistentVolumeClaim, hostPath or emptyDir"),
    ],
)  # fmt: skip
def test_a_volume_that_no_pod_can_have_is_refused(volume: dict[str, Any], want: str):
    with pytest.raises(BadDocument) as refused:
        Cache.parse({"volume": volume})

    assert str(refused.value) == want


@pytest.mark.parametrize("size, want", [("100Gi", 100 * 2**30), ("1500M", 1_500_000_000), (4096, 4096), (None, None)])
def test_a_size_is_read_as_kubernetes_reads_it(size: Any, want: int | None):
    assert Cache(volume=CLAIM, max_size=size).max_bytes == want


@pytest.mark.parametrize("size", ["0", "-5Gi", "large", 1.5])
def test_what_is_no_size_is_refused(size: Any):
    with pytest.raises(BadDocument, match="maxSize"):
        Cache.parse({"volume": CLAIM, "maxSize": size})
