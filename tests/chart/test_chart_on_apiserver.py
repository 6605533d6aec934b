"""The rendered chart on a real API server: objects are accepted, Pod Security is kept, and config/ is the same."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.helm import CHECKOUT, NAMESPACE, VALUES, documents, helm, named, render, values_of
from cli.parts import distillchain
from cluster.controlplane import ControlPlane
from cluster.errors import CommandFailed
from cluster.operator_process import install_manifests
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.yaml_text import load_documents
from distillchain_operator.jobs.stage_job import JobDefaults, build_job, build_probe_pod

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("chart")]  # one control plane for all of them


def monitoring_kind(kind: str) -> dict[str, Any]:
    """A CRD with the name of one of the Prometheus operator's, which accepts any spec."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    names = {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": names,
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own, because a test deletes the CRD. It has the CRDs of the project and of the Prometheus
    operator, and the namespaces of the value sets."""
    with ControlPlane(tmp_path_factory.mktemp("chart")) as running:
        install_manifests(running)
        running.apply(*map(monitoring_kind, ("ServiceMonitor", "PodMonitor", "PrometheusRule")))
        for kind in ("servicemonitors", "podmonitors", "prometheusrules"):
            running.wait_until_served(kind)
        for namespace in ("ml", "nlp"):
            running.kubectl("create", "namespace", namespace)
        yield running


@pytest.fixture
def namespace(cluster: ControlPlane) -> str:
    name = f"chart-{uuid.uuid4().hex[:6]}"
    cluster.create_namespace(name)
    return name


def dry_run(cluster: ControlPlane, *objects: dict[str, Any], verb: str = "apply") -> str:
    document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    return cluster.kubectl(verb, "--dry-run=server", "-f", "-", input=json.dumps(document)).stdout


@pytest.mark.parametrize("name", VALUES)
def test_the_api_server_accepts_every_object(name: str, cluster: ControlPlane):
    objects = documents(render(*values_of(name)))
    others = [item for item in objects if item["kind"] != "Pod"]  # a dry run does not create its service account
    output = dry_run(cluster, *others)
    assert output.count("(server dry run)") == len(others)


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_of_the_chart_is_admitted_by_pod_security_restricted(
    name: str, cluster: ControlPlane, namespace: str
):
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    objects = documents(render(*values_of(name)))
    template = named(objects, "Deployment")["spec"]["template"]
    document = named(objects, "DistillationChain")
    document["metadata"]["uid"] = str(uuid.uuid4())  # the API server sets one
    chain = parse_chain(document)
    job = build_job(chain, build_plan(chain).stages[0], defaults=JobDefaults("registry.example/trainer:1"))
    operator = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "operator"},
        "spec": template["spec"],
    }
    pods = [operator, named(objects, "Pod"), build_probe_pod(job)]
    for pod in pods:
        pod["metadata"] = {**pod["metadata"], "namespace": namespace}
        pod["spec"].pop("serviceAccountName", None)
        cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod))  # raises if it is refused

    pods[0]["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pods[0]))


def test_kustomize_applies_what_the_chart_renders(cluster: ControlPlane):
    # Read as kubectl reads it: PyYAML takes 1e-06, which kustomize writes, for a text.
    built = load_documents(cluster.kubectl("kustomize", str(CHECKOUT / "config")).stdout, source="config")
    rendered = documents(render("--values", str(CHECKOUT / "charts" / "distillchain" / "ci" / "kustomize.yaml")))

    def bare(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        """By kind and name, without Helm's own labels."""
        for item in objects:
            for label in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
                item["metadata"].get("labels", {}).pop(label, None)
        return {(item["kind"], item["metadata"]["name"]): item for item in objects}

    ours = bare(built)
    crd = ours.pop(("CustomResourceDefinition", "distillationchains.distillchain.io"))
    assert crd == yaml.safe_load((CHECKOUT / "crds" / "distillchain.io_distillationchains.yaml").read_text())
    assert ours.pop(("Namespace", NAMESPACE))
    assert ours == bare(rendered)
    output = cluster.kubectl("apply", "--dry-run=server", "-k", str(CHECKOUT / "config")).stdout
    assert output.count("(server dry run)") == len(built)


def test_the_example_on_top_of_config_sets_both_images(cluster: ControlPlane):
    built = documents(cluster.kubectl("kustomize", str(CHECKOUT / "examples" / "kustomize")).stdout)
    (container,) = named(built, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.example/distillchain-operator:")
    trainer = {entry["name"]: entry.get("value") for entry in container["env"]}["DISTILLCHAIN_TRAINER_IMAGE"]
    assert trainer == container["image"].replace("operator", "trainer")


def test_the_chains_of_the_gitops_example_need_only_the_crd(cluster: ControlPlane):
    cluster.kubectl("delete", "namespace", "ml")  # as on a new cluster that Flux fills
    try:
        cluster.kubectl("apply", "--server-side", "-k", str(CHECKOUT / "examples" / "gitops" / "chains"))
        assert cluster.get("dchain", "sst2-femto", "-n", "ml")
    finally:
        cluster.kubectl("create", "namespace", "ml", check=False)


def test_the_namespaced_kustomization_works_in_any_namespace(cluster: ControlPlane, namespace: str):
    cluster.kubectl("apply", "-n", namespace, "-k", str(CHECKOUT / "config" / "namespaced"))
    mine = cluster.kubeconfig_for(namespace, "distillchain-operator")
    may = ["auth", "can-i", "create", "jobs", f"--kubeconfig={mine}"]
    assert cluster.kubectl(*may, "-n", namespace).stdout.strip() == "yes"
    assert cluster.kubectl(*may, "-n", "ml", check=False).stdout.strip() == "no"


def test_aggregated_roles_let_editors_write_chains_and_viewers_read_them(cluster: ControlPlane, namespace: str):
    for role in ("edit", "view"):
        cluster.kubectl("create", "serviceaccount", role, "-n", namespace)
        cluster.kubectl(
            "create",
            "rolebinding",
            role,
            f"--clusterrole={role}",
            f"--serviceaccount={namespace}:{role}",
            "-n",
            namespace,
        )

    def may(role: str, verb: str) -> str:
        user = f"--as=system:serviceaccount:{namespace}:{role}"
        asked = ["auth", "can-i", verb, "distillationchains.distillchain.io", "-n", namespace, user]
        return cluster.kubectl(*asked, check=False).stdout.strip()

    assert [may("edit", "create"), may("edit", "get"), may("view", "get"), may("view", "create")] == [
        "yes",
        "yes",
        "yes",
        "no",
    ]


@pytest.mark.parametrize(
    "role, command, code",
    [
        ("view", ("list",), 0),
        ("view", ("status", "distillchain-test"), 0),
        ("view", ("events", "distillchain-test"), 0),
        ("view", ("logs", "distillchain-test"), 1),  # there are none yet
        ("view", ("suspend", "distillchain-test"), 1),
        ("edit", ("suspend", "distillchain-test"), 0),
        ("edit", ("resume", "distillchain-test"), 0),
        ("edit", ("retry", "distillchain-test"), 1),  # nothing has failed
    ],
)
def test_kubernetes_own_roles_are_enough_for_the_command_line(
    cluster: ControlPlane, namespace: str, tmp_path: Path, role: str, command: tuple[str, ...], code: int
):
    cluster.apply(without_hook(named(documents(render()), "DistillationChain"), namespace))
    cluster.kubectl("create", "serviceaccount", "person", "-n", namespace)
    bound = (f"--clusterrole={role}", f"--serviceaccount={namespace}:person")
    cluster.kubectl("create", "rolebinding", "person", *bound, "-n", namespace)

    done = distillchain(*command, cwd=tmp_path, KUBECONFIG=str(cluster.kubeconfig_for(namespace, "person")))

    assert done.returncode == code, done.stderr
    assert ("refused" in done.stderr) == ((role, command[0]) == ("view", "suspend")), done.stderr


def test_crd_and_chains_survive_install_upgrade_rollback_and_uninstall(
    cluster: ControlPlane, namespace: str, tmp_path: Path
):
    """Without a node. test_release_on_a_node.py does the same while a stage runs."""

    def run(*args: str) -> str:
        return helm(*args, "--namespace", namespace, kubeconfig=cluster.kubeconfig, home=tmp_path)

    chart = str(CHECKOUT / "charts" / "distillchain")
    names = ["--set", "fullnameOverride=other"]  # must not change the cluster-wide objects of the other tests
    cluster.kubectl("delete", "crd", "distillationchains.distillchain.io")
    notes = run("install", "mine", str(of_an_earlier_version(tmp_path)), *names)
    assert f"helm test mine -n {namespace} --timeout" in notes
    assert image(cluster, namespace).endswith(":0.0.9")
    cluster.wait_until_served("distillationchains")
    chain = without_hook(named(documents(render()), "DistillationChain"), namespace)
    cluster.apply(chain)
    uid = cluster.get("dchain", "distillchain-test", "-n", namespace)["metadata"]["uid"]

    changes = "operator.logLevel=debug,chains.storage.region=eu-west-1,strategy.type=Recreate"
    run("upgrade", "mine", chart, *names, "--set", changes)
    assert log_level(cluster, namespace) == "debug"
    assert not image(cluster, namespace).endswith(":0.0.9")
    assert cluster.get("configmap", "other-operator", "-n", namespace)["data"]
    run("rollback", "mine", "1")
    assert log_level(cluster, namespace) == "info"
    run("uninstall", "mine")

    assert cluster.get("dchain", "distillchain-test", "-n", namespace)["metadata"]["uid"] == uid
    kinds = "deploy,svc,cm,sa,role,rolebinding,secret,netpol,clusterrole,clusterrolebinding"
    left = cluster.get(kinds, "-n", namespace, "-l", "app.kubernetes.io/instance=mine")["items"]
    assert left == []
    assert cluster.get("secrets", "-n", namespace, "-l", "owner=helm")["items"] == []

    run("install", "mine", chart, *names, "--set", "crds.keep=false")  # adopts the CRD that it kept
    run("uninstall", "mine")
    cluster.kubectl("wait", "--for=delete", "--timeout=60s", "crd/distillationchains.distillchain.io")


def without_hook(chain: dict[str, Any], namespace: str) -> dict[str, Any]:
    chain["metadata"] = {"name": chain["metadata"]["name"], "namespace": namespace}
    return chain


def of_an_earlier_version(folder: Path) -> Path:
    """The chart with another version, to prove that no immutable field contains the version."""
    copy = shutil.copytree(CHECKOUT / "charts" / "distillchain", folder / "earlier")
    about = yaml.safe_load((copy / "Chart.yaml").read_text()) | {"version": "0.0.9", "appVersion": "0.0.9"}
    (copy / "Chart.yaml").write_text(yaml.safe_dump(about))
    return copy


def image(cluster: ControlPlane, namespace: str) -> str:
    return str(operator_container(cluster, namespace)["image"])


def operator_container(cluster: ControlPlane, namespace: str) -> dict[str, Any]:
    deployment = cluster.get("deploy", "other-operator", "-n", namespace)
    container: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


def log_level(cluster: ControlPlane, namespace: str) -> str:
    container = operator_container(cluster, namespace)
    return next(entry["value"] for entry in container["env"] if entry["name"] == "DISTILLCHAIN_LOG_LEVEL")
