"""A rehearsal of v1beta1 on a real API server: both versions are served, and stored chains migrate without a conversion.

The group is another one, so that the rehearsal does not change the CRD of other tests.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bad_chains import GOOD
from cluster.controlplane import ControlPlane
from distillchain_api.resource.crd import build_crd
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.status import ChainStatus

pytestmark = pytest.mark.cluster

GROUP = "rehearsal.example"
NAME = f"distillationchains.{GROUP}"
STATUS = {"phase": "Running", "observedGeneration": 1, "stages": [{"name": "mini", "phase": "Running", "digest": "d"}]}


def crd(*, served: list[str], storage: str) -> dict[str, Any]:
    """Our CRD with these versions. With v1beta1 comes a field with a default, in both versions.

    In v1beta1 alone, a stored chain would get the default only when it is written, which would raise its generation.
    """
    document = build_crd()
    document["metadata"]["name"] = NAME
    document["spec"]["group"] = GROUP
    (first,) = document["spec"]["versions"]
    document["spec"]["versions"] = []
    for name in served:
        version = copy.deepcopy(first) | {"name": name, "storage": name == storage}
        if "v1beta1" in served:
            spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
            spec["properties"]["purpose"] = {"type": "string", "default": "not stated"}
        document["spec"]["versions"].append(version)
    return document


def read(control_plane: ControlPlane, version: str, namespace: str) -> dict[str, Any]:
    return control_plane.get(f"distillationchains.{version}.{GROUP}/good", "-n", namespace)


def test_stored_chains_stay_readable_and_migrate_to_the_next_version(control_plane: ControlPlane, namespace: str):
    def apply_crd(**versions: Any) -> None:
        control_plane.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(crd(**versions)))
        for version in versions["served"]:
            control_plane.wait_until_served(f"distillationchains.{version}.{GROUP}")

    apply_crd(served=["v1alpha1"], storage="v1alpha1")
    document = {**copy.deepcopy(GOOD), "apiVersion": f"{GROUP}/v1alpha1"}
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(document))
    patch = ("patch", NAME, "good", "-n", namespace, "--subresource=status", "--type=merge", "-p")
    control_plane.kubectl(*patch, json.dumps({"status": STATUS}))

    apply_crd(served=["v1alpha1", "v1beta1"], storage="v1beta1")
    old, new = (read(control_plane, version, namespace) for version in ("v1alpha1", "v1beta1"))
    assert new["spec"]["purpose"] == "not stated"
    assert (old["spec"], old["status"]) == (new["spec"], new["status"])
    # The generation stays the same, so no operator takes the new version for an edit.
    assert old["metadata"]["generation"] == new["metadata"]["generation"] == 1
    known = {**new, "apiVersion": GOOD["apiVersion"]}
    known["spec"] = {name: value for name, value in new["spec"].items() if name != "purpose"}
    assert parse_chain(known, from_cluster=True).spec == parse_chain(GOOD).spec
    assert ChainStatus.parse(new["status"]).stages[0].phase == "Running"

    # What docs/api-stability.md says: write each chain once, then forget the old version.
    control_plane.kubectl("replace", "-f", "-", input=json.dumps(read(control_plane, "v1beta1", namespace)))
    stored = ("patch", "crd", NAME, "--subresource=status", "--type=merge", "-p")
    control_plane.kubectl(*stored, json.dumps({"status": {"storedVersions": ["v1beta1"]}}))
    apply_crd(served=["v1beta1"], storage="v1beta1")
    migrated = read(control_plane, "v1beta1", namespace)
    assert migrated["spec"]["purpose"] == "not stated"
    assert migrated["status"] == old["status"]
    assert migrated["metadata"]["uid"] == old["metadata"]["uid"]
    assert migrated["metadata"]["generation"] == 1
    control_plane.kubectl("delete", "crd", NAME)
