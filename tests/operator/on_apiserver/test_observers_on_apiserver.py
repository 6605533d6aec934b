"""What GitOps tools, Helm and Prometheus see of a chain on a real API server."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chain_builders import a_document, a_failure
from chart.helm import helm
from cluster.errors import CommandFailed
from distillchain_api.failures import FailureClass
from relay import DEADLINE_S, Relay

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]


def test_the_operator_writes_only_the_status(relay: Relay):
    document = a_document()
    relay.kubectl("apply", "--server-side", "--field-manager=gitops", "-f", "-", input=json.dumps(document))
    relay.commit("mini")
    chain = relay.cluster.get("dchain", "relay", "-n", relay.namespace, "--show-managed-fields")
    assert "finalizers" not in chain["metadata"]
    assert "annotations" not in chain["metadata"]
    assert chain["metadata"]["generation"] == 1
    others = [f for f in chain["metadata"]["managedFields"] if f["manager"] != "gitops"]
    assert [(f.get("subresource"), list(f["fieldsV1"])) for f in others] == [("status", ["f:status"])]
    diff = relay.cluster.kubectl(
        "-n", relay.namespace, "diff", "--server-side", "--field-manager=gitops", "-f", "-",
        input=json.dumps(document), check=False,
    )  # fmt: skip
    assert (diff.returncode, diff.stdout) == (0, "")


def test_metrics_follow_a_chain_from_pending_to_deleted(relay: Relay, metrics_port: int):
    def scrape() -> dict[str, float]:
        """The samples of this test's namespace, and those without a namespace."""
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return {
            f"{sample.name}{''.join(f' {v}' for k, v in sorted(sample.labels.items()) if k != 'namespace')}": sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("namespace", relay.namespace) == relay.namespace
        }

    def wait_for(series: str, value: float | None = None) -> None:
        relay.wait(
            f"{series} to be {value}", lambda: series in (now := scrape()) and (value is None or now[series] == value)
        )

    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    wait_for("distillchain_stage_since_timestamp_seconds relay mini pending")
    relay.run(pod)
    wait_for("distillchain_stage_since_timestamp_seconds relay mini running")
    assert scrape()["distillchain_chains Running"] == 1
    relay.commit("mini")
    wait_for("distillchain_chains Succeeded", 1)
    seen = scrape()
    assert seen["distillchain_stages_committed_total false"] == 1
    assert seen["distillchain_jobs_total created"] >= 1
    assert seen["distillchain_reconciles_total done"] >= 3
    assert seen["distillchain_api_requests_total 201 POST"] >= 2  # dry run of the pod, Job
    assert seen["distillchain_last_resync_timestamp_seconds"] <= time.time()
    assert "distillchain_stage_since_timestamp_seconds relay mini running" not in seen
    relay.kubectl("delete", "dchain", "relay")
    relay.wait("its series gone", lambda: not any(name.startswith("distillchain_chains ") for name in scrape()))


def test_gitops_tools_see_neither_drift_nor_conflict_after_a_chain_has_run(relay: Relay):
    document = a_document(stages=["mini"]) | {"metadata": {"name": "relay", "labels": {"team": "nlp"}}}
    text = json.dumps(document)
    relay.kubectl("apply", "--server-side", "--field-manager=argocd-controller", "-f", "-", input=text)
    relay.run(relay.wait_for_pod("mini"))
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")

    before = relay.chain()
    diff = ["diff", "--server-side", "--field-manager=argocd-controller", "-f", "-"]
    relay.kubectl(*diff, input=text)  # raises on a difference
    changed = json.dumps(document | {"metadata": {"name": "relay", "labels": {"team": "other"}}})
    assert relay.cluster.kubectl("-n", relay.namespace, *diff, input=changed, check=False).returncode == 1
    relay.kubectl("diff", "-f", "-", input=text)  # client-side

    other = ["apply", "--server-side", "--field-manager=kustomize-controller", "-f", "-"]
    relay.kubectl(*other, input=text)  # raises on a conflict
    after = relay.chain()
    assert (after["spec"], after["status"], after["metadata"]["generation"]) == (before["spec"], before["status"], 1)
    assert after["metadata"].get("finalizers") is None
    assert after["metadata"].get("annotations") is None
    shown = relay.cluster.get("dchain", "relay", "-n", relay.namespace, "--show-managed-fields")
    ours = [entry for entry in shown["metadata"]["managedFields"] if "f:status" in entry["fieldsV1"]]
    assert [entry["subresource"] for entry in ours] == ["status"]
    assert ours[0]["fieldsV1"].keys() == {"f:status"}


@pytest.mark.parametrize("ends_well", [True, False])
def test_helm_waits_for_a_chain_by_kstatus(relay: Relay, tmp_path: Path, ends_well: bool):
    """Flux waits with the same library."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: chains, version: 0.1.0}")
    (tmp_path / "templates" / "relay.yaml").write_text(json.dumps(a_document(stages=["mini"])))

    def deploy(verb: str, deadline_s: int) -> str:
        waiting = ["--wait", f"--timeout={deadline_s}s", "--namespace", relay.namespace]
        return helm(
            verb, "chains", str(tmp_path), *waiting, kubeconfig=relay.cluster.kubeconfig, home=tmp_path / "helm"
        )

    with pytest.raises(CommandFailed, match="InProgress"):
        deploy("install", 3)  # the stage waits for its pod
    if ends_well:
        relay.commit("mini")
        relay.wait_for_phase("Succeeded")
        deploy("upgrade", DEADLINE_S)
    else:
        answer = a_failure(relay.planned("mini"), FailureClass.GATE_NOT_MET, "accuracy 0.612 is too low")
        relay.end(relay.wait_for_pod("mini"), exit_code=68, message=answer.to_json(), reason="Error")
        relay.wait_for_phase("Failed")
        with pytest.raises(CommandFailed, match="Failed"):
            deploy("upgrade", DEADLINE_S)
