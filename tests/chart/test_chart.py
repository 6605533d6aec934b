"""What the chart renders by default (a golden manifest), and what its schema refuses.

test_variants.py has the differences for other values. Needs no cluster; marked `cluster` because helm is built with the
cluster's binaries.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from chart.helm import CHART, CHECKOUT, NAMESPACE, VALUES, documents, helm, named, render, values_of
from cluster.errors import CommandFailed
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_operator.jobs.stage_job import JobDefaults, build_job
from distillchain_operator.metrics.operator_metrics import Metrics
from distillchain_operator.settings import Settings

pytestmark = pytest.mark.cluster

GOLDEN = CHECKOUT / "tests" / "golden"
FREE_FORM = {  # maps of Kubernetes or of the user, with any keys
    *("global", "commonLabels", "podSecurityContext", "securityContext", "nodeSelector", "podAnnotations", "podLabels"),
    *("deploymentAnnotations", "serviceAccount.annotations", "metrics.service.annotations", "metrics.dashboard.labels"),
    *("metrics.dashboard.annotations", "metrics.serviceMonitor.labels", "metrics.podMonitor.labels"),
    *("metrics.prometheusRule.labels", "metrics.prometheusRule.alertLabels", "chains.podTemplate.spec"),
    *("crds.annotations", "chains.resources.requests", "chains.resources.limits"),
    *("resources.requests", "resources.limits", "test.resources.requests", "test.resources.limits"),
}


def test_the_rendered_chart_is_the_golden_one():
    rendered = render()
    path = GOLDEN / "chart-default.yaml"
    if os.environ.get("DISTILLCHAIN_UPDATE_GOLDEN") == "1":
        path.write_text(rendered)
    assert path.read_text() == rendered, "reviewed the change? rewrite with DISTILLCHAIN_UPDATE_GOLDEN=1"


@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing_to_lint(name: str):
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *values_of(name))


def test_the_generated_files_of_the_chart_are_current():
    for arguments in (["--check"], ["--check", "--config"]):
        argv = [sys.executable, str(CHECKOUT / "charts" / "generate.py"), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "setting, want",
    [
        ("crd.install=true", "'crd'"),
        ("crds.instal=true", "'instal'"),
        ("watchNamespace={ml}", "'watchNamespace'"),
        ("image.tags=1", "'tags'"),
        ("chains.podTemplate.specs.x=1", "'specs'"),
        ("metrics.serviceMonitor.enable=true", "'enable'"),
        ("resources.limit.memory=1Gi", "'limit'"),
        ("replicaCount=2", "'replicaCount'"),
        ("podDisruptionBudget.maxUnavailable=0", "/podDisruptionBudget/maxUnavailable"),
        ("operator.logLevel=loud", "/operator/logLevel"),
        ("image.digest=latest", "/image/digest"),
        ("test.storage.uri=models/distill", "/test/storage/uri"),
        ("metrics.port=80", "/metrics/port"),
        ("admissionPolicies.chains.validationActions={Refuse}", "/admissionPolicies/chains/validationActions/0"),
        ("chains.caBundle.configmap=x", "'configmap'"),
        ("chains.proxy.https=proxy.example", "/chains/proxy/https"),
        ("strategy.type=Rolling", "/strategy/type"),
        ("tmpSizeLimit=much", "/tmpSizeLimit"),
        ("metrics.service.ipFamilies={IPv5}", "/metrics/service/ipFamilies/0"),
        ("global.imagePullSecrets[0].nam=x", "/global/imagePullSecrets/0"),
        ("extraArgs={debug}", "/extraArgs/0"),
        ("chains.storage.endpointUrl=https://bob:secret@s3.example", "/chains/storage/endpointUrl"),
        ("test.storage.endpointUrl=https://bob:secret@s3.example", "/test/storage/endpointUrl"),
    ],
)
def test_the_schema_refuses_a_wrong_value_and_names_it(setting: str, want: str):
    with pytest.raises(CommandFailed) as refused:
        render("--set", setting)
    assert want in refused.value.output


@pytest.mark.parametrize(
    "settings, want",
    [
        (["serviceAccount.create=false"], "serviceAccount.name: missing, and serviceAccount.create is false"),
        (["metrics.enabled=false", "metrics.podMonitor.enabled=true"], "metrics.enabled: got false, and a monitor"),
        (["metrics.enabled=false", "metrics.prometheusRule.enabled=true"], "metrics.enabled: got false, and a monitor"),
        (
            ["metrics.serviceMonitor.enabled=true", "metrics.podMonitor.enabled=true"],
            "metrics.podMonitor.enabled: got true together with metrics.serviceMonitor.enabled",
        ),
        (["leaderElection.renewDeadlineSeconds=15"], "leaderElection.renewDeadlineSeconds: expected a number above"),
        (
            ["leaderElection.retryPeriodSeconds=9"],
            "leaderElection.renewDeadlineSeconds: expected a number above 1.2 times",
        ),
        (
            ["admissionPolicies.chains.enabled=true", "admissionPolicies.chains.validationActions={Deny,Warn}"],
            "admissionPolicies.chains.validationActions: got Deny together with Warn",
        ),
        (["metrics.port=8080"], "metrics.port: got 8080, where the operator answers the probes"),
        (["chains.image.repository="], "helm test needs the trainer image; set chains.image.repository"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_the_remedy(settings: list[str], want: str):
    with pytest.raises(CommandFailed) as refused:
        render(*[argument for setting in settings for argument in ("--set", setting)])
    assert want in refused.value.output


def test_without_rbac_no_roles_are_rendered():
    kinds = [item["kind"] for item in documents(render("--set", "rbac.create=false"))]
    assert not [kind for kind in kinds if "Role" in kind]


def test_names_and_selectors_that_an_upgrade_cannot_change_are_the_released_ones():
    """With another selector the API server refuses the upgrade; with another name, two operators run side by side."""
    objects = documents(render())
    deployment = named(objects, "Deployment")
    labels = {
        "app.kubernetes.io/name": "distillchain",
        "app.kubernetes.io/instance": "distillchain",
        "app.kubernetes.io/component": "operator",
    }

    assert deployment["metadata"]["name"] == "distillchain-operator"
    assert deployment["spec"]["selector"] == {"matchLabels": labels}
    assert named(objects, "ServiceAccount", "operator")["metadata"]["name"] == "distillchain-operator"
    bindings = {item["metadata"]["name"]: item["roleRef"]["name"] for item in objects if "Binding" in item["kind"]}
    assert bindings == {
        "distillchain-operator": "distillchain-operator",
        "distillchain-operator-leader": "distillchain-operator-leader",
        "distillchain-test": "distillchain-test",
    }


def test_schema_and_values_have_the_same_keys_and_only_the_free_form_maps_are_open():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def differences(schema: dict[str, Any], values: Any, path: str = "") -> Iterator[str]:
        where = path.removesuffix(".")
        if where in FREE_FORM or schema.get("type") != "object":
            return
        if schema.get("additionalProperties") is not False:
            yield f"{where}: open"
            return
        known = set(schema["properties"])
        yield from (f"{path}{key}: not in the schema" for key in sorted(set(values) - known))
        if values and not where.endswith(("resources", "Probe")):  # Kubernetes' own; the defaults state some of them
            yield from (f"{path}{key}: not in values.yaml" for key in sorted(known - set(values)))
        for key in set(values) & known:
            yield from differences(schema["properties"][key], values[key], f"{path}{key}.")

    assert list(differences(schema, values)) == []


@pytest.mark.parametrize("name", VALUES)
def test_the_operator_knows_every_setting_of_the_chart(name: str):
    container = named(documents(render(*values_of(name))), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    given = {entry["name"]: str(entry.get("value", "ml")) for entry in container["env"]}
    given.pop("DISTILLCHAIN_POD_TEMPLATE", None)  # a file in the pod
    assert given["DISTILLCHAIN_LEASE"].startswith("$(OPERATOR_NAMESPACE)/")  # which the kubelet replaces
    given["DISTILLCHAIN_LEASE"] = given["DISTILLCHAIN_LEASE"].replace("$(OPERATOR_NAMESPACE)", NAMESPACE)
    settings = Settings.from_environment(given)  # raises on an unknown one
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (settings.health_port, settings.metrics_port) == (ports["health"], ports["metrics"])


@pytest.mark.parametrize("name", VALUES)
def test_the_operator_can_build_a_job_for_the_chain_of_helm_test(name: str):
    objects = documents(render(*values_of(name)))
    chain = parse_chain(named(objects, "DistillationChain"))
    plan = build_plan(chain)
    assert len(plan.stages) == 1
    job = build_job(chain, plan.stages[0], defaults=JobDefaults("registry.example/trainer:1"))
    pod = job["spec"]["template"]["spec"]
    (prepare,) = pod["initContainers"]
    trainer = next(container for container in pod["containers"] if container["name"] == "trainer")
    mounted = {mount["mountPath"] for mount in trainer["volumeMounts"]}
    assert mounted <= {mount["mountPath"] for mount in prepare["volumeMounts"]}
    assert "nvidia.com/gpu" not in trainer["resources"].get("limits", {})


def test_alerts_and_dashboard_use_only_metrics_that_the_operator_has():
    objects = documents(render(*values_of("everything")))
    rules = [rule for group in named(objects, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    panels = json.loads(named(objects, "ConfigMap", "-dashboard")["data"]["distillchain.json"])["panels"]
    queries = [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    known = {
        f"{family.name}{suffix}"
        for family in Metrics().registry.collect()
        for suffix in suffixes.get(family.type, [""])
    }
    names = {name for expression in queries for name in re.findall(r"distillchain_\w+", expression)}
    assert names
    assert names <= known
