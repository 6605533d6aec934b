"""Cluster commands on a real API server. The tests write the status, as the operator would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from chain_builders import a_document
from cli.parts import distillchain, example_in_help, write_chain
from cli.scene import NAME, Scene
from cluster.s3 import S3Server
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.jobs.labels import (
    EVENT_FAILURE_CLASS_ANNOTATION,
    EVENT_JOB_ANNOTATION,
    EVENT_STAGE_ANNOTATION,
)

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cli")]


def test_status_shows_every_stage(scene: Scene):
    scene.write_status(tiny="Failed")

    done = scene.distillchain("status", NAME)

    assert (done.returncode, done.stderr) == (0, "see docs/troubleshooting.md#labelmismatch\n")
    assert done.stdout.splitlines() == [
        f"{scene.namespace}/{NAME}: Failed, 1/2 stages committed",
        "tiny: labels differ",
        "",
        "STAGE  PHASE      ATTEMPT  PARAMETERS  ACCURACY     TIME  MESSAGE",
        "mini   Committed        1        1.0M    0.8500  0:00:41  -",
        "tiny   Failed           1           -         -        -  labels differ",
    ]


def test_status_in_json_is_what_the_cluster_holds(scene: Scene):
    want = scene.write_status(tiny="Running")

    done = scene.distillchain("status", NAME, "-o", "json")

    assert ChainStatus.parse(done.stdout) == want


def test_a_chain_that_the_operator_has_not_seen_is_pending(scene: Scene):
    done = scene.distillchain("status", NAME)

    assert done.stdout == f"{scene.namespace}/{NAME}: Pending, the operator has not seen it yet\n"
    assert done.stderr == ("the operator has not seen this chain yet; check that it runs and watches this namespace\n")


def test_retry_asks_the_operator_for_another_job_of_the_failed_stage(scene: Scene):
    scene.write_status(tiny="Failed")

    done = scene.distillchain("retry", NAME)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "retrying stage tiny (LabelMismatch); the operator creates another Job for it\n"
    value = scene.cluster.get("dchain", NAME, "-n", scene.namespace)["metadata"]["annotations"]["distillchain.io/retry"]
    assert value.startswith("tiny@20")
    assert scene.has_job()


@pytest.mark.parametrize(
    "arguments, code, want",
    [
        pytest.param(
            [NAME], 1, "nothing to retry: sst2-femto is Running and none of its stages failed\n", id="none failed"
        ),
        pytest.param(
            [NAME, "--stage", "mini"],
            1,
            "nothing to retry: stage mini of sst2-femto is Committed, not Failed\n",
            id="committed",
        ),
        pytest.param(
            [NAME, "--stage", "huge"], 2, "--stage: got huge, expected one of mini, tiny\n", id="no such stage"
        ),
    ],
)
def test_without_a_failed_stage_there_is_nothing_to_retry(scene: Scene, arguments: list[str], code: int, want: str):
    scene.write_status(tiny="Running")

    done = scene.distillchain("retry", *arguments)

    assert (done.returncode, done.stdout, done.stderr) == (code, "", want)
    assert scene.has_job()


def test_an_unknown_chain_is_reported_with_its_namespace(scene: Scene):
    done = scene.distillchain("status", "unknown")

    assert done.returncode == 1
    assert done.stderr == (
        f"there is no DistillationChain unknown in namespace {scene.namespace}; see kubectl get distillationchains -A\n"
    )


def test_namespace_and_context_can_be_chosen(scene: Scene):
    assert scene.distillchain("status", NAME, "-n", "default").returncode == 1
    assert scene.distillchain("status", NAME, "--context", "nowhere").returncode == 2


def test_status_in_yaml_and_wide_shows_more(scene: Scene):
    want = scene.write_status(tiny="Failed")

    as_yaml = scene.distillchain("status", NAME, "-o", "yaml")
    wide = scene.distillchain("status", NAME, "-o", "wide").stdout.splitlines()

    assert yaml.safe_load(as_yaml.stdout) == want.to_document()
    assert want.stages[0].checkpoint is not None
    assert wide[3].split()[-5:] == ["EXAMPLES/S", "DIGEST", "JOB", "CHECKPOINT", "MESSAGE"]
    assert want.stages[0].checkpoint in wide[4]
    assert scene.job in wide[5]


def test_chains_are_listed_in_a_namespace_and_in_all(scene: Scene):
    scene.write_status(tiny="Running")
    elsewhere = f"{scene.namespace}-2"
    scene.cluster.kubectl("create", "namespace", elsewhere)
    scene.cluster.kubectl("-n", elsewhere, "apply", "-f", "-", input=json.dumps(a_document("other")))
    scene.cluster.kubectl("-n", elsewhere, "label", "dchain", "other", "team=nlp")

    here = scene.distillchain("list")
    everywhere = scene.distillchain("list", "-A", "-l", "team=nlp", "-o", "json")
    both = scene.distillchain("list", "-A").stdout.splitlines()
    none = scene.distillchain("list", "-l", "team=none")

    title, line = here.stdout.splitlines()
    assert title.split() == ["NAME", "PHASE", "STAGE", "METRIC", "AGE", "MESSAGE"]
    assert line.split()[:4] == [NAME, "Running", "1/2", "0.8500"]
    assert line.endswith("running tiny")
    (item,) = json.loads(everywhere.stdout)["items"]
    assert (item["kind"], item["metadata"]["name"]) == ("DistillationChain", "other")
    assert both[0].split()[0] == "NAMESPACE"
    assert {NAME, "other"} <= {row.split()[1] for row in both}
    assert max(map(len, both)) <= 100
    assert (none.stdout, none.stderr) == ("", f"there are no chains in namespace {scene.namespace} with team=none\n")


def test_all_namespaces_and_one_namespace_exclude_each_other(scene: Scene):
    done = scene.distillchain("list", "-A", "-n", "default")

    assert done.returncode == 2
    assert done.stderr == "--namespace: got default together with --all-namespaces; leave one of them out\n"


def test_events_are_those_of_the_chain_its_jobs_and_pods_in_order(scene: Scene):
    scene.write_status(tiny="Failed")
    deleted = f"{NAME}-mini-aaaaaaaaaa-x7k2p"  # a pod of a Job that no longer exists
    failed = {EVENT_STAGE_ANNOTATION: "tiny", EVENT_FAILURE_CLASS_ANNOTATION: "LabelMismatch"}
    scene.create_event(
        "StageFailed", "stage tiny: LabelMismatch: labels differ", second=9, type="Warning", annotations=failed
    )
    started = {EVENT_STAGE_ANNOTATION: "mini", EVENT_JOB_ANNOTATION: f"{NAME}-mini-aaaaaaaaaa"}
    scene.create_event("StageStarted", f"stage mini: Job {NAME}-mini-aaaaaaaaaa", second=2, annotations=started)
    scene.create_event(
        "Evicted", "The node was low on resource: memory", kind="Pod", name=deleted, second=5, type="Warning"
    )
    scene.create_event("SuccessfulCreate", "Created pod", kind="Job", name="another-mini-aaaaaaaaaa", second=6)
    scene.create_event("Scheduled", "of another chain", kind="Pod", name=f"{NAME}-two-mini-aaaaaaaaaa-x7k2p", second=6)
    scene.create_event(
        "Scheduled", "of a Job whose name starts alike", kind="Pod", name=f"{NAME}-mini-bbbbbbbbbb-x7k2p", second=6
    )
    scene.cluster.kubectl("-n", scene.namespace, "delete", "events", "--field-selector", "reason=Suspended")

    done = scene.distillchain("events", NAME)
    as_json = scene.distillchain("events", NAME, "-o", "json")

    assert done.returncode == 0, done.stderr
    assert [["", *line.split()[1:]] for line in done.stdout.splitlines()] == [
        ["", "SEEN", "TYPE", "REASON", "STAGE", "KIND", "MESSAGE"],
        ["", "Normal", "StageStarted", "mini", "chain", "stage", "mini:", "Job", f"{NAME}-mini-aaaaaaaaaa"],
        ["", "Warning", "Evicted", "mini", "pod", *["The", "node", "was", "low", "on", "resource:", "memory"]],
        ["", "Warning", "StageFailed", "tiny", "chain", *["stage", "tiny:", "LabelMismatch:", "labels", "differ"]],
    ]
    assert done.stderr == "see docs/troubleshooting.md#labelmismatch\n"
    assert [item["reason"] for item in json.loads(as_json.stdout)["items"]] == [
        "StageStarted",
        "Evicted",
        "StageFailed",
    ]


def test_suspend_and_resume_write_and_own_only_one_field(scene: Scene):
    scene.write_status(tiny="Running")
    suspended = scene.distillchain("suspend", NAME)
    again = scene.distillchain("suspend", NAME)
    chain = scene.cluster.get("dchain", NAME, "-n", scene.namespace, "--show-managed-fields")
    scene.write_status(tiny="Suspended")
    resumed = scene.distillchain("resume", NAME)

    assert suspended.stdout.startswith(f"suspended {NAME}: the running stage saves its state and stops")
    assert again.stdout == f"{NAME} is already suspended\n"
    assert chain["spec"]["suspend"] is True
    assert chain["metadata"]["generation"] == 2
    (ours,) = [f for f in chain["metadata"]["managedFields"] if f["manager"] == "distillchain-cli"]
    assert ours["fieldsV1"] == {"f:spec": {"f:suspend": {}}}
    assert resumed.stdout.startswith(f"resumed {NAME}: it continues from its saved state")
    assert scene.cluster.get("dchain", NAME, "-n", scene.namespace)["spec"]["suspend"] is False


def test_a_missing_permission_is_reported_in_the_words_of_the_api_server(scene: Scene):
    reader = scene.reader_kubeconfig()

    read = distillchain("status", NAME, cwd=scene.folder, KUBECONFIG=str(reader))
    write = distillchain("suspend", NAME, cwd=scene.folder, KUBECONFIG=str(reader))

    assert read.returncode == 0, read.stderr
    assert write.returncode == 1
    assert write.stderr.startswith("the API server refused: ")
    assert "cannot patch resource" in write.stderr


@pytest.mark.parametrize("command", ["list", "status", "events", "retry", "suspend", "resume"])
def test_the_example_of_each_help_works(scene: Scene, command: str):
    scene.write_status(tiny="Failed")

    done = scene.distillchain(*example_in_help(command, cwd=scene.folder))

    assert done.returncode == 0, done.stderr


def test_an_unreachable_api_server_is_reported_at_once(scene: Scene):
    done = scene.distillchain("status", NAME)
    path = scene.folder / "kubeconfig"
    document = json.loads(path.read_text())
    document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path.write_text(json.dumps(document))

    done = distillchain("status", NAME, cwd=scene.folder, KUBECONFIG=str(path))

    assert done.returncode == 1
    assert done.stderr.startswith("the API server https://127.0.0.1:1 cannot be reached: ")
    assert done.stderr.count("\n") == 1


def test_a_plan_reads_a_store_on_s3_with_the_credentials_of_the_environment(s3: S3Server, bucket: str, tmp_path: Path):
    write_chain(tmp_path, storage={"uri": f"{bucket}/distill", "endpointUrl": s3.endpoint})

    identity = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    known = distillchain("plan", "chain.yaml", cwd=tmp_path, **identity)
    stranger = {**identity, "AWS_SECRET_ACCESS_KEY": "wrong"}
    unknown = distillchain("plan", "chain.yaml", cwd=tmp_path, **stranger)

    assert known.returncode == 0, known.stderr
    assert known.stdout.count("not in the store") == 2
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("spec.storage")
    assert unknown.stderr.count("\n") == 1
