"""metadata.managedFields of a chain, on the real API server."""

from __future__ import annotations

import copy
import json
import secrets
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from cluster.waiting import wait_until
from distillchain_api.resource.crd import build_crd


@pytest.mark.cluster
def test_managed_fields_have_status_as_a_whole_also_after_an_upgrade(control_plane: ControlPlane, namespace: str):
    """With the name of each field of status, they are a third of a chain, and each write costs the API server more."""
    new = crd_of_dolls()
    old = copy.deepcopy(new)
    del old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["x-kubernetes-map-type"]
    control_plane.apply(old)
    control_plane.wait_until_served("dolls")
    doll = {"apiVersion": "dolls.example/v1alpha1", "kind": "Doll", "metadata": {"name": "doll"}, "spec": {}}
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(doll))

    def managed_status(message: str) -> dict[str, Any]:
        patch = {"status": {"message": message, "stages": [{"name": "a", "phase": "Pending", "digest": "x"}]}}
        how = ("--subresource=status", "--type=merge", "-p", json.dumps(patch))
        control_plane.kubectl("patch", "doll/doll", "-n", namespace, *how)
        fields = control_plane.get("doll/doll", "-n", namespace, "--show-managed-fields")["metadata"]["managedFields"]
        (managed,) = [entry["fieldsV1"]["f:status"] for entry in fields if entry.get("subresource") == "status"]
        return managed

    assert "f:message" in managed_status("before")
    control_plane.apply(new)
    # The API server takes a moment to follow. A status that changes nothing changes no managedFields.
    what = "a status that is managed as a whole"
    wait_until(what, lambda: managed_status(secrets.token_hex()) == {}, deadline_s=60, poll_s=1)


def crd_of_dolls() -> dict[str, Any]:
    """Our CRD for another kind, so that the chains of other tests do not change, with any spec."""
    crd = build_crd()
    crd["metadata"]["name"] = "dolls.dolls.example"
    names = {"kind": "Doll", "listKind": "DollList", "plural": "dolls", "singular": "doll"}
    crd["spec"] |= {"group": "dolls.example", "names": names}
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = {"type": "object"}
    return crd
