"""Both boundaries refuse the same table of bad chains, and say which field."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from bad_chains import BAD_CHAINS, GOOD, BadChain
from cluster.controlplane import ControlPlane
from distillchain_api.faults import BadDocument
from distillchain_api.resource.crd import build_crd
from distillchain_api.resource.spec import parse_chain
from distillchain_api.yaml_text import load_yaml
from distillchain_cli.arguments.chain_files import list_files, read_file

TABLE = [pytest.param(case, id=case.id) for case in BAD_CHAINS]


@pytest.mark.parametrize("case", TABLE)
def test_our_own_validation_says_field_value_expectation_and_remedy(case: BadChain):
    with pytest.raises(BadDocument) as refused:
        parse_chain(case.document())
    assert str(refused.value) == case.want


def test_the_good_chain_of_the_table_is_good():
    assert parse_chain(GOOD).name == "good"


def test_all_faults_of_a_document_are_told_together():
    document = copy.deepcopy(GOOD)
    document["spec"]["stages"][0]["trainnig"] = {}
    document["spec"]["task"]["maxLength"] = 0
    with pytest.raises(BadDocument) as refused:
        parse_chain(document)
    assert [fault.field for fault in refused.value.faults] == ["spec.task.maxLength", "spec.stages[0].trainnig"]


TEXTS = {
    "metadata.name": "metadata: {name: NAME}",
    "spec.task.dataset.label": "spec: {task: {type: TextClassification, dataset: {label: NAME}}}",
    "spec.task.dataset.text[0]": "spec: {task: {type: TextClassification, dataset: {text: [NAME]}}}",
    "spec.task.dataset.splits.test": "spec: {task: {type: TextClassification, dataset: {splits: {test: NAME}}}}",
    "spec.task.labels[0]": "spec: {task: {type: TextClassification, labels: [NAME, other]}}",
    "spec.stages[0].name": "spec: {stages: [{name: NAME}]}",
    "spec.template.image": "spec: {template: {image: NAME}}",
    "spec.template.job.labels.team": "spec: {template: {job: {labels: {team: NAME}}}}",
    "spec.template.pod.spec.priorityClassName": "spec: {template: {pod: {spec: {priorityClassName: NAME}}}}",
}


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("word, value, words", [("y", "true", "y, yes and on"), ("off", "false", "n, no and off")])
def test_a_word_that_yaml_reads_as_a_truth_value_is_explained(field: str, word: str, value: str, words: str):
    document = load_yaml(TEXTS[field].replace("NAME", word), source="chain.yaml")
    with pytest.raises(BadDocument) as refused:
        parse_chain(document)
    (problem,) = (fault.problem for fault in refused.value.faults if fault.field == field)
    assert problem.startswith(f"got {value}, expected ")
    remedy = f"in YAML, quote it: without quotation marks, YAML 1.1 and kubectl read {words} as {value}"
    assert problem.endswith(f"; {remedy}")


@pytest.fixture(scope="module")
def crd(control_plane: ControlPlane) -> ControlPlane:
    control_plane.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(build_crd()))
    control_plane.wait_until_served("distillationchains")
    return control_plane


@pytest.mark.cluster
class TestOnTheApiServer:
    @pytest.mark.parametrize("case", TABLE)
    def test_kubectl_apply_refuses_and_names_the_field(self, case: BadChain, crd: ControlPlane, namespace: str):
        document = case.document()
        document["metadata"].setdefault("namespace", namespace)
        done = crd.kubectl("apply", "-f", "-", input=json.dumps(document), check=False)
        assert done.returncode != 0, done.stdout
        for words in case.server:
            assert words in done.stderr

    def test_a_forgotten_spec_level_under_pod_is_refused_without_field_validation(
        self, crd: ControlPlane, namespace: str
    ):
        """As GitOps tools apply: the schema and its rules alone must refuse it."""
        document = copy.deepcopy(GOOD)
        document["spec"]["template"] = {"pod": {"nodeSelector": {"gpu": "a100"}}}
        apply = ("apply", "-n", namespace, "--server-side", "--validate=false", "-f", "-")
        done = crd.kubectl(*apply, input=json.dumps(document), check=False)
        assert done.returncode != 0
        assert "did you mean pod.spec.nodeSelector?" in done.stderr

    def test_the_good_chain_is_taken_and_its_defaults_are_filled_in(self, crd: ControlPlane, namespace: str):
        crd.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(GOOD))
        stored = crd.get("distillationchain/good", "-n", namespace)
        assert stored["spec"]["template"]["training"]["batchSize"] == 32
        assert stored["spec"]["template"]["saveInterval"] == "10m"
        assert "training" not in stored["spec"]["stages"][0] or stored["spec"]["stages"][0]["training"] == {}
        assert parse_chain(stored).spec == parse_chain(GOOD).spec

    def test_every_example_is_accepted(self, crd: ControlPlane, namespace: str, repository: Path):
        files = [read_file(file) for file in list_files(str(repository / "examples"), recursive=True)]
        chains = [chain.content for file in files for chain in file.chains]
        for chain in chains:
            chain["metadata"]["namespace"] = namespace
        several = {"apiVersion": "v1", "kind": "List", "items": chains}
        done = crd.kubectl("create", "--dry-run=server", "-o", "name", "-f", "-", input=json.dumps(several))
        assert len(done.stdout.splitlines()) == len(chains) > 10

    def test_the_volume_of_a_cache_is_kept_as_it_is(self, crd: ControlPlane, namespace: str):
        document = copy.deepcopy(GOOD)
        document["metadata"] |= {"name": "cached", "namespace": namespace}
        cache = {"volume": {"persistentVolumeClaim": {"claimName": "models"}}, "maxSize": "200Gi"}
        document["spec"]["template"] = {"cache": cache}

        crd.kubectl("apply", "-f", "-", input=json.dumps(document))

        assert crd.get("distillationchain", "cached", "-n", namespace)["spec"]["template"]["cache"] == cache

    @pytest.mark.parametrize(
        "field, value", [("uri", "s3://models/elsewhere"), ("endpointUrl", "http://another-store:9000")]
    )
    def test_storage_cannot_move(self, crd: ControlPlane, namespace: str, field: str, value: str):
        crd.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(GOOD))
        moved = copy.deepcopy(GOOD)
        moved["spec"]["storage"][field] = value
        done = crd.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(moved), check=False)
        assert f"storage.{field} is immutable" in done.stderr

    def test_a_slash_at_the_end_does_not_move_a_store(self, crd: ControlPlane, namespace: str):
        slash = copy.deepcopy(GOOD)
        slash["spec"]["storage"] |= {"uri": "s3://models/distill/", "endpointUrl": "http://s3:9000/"}
        bare = copy.deepcopy(slash)
        bare["spec"]["storage"] |= {"uri": "s3://models/distill", "endpointUrl": "http://s3:9000"}
        for document in (slash, bare, slash):
            crd.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(document))
