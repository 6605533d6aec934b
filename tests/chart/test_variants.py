"""How the rendered chart differs from the default, golden one for the other value sets of charts/distillchain/ci.

Needs no cluster; marked `cluster` because helm is built with the cluster's binaries.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import yaml

from chart.helm import CHART, NAMESPACE, documents, helm, named, render, values_of
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_operator.jobs.stage_job import JobDefaults, build_job

pytestmark = pytest.mark.cluster


@functools.cache
def rendered(name: str) -> str:
    return render(*values_of(name))


def objects_of(name: str) -> list[dict[str, Any]]:
    return documents(rendered(name))


def kinds_of(name: str) -> list[tuple[str, str]]:
    return sorted((item["kind"], item["metadata"]["name"]) for item in objects_of(name))


def pod_of(name: str) -> dict[str, Any]:
    """The pod spec of the operator."""
    spec: dict[str, Any] = named(objects_of(name), "Deployment")["spec"]["template"]["spec"]
    return spec


def environment_of(name: str) -> dict[str, Any]:
    (container,) = pod_of(name)["containers"]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def test_an_operator_for_some_namespaces_has_no_right_outside_them():
    objects = objects_of("namespaced")
    assert not [item for item in objects if item["kind"].startswith("ClusterRole")]
    roles = {
        item["metadata"]["namespace"]: item["rules"]
        for item in objects
        if item["kind"] == "Role" and "test" not in item["metadata"]["name"]
    }
    cluster_role = named(objects_of("default"), "ClusterRole", "-operator")
    assert list(roles) == ["ml", "nlp", NAMESPACE]
    assert roles["ml"] == roles["nlp"] == cluster_role["rules"]
    assert {resource for rule in roles[NAMESPACE] for resource in rule["resources"]} == {"leases"}
    bindings = [item for item in objects if item["kind"] == "RoleBinding" and "test" not in item["metadata"]["name"]]
    assert [item["metadata"]["namespace"] for item in bindings] == ["ml", "nlp", NAMESPACE]
    assert {subject["namespace"] for item in bindings for subject in item["subjects"]} == {NAMESPACE}


def test_an_operator_for_some_namespaces_differs_from_the_default_only_in_that():
    default, namespaced = environment_of("default"), environment_of("namespaced")
    assert namespaced == default | {"DISTILLCHAIN_NAMESPACES": "ml,nlp"}
    assert named(objects_of("namespaced"), "DistillationChain")["metadata"]["namespace"] == "ml"
    assert named(objects_of("namespaced"), "Pod")["metadata"]["namespace"] == NAMESPACE


def test_high_availability_adds_a_replica_a_disruption_budget_and_alerts():
    added = set(kinds_of("ha")) - set(kinds_of("default"))
    assert added == {
        (kind, "distillchain-operator") for kind in ("PodDisruptionBudget", "PrometheusRule", "PodMonitor")
    }

    objects = objects_of("ha")
    deployment, budget = named(objects, "Deployment"), named(objects, "PodDisruptionBudget")
    assert (deployment["spec"]["replicas"], budget["spec"]["maxUnavailable"]) == (2, 1)
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]

    (spread,) = pod_of("ha")["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "DoNotSchedule")
    assert pod_of("ha")["priorityClassName"] == "system-cluster-critical"
    assert environment_of("ha") == environment_of("default")


def test_openshift_chooses_the_user_of_every_pod():
    objects = objects_of("openshift")
    for spec in (pod_of("openshift"), named(objects, "Pod")["spec"]):
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    template = yaml.safe_load(named(objects, "ConfigMap", "-operator")["data"]["pod-template.yaml"])
    defaults = JobDefaults("registry.example/trainer:1", template)
    with_pod = named(objects, "DistillationChain")
    for chain in map(parse_chain, (with_pod, without_pod(with_pod))):
        pod = build_job(chain, build_plan(chain).stages[0], defaults=defaults)["spec"]["template"]["spec"]
        context = pod["securityContext"]
        assert {context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {None}
        assert context["runAsNonRoot"] is True


def without_pod(chain: dict[str, Any]) -> dict[str, Any]:
    template = {key: value for key, value in chain["spec"]["template"].items() if key != "pod"}
    return chain | {"spec": chain["spec"] | {"template": template}}


def test_the_store_of_the_chart_reaches_the_pods_of_chains():
    template = yaml.safe_load(named(objects_of("openshift"), "ConfigMap", "-operator")["data"]["pod-template.yaml"])
    (trainer,) = template["spec"]["containers"]
    assert trainer["env"] == [
        {"name": "AWS_ENDPOINT_URL_S3", "value": "http://s3.openshift-storage.svc"},
        {"name": "AWS_REGION", "value": "us-east-1"},
    ]
    mounts = {mount["mountPath"] for mount in pod_of("openshift")["containers"][0]["volumeMounts"]}
    assert environment_of("openshift")["DISTILLCHAIN_POD_TEMPLATE"].rpartition("/")[0] in mounts


SKIP_DRY_RUN = {"argocd.argoproj.io/sync-options": "SkipDryRunOnMissingResource=true"}
OPERATOR = "Deployment"
POD = "spec.template.spec"
EVERYTHING: list[tuple[str, str, Any]] = [
    (OPERATOR, "metadata.name", "relay-operator"),
    (OPERATOR, "metadata.labels.team", "platform"),
    (OPERATOR, "metadata.annotations", {"example.com/deployment": "kept"}),
    (OPERATOR, "spec.replicas", 3),
    (OPERATOR, "spec.template.metadata.labels.tier", "operators"),
    (OPERATOR, f"{POD}.containers.0.image", f"registry.example/ml/operator@sha256:{'0123456789abcdef' * 4}"),
    (OPERATOR, f"{POD}.containers.0.args", ["--resync-s=30"]),
    (OPERATOR, f"{POD}.imagePullSecrets", [{"name": "shared"}, {"name": "registry"}]),
    (OPERATOR, "spec.strategy.rollingUpdate.maxSurge", 0),
    (OPERATOR, f"{POD}.volumes.0.emptyDir", {"sizeLimit": "100Mi"}),
    (OPERATOR, f"{POD}.dnsPolicy", "Default"),
    (OPERATOR, f"{POD}.dnsConfig", {"options": [{"name": "ndots", "value": "1"}]}),
    (OPERATOR, f"{POD}.hostAliases.0.hostnames", ["api.example"]),
    (OPERATOR, f"{POD}.containers.0.resources.limits.cpu", "2"),
    (OPERATOR, f"{POD}.serviceAccountName", "relay"),
    (OPERATOR, f"{POD}.priorityClassName", "system-cluster-critical"),
    (OPERATOR, f"{POD}.nodeSelector", {"kubernetes.io/os": "linux"}),
    (OPERATOR, f"{POD}.tolerations.0.key", "node-role.kubernetes.io/control-plane"),
    (OPERATOR, f"{POD}.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution.0.weight", 1),
    (OPERATOR, f"{POD}.topologySpreadConstraints.0.topologyKey", "topology.kubernetes.io/zone"),
    (OPERATOR, f"{POD}.containers.0.volumeMounts.2.mountPath", "/etc/company-ca"),
    (OPERATOR, f"{POD}.volumes.2.configMap.name", "company-ca"),
    ("ServiceAccount relay", "metadata.annotations", {"example.com/note": "kept"}),
    ("PodDisruptionBudget", "spec.maxUnavailable", "50%"),
    ("Service", "metadata.annotations", {"prometheus.io/scrape": "true"}),
    ("ServiceMonitor", "metadata.labels.release", "prometheus"),
    ("ServiceMonitor", "metadata.annotations", SKIP_DRY_RUN),
    ("ServiceMonitor", "spec.endpoints.0.honorLabels", True),
    ("PrometheusRule", "metadata.annotations", SKIP_DRY_RUN),
    ("Service", "spec.ipFamilyPolicy", "PreferDualStack"),
    ("Service", "spec.ipFamilies", ["IPv4"]),
    ("PrometheusRule", "metadata.labels.release", "prometheus"),
    ("PrometheusRule", "spec.groups.0.rules.0.labels", {"team": "platform", "severity": "page"}),
    ("ConfigMap relay-dashboard", "metadata.annotations", {"grafana_folder": "ML"}),
    ("NetworkPolicy", "spec.egress.1.to", [{"ipBlock": {"cidr": "10.0.0.0/8"}}]),
    (
        "NetworkPolicy",
        "spec.ingress.0.from",
        [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    ),
    ("NetworkPolicy", "spec.policyTypes", ["Ingress", "Egress"]),
    ("DistillationChain", "spec.storage.uri", "s3://models/distillchain-test"),
    ("DistillationChain", "spec.storage.secretRef", {"name": "s3-credentials"}),
]


@pytest.mark.parametrize("item, path, want", EVERYTHING)
def test_a_value_reaches_its_field(item: str, path: str, want: Any):
    kind, _, name = item.partition(" ")
    found = next(
        found
        for found in objects_of("everything")
        if found["kind"] == kind and (not name or found["metadata"]["name"] == name)
    )
    value: Any = found
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    assert value == want


def test_settings_and_the_pod_template_reach_the_operator():
    want = {
        "DISTILLCHAIN_LOG_LEVEL": "debug",
        "DISTILLCHAIN_LOG_FORMAT": "plain",
        "DISTILLCHAIN_RESYNC_S": "60",
        "DISTILLCHAIN_PROGRESS_S": "5",
        "DISTILLCHAIN_MAX_RUNNING_CHAINS": "20",
        "DISTILLCHAIN_TRAINER_IMAGE": "registry.example/ml/trainer:2.0",
        "DISTILLCHAIN_NETWORK_POLICIES": "false",
        "DISTILLCHAIN_LEASE_DURATION_S": "60",
        "DISTILLCHAIN_LEASE_DEADLINE_S": "40",
        "DISTILLCHAIN_LEASE_RETRY_S": "10",
        "TZ": "UTC",
    }
    assert environment_of("everything").items() >= want.items()


def test_the_values_of_chains_reach_the_pod_template_of_the_operator():

    template = yaml.safe_load(named(objects_of("everything"), "ConfigMap", "-operator")["data"]["pod-template.yaml"])
    assert template["metadata"]["labels"] == {"queue": "gpu"}
    spec = template["spec"]
    assert (spec["serviceAccountName"], spec["nodeSelector"]) == ("trainer", {"accelerator": "a10"})
    assert spec["imagePullSecrets"] == [{"name": "shared"}, {"name": "registry"}]
    trainer = next(container for container in spec["containers"] if container["name"] == "trainer")
    proxy, bundle = "http://proxy.example:3128", "/etc/distillchain-ca/bundle.pem"
    assert [(entry["name"], entry["value"]) for entry in trainer["env"]] == [
        ("AWS_REGION", "eu-central-1"),  # of the pod template; it takes precedence over chains.env and storage.region
        ("HF_HUB_OFFLINE", "1"),
        ("AWS_ENDPOINT_URL_S3", "https://s3.example"),
        *[("HTTP_PROXY", proxy), ("http_proxy", proxy), ("HTTPS_PROXY", proxy), ("https_proxy", proxy)],
        *[("NO_PROXY", ".example"), ("no_proxy", ".example")],
        *[("AWS_CA_BUNDLE", bundle), ("SSL_CERT_FILE", bundle), ("REQUESTS_CA_BUNDLE", bundle)],
    ]
    assert trainer["imagePullPolicy"] == "Always"
    # Limits of the pod template take precedence over chains.resources.
    assert trainer["resources"] == {"requests": {"cpu": "4"}, "limits": {"nvidia.com/gpu": 1, "memory": "32Gi"}}
    assert trainer["volumeMounts"] == [
        {"name": "distillchain-ca", "mountPath": "/etc/distillchain-ca", "readOnly": True}
    ]
    assert spec["volumes"] == [{"name": "distillchain-ca", "configMap": {"name": "company-ca"}}]


def test_an_operator_that_creates_no_network_policies_has_no_right_on_them():
    def resources(name: str) -> set[str]:
        rules = named(objects_of(name), "ClusterRole", "-operator")["rules"]
        return {resource for rule in rules for resource in rule["resources"]}

    assert resources("default") - resources("everything") == {"networkpolicies"}


def test_the_dashboard_is_the_file_of_the_chart():
    data = named(objects_of("everything"), "ConfigMap", "-dashboard")["data"]
    assert json.loads(data["distillchain.json"])["uid"] == "distillchain"


@pytest.mark.parametrize(
    "settings, operator, trainer",
    [
        (["image.registry=a"], "a/distillchain-operator", "a/distillchain-trainer"),
        (["image.registry=a", "chains.image.registry=b"], "a/distillchain-operator", "b/distillchain-trainer"),
        (
            ["image.registry=a", "chains.image.registry=b", "global.imageRegistry=c"],
            "c/distillchain-operator",
            "c/distillchain-trainer",
        ),
        (["image.registry="], "distillchain-operator", "distillchain-trainer"),
        (["image.registry=a", "chains.image.registry="], "a/distillchain-operator", "distillchain-trainer"),
        (["image.registry=a", "chains.image.registry=null"], "a/distillchain-operator", "a/distillchain-trainer"),
    ],
)
def test_one_registry_is_enough_for_both_images(settings: list[str], operator: str, trainer: str):
    objects = documents(render(*(argument for setting in settings for argument in ("--set", setting))))
    (container,) = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}

    assert container["image"].rpartition(":")[0] == operator
    assert environment["DISTILLCHAIN_TRAINER_IMAGE"].rpartition(":")[0] == trainer


@pytest.mark.parametrize(
    "settings, want",
    [
        ([], None),
        (
            ["watchNamespaces={a,b}"],
            {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}]},
        ),
        (
            ["watchNamespaces={a,b}", "admissionPolicies.chains.namespaceSelector.matchLabels.x=y"],
            {"matchLabels": {"x": "y"}},
        ),
    ],
)
def test_the_policy_of_a_release_checks_no_chains_of_another_one(settings: list[str], want: dict[str, Any] | None):
    enabled = ["admissionPolicies.chains.enabled=true", *settings]
    objects = documents(render(*(argument for setting in enabled for argument in ("--set", setting))))
    binding = named(objects, "ValidatingAdmissionPolicyBinding", "-chains")

    assert binding["spec"].get("matchResources", {}).get("namespaceSelector") == want


@pytest.mark.parametrize("arguments, is_warned", [([], True), (["--set", "image.registry=registry.example"], False)])
def test_the_notes_say_that_the_default_registry_has_no_images(arguments: list[str], is_warned: bool):
    # `helm template` renders no notes, and a client-side dry run needs no cluster.
    output = helm("install", "relay", str(CHART), "--dry-run=client", *arguments)
    notes = output.partition("NOTES:")[2]

    assert ("no image is published in ghcr.io/example" in notes) is is_warned


@pytest.mark.parametrize(
    "settings, want",
    [
        ([], {"helm.sh/resource-policy": "keep", "argocd.argoproj.io/sync-options": "Prune=false,Delete=false"}),
        (["crds.keep=false"], None),
        (
            ["crds.annotations.argocd\\.argoproj\\.io/sync-options=Replace=true", "crds.annotations.a=b"],
            {"helm.sh/resource-policy": "keep", "argocd.argoproj.io/sync-options": "Replace=true", "a": "b"},
        ),
    ],
)
def test_a_kept_crd_is_neither_deleted_by_helm_nor_pruned_by_argo_cd(settings: list[str], want: dict[str, str] | None):
    arguments = [argument for setting in settings for argument in ("--set-string", setting)]
    kept = [] if want is None else ["--set", "crds.keep=true"]
    if want is None:
        arguments = ["--set", "crds.keep=false"]
    text = helm("template", "relay", str(CHART), *arguments, *kept)
    (crd,) = [item for item in documents(text) if item["kind"] == "CustomResourceDefinition"]

    assert crd["metadata"].get("annotations") == want


def test_all_objects_of_helm_test_are_hooks_and_bear_the_name_of_its_pod():
    """An object that is no hook stays in the release for ever; `helm test --logs` reads a pod with each hook's name."""
    for name in ("default", "namespaced"):
        of_test = [item for item in objects_of(name) if "component: test" in yaml.safe_dump(item["metadata"])]
        hooks = {item["kind"]: item["metadata"]["annotations"] for item in of_test}
        assert {item["metadata"]["name"] for item in of_test} == {"distillchain-test"}
        assert {annotations["helm.sh/hook"] for annotations in hooks.values()} == {"test"}
        weights = {kind: int(annotations["helm.sh/hook-weight"]) for kind, annotations in hooks.items()}
        assert {kind for kind, weight in weights.items() if weight < 0} == {
            *("ServiceAccount", "Role", "RoleBinding", "ConfigMap")
        }
        assert 0 < weights["DistillationChain"] < weights["Pod"]
