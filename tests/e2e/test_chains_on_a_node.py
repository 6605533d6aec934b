"""Chains from `kubectl apply` to `Succeeded` with real containers, kubelet, S3, models and sentences."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from cli.scene import Running
from cluster.cut import CuttableRelay
from cluster.images import host_python_pod_template
from cluster.s3 import S3Server
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.export import ExportRecord
from distillchain_api.wire.work_order import ALLOW_CPU_ENV
from e2e.chains import Chains, NewChain
from e2e.conftest import Relay, femto_stage, tiny_stage

pytestmark = [pytest.mark.node, pytest.mark.timeout(1800)]

DIRECT = ["femto-direct-s1", "femto-direct-s2"]
FROM_ROOT = ["femto-from-root-s1", "femto-from-root-s2"]


def test_a_chain_succeeds_with_complete_logs_and_another_reuses_its_stages(
    chains: Chains, relay: Relay, new_chain: NewChain, tmp_path: Path
):
    stages = [tiny_stage(relay), femto_stage(relay, training=relay.full_training)]
    first = new_chain("first", stages)
    first["spec"]["task"]["dataset"] = relay.full_dataset
    with CuttableRelay(chains.cluster.control_plane.url) as network:
        chains.apply(first)
        with chains.follow(tmp_path, "logs", "first", "-f", "--raw", through=network) as logs:
            for stage in ("tiny", "femto"):
                line = f'"stage":"{stage}","phase":"Train"'
                chains.wait_until(line, lambda line=line: line in logs.stdout)
                network.cut()
            status = chains.wait("first", "Succeeded")
            assert logs.end() == 0, logs.dump()

    assert_logs_are_complete(chains, logs, tmp_path)
    assert_stages_are_committed(chains, first, status, relay)
    jobs = chains.job_names()
    assert len(jobs) == len(status.stages)

    second = new_chain("second", [tiny_stage(relay), {**stages[1], "name": "renamed"}])
    second["spec"]["task"]["dataset"] = relay.full_dataset
    chains.apply(second)
    again = chains.wait("second", "Succeeded")
    assert [stage.reused for stage in again.stages] == [True] * len(again.stages)
    assert [stage.checkpoint for stage in again.stages] == [stage.checkpoint for stage in status.stages]

    jobs = chains.job_names()
    chains.apply(first)
    chains.kubectl("annotate", "distillationchain/first", "-n", chains.namespace, "nudge=1")
    assert chains.wait("first", "Succeeded").phase == "Succeeded"
    assert chains.job_names() == jobs

    chains.kubectl("delete", "distillationchain", "first", "second", "-n", chains.namespace, "--wait")
    chains.wait_until("the Jobs to be deleted with their chains", lambda: not chains.job_names())
    for stage in status.stages:
        assert chains.manifest(first, stage.digest).checkpoint == stage.checkpoint, "checkpoints stay"


def assert_logs_are_complete(chains: Chains, logs: Running, folder: Path) -> None:
    """`logs -f --raw` printed every line of every pod once, and `--stage --tail 1` prints the last one."""
    pods = re.findall(r"^stage \w+: pod (\S+)$", logs.stderr, re.MULTILINE)
    assert logs.stdout == "".join(chains.kubectl("logs", pod, "-n", chains.namespace).stdout for pod in pods)
    assert "reconnecting: " in logs.stderr
    with chains.follow(folder, "logs", "first", "--stage", "femto", "--tail", "1") as last:
        assert last.end() == 0, last.dump()
    assert last.stdout.startswith("[femto] ")
    assert last.stdout.count("\n") == 1


def assert_stages_are_committed(chains: Chains, chain: dict[str, Any], status: ChainStatus, relay: Relay) -> None:
    """Every stage is in the store, has learned, and started after the one before; the last one has the report."""
    assert [stage.phase for stage in status.stages] == ["Committed"] * len(status.stages)
    for stage in status.stages:
        manifest = chains.manifest(chain, stage.digest)
        assert manifest.checkpoint == stage.checkpoint
        low, high = relay.accuracy[stage.name]
        assert low <= manifest.student.metrics.validation["accuracy"] <= high, stage.name
    femto = status.stage_named("femto")
    assert femto is not None
    assert femto.pretrained is False
    assert status.result is not None
    assert status.result.parameters == 242_662
    assert b"femto" in chains.stored(chain, femto.digest, "report.html")
    for before, after in itertools.pairwise(status.stages):
        assert before.finished_at is not None
        assert after.started_at is not None
        assert before.finished_at <= after.started_at


def test_an_evicted_and_then_suspended_stage_of_two_processes_resumes_and_its_logs_continue(
    chains: Chains, relay: Relay, new_chain: NewChain, tmp_path: Path
):
    training = {"learningRate": 1e-3, "epochs": 12}  # a minute on two cores: both pods are stopped long before the end
    stage = femto_stage(relay, training=training, saveInterval="2s", retries=0)
    chain = new_chain("stopped", [stage], parallelism={"processesPerNode": 2})
    chains.apply(chain)
    with chains.follow(tmp_path, "logs", "stopped", "-f") as logs:
        first = chains.wait_until("the trainer to train", lambda: chains.running_pod("femto"))
        logs.wait_for("[femto] train ")
        chains.cluster.node.evict(chains.namespace, first)
        chains.wait_until("another to train", lambda: chains.running_pod("femto") not in (None, first))
        chains.suspend("stopped", True)
        assert chains.wait("stopped", "Suspended").stages[-1].phase == "Suspended"
        assert chains.running_pod("femto") is None
        chains.suspend("stopped", False)

        status = chains.wait("stopped", "Succeeded")
        assert logs.end() == 0, logs.dump()
    pods = re.findall(r"^stage femto: pod (\S+)$", logs.stderr, re.MULTILINE)
    assert pods[0] == first
    assert len(pods) == 3, logs.stderr
    assert logs.stderr.endswith(f"succeeded: {status.stages[-1].checkpoint}\n")
    femto = status.stage_named("femto")
    assert femto is not None
    assert femto.attempt == 3
    run = chains.manifest(chain, femto.digest).run
    assert (run.resumed, run.processes) == (True, 2)


def test_stages_with_a_gpu_and_stage_zero_are_exported_by_jobs_without_one_that_train_nothing(
    chains: Chains, relay: Relay, new_chain: NewChain
):
    stage = {"name": "small", "student": {"fromTeacher": {"layers": 1}}}
    pod = host_python_pod_template(environment={"OMP_WAIT_POLICY": "PASSIVE", ALLOW_CPU_ENV: "1"})
    chain = new_chain("exported", [stage], pod=pod, export={"onnx": {}}, resources={"limits": {"nvidia.com/gpu": 1}})
    chain["spec"]["teacher"] = {"model": relay.tiny, "fineTune": {}}
    chains.apply(chain)
    chains.wait("exported", "Succeeded")

    zero, small = chains.wait("exported", "ExportsReady").stages
    assert [export.format for export in small.exports] == ["onnx"]
    assert zero.exports == []
    log_of = {job: chains.kubectl("logs", f"job/{job}", "-n", chains.namespace).stdout for job in chains.job_names()}
    trained = {job for job, log in log_of.items() if '"phase":"Train"' in log}
    exported = {job for job, log in log_of.items() if '"phase":"Export"' in log}
    assert (len(trained), len(exported)) == (2, 1)
    assert trained.isdisjoint(exported)
    (job,) = exported
    (container,) = chains.cluster.control_plane.get(f"job/{job}", "-n", chains.namespace)["spec"]["template"]["spec"][
        "containers"
    ]
    assert "nvidia.com/gpu" not in str(container.get("resources"))
    assert b"model.onnx" in chains.stored(chain, small.digest, "report.html")

    chain["spec"]["teacher"]["export"] = {"onnx": {"quantize": "int8"}}
    chains.apply(chain)
    zero = chains.wait_until("the export", lambda: (found := chains.status("exported").stages[0]).exports and found)

    assert [export.format for export in zero.exports] == ["onnx", "onnx-int8"]
    (added,) = set(chains.job_names()) - set(log_of)
    assert '"phase":"Train"' not in chains.kubectl("logs", f"job/{added}", "-n", chains.namespace).stdout
    record = ExportRecord.parse(chains.stored(chain, zero.digest, "exports/onnx-int8.json"))
    assert chains.manifest(chain, zero.digest).student.revision == record.weights
    assert chains.wait("exported", "ExportsReady").phase == "Succeeded"


def test_a_stage_out_of_memory_fails_as_such(chains: Chains, relay: Relay, new_chain: NewChain):
    chain = new_chain("hungry", [tiny_stage(relay)], resources={"limits": {"memory": "150Mi"}}, retries=0)
    chains.apply(chain)
    status = chains.wait("hungry", "Stalled")
    assert status.phase == "Failed"
    failed = next(stage for stage in status.stages if stage.phase == "Failed")
    assert failed.failure_class == "OutOfMemory"
    shown = chains.kubectl("get", "distillationchain/hungry", "-n", chains.namespace).stdout
    assert "memory" in shown


def test_a_wrong_secret_fails_the_chain_at_once_and_is_named(chains: Chains, relay: Relay, new_chain: NewChain):
    chains.cluster.control_plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s3-credentials", "namespace": chains.namespace},
            "stringData": {"AWS_SECRET_ACCESS_KEY": "not-the-secret"},
        }
    )
    chains.apply(new_chain("denied", [tiny_stage(relay)]))
    status = chains.wait("denied", "Stalled")
    failed = status.stages[0]
    assert failed.failure_class == "StorageDenied"
    assert failed.message is not None
    assert "secretRef" in failed.message
    assert failed.attempt == 1


def test_the_verdict_comes_without_the_controls_that_fail(
    chains: Chains, relay: Relay, new_chain: NewChain, cluster_bucket: str
):
    once = {"epochs": 1}  # no student needs to learn
    chain = new_chain("compared", [tiny_stage(relay), femto_stage(relay, training=once)])
    spec = chain["spec"]
    spec["teacher"] = {"model": f"{cluster_bucket}/root"}
    spec["evidence"] = {"controls": ["Direct", "FromRoot"], "seeds": 2}
    copy_model(chains.cluster.s3, relay.tiny, spec["teacher"]["model"])
    chains.apply(chain)
    # Controls start after the chain. The root teaches tiny, and then those of FromRoot, which do not find it any more.
    chains.wait_until("tiny to commit", lambda: phases(chains).get("tiny") == "Committed")
    delete_model(chains.cluster.s3, spec["teacher"]["model"])

    status = chains.wait("compared", "Succeeded")
    chains.wait_until("the verdict", lambda: chains.status("compared").result.evidence is not None)

    assert phases(chains) == {
        **dict.fromkeys(["tiny", "femto", "femto-s2", *DIRECT, "evidence"], "Committed"),
        **dict.fromkeys(FROM_ROOT, "Failed"),
    }
    status = chains.status("compared")
    failed = [stage for stage in status.evidence if stage.phase == "Failed"]
    assert {stage.failure_class for stage in failed} == {"CheckpointInvalid"}
    ready = next(condition for condition in status.conditions if condition.type == "EvidenceReady")
    assert (ready.status, ready.reason) == ("False", "Failed")
    assert ready.message.startswith("femto-from-root-s1, and 1 more failed: ")
    verdict = status.result.evidence
    assert verdict.sentence in ready.message
    assert ([control.control for control in verdict.controls], verdict.seeds) == (["Direct"], 2)
    assert verdict.missing == [f"{', '.join(FROM_ROOT)} failed"]


def phases(chains: Chains) -> dict[str, str | None]:
    return {stage.name: stage.phase for stage in chains.status("compared").entries}


def copy_model(s3: S3Server, source: str, target: str) -> None:
    bucket, _, prefix = target.removeprefix("s3://").partition("/")
    for key in keys(s3, source):
        place = {"Bucket": source.removeprefix("s3://").partition("/")[0], "Key": key}
        s3.client().copy_object(CopySource=place, Bucket=bucket, Key=f"{prefix}/{key.rpartition('/')[2]}")


def delete_model(s3: S3Server, uri: str) -> None:
    for key in keys(s3, uri):
        s3.client().delete_object(Bucket=uri.removeprefix("s3://").partition("/")[0], Key=key)


def keys(s3: S3Server, uri: str) -> list[str]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return [item["Key"] for item in s3.client().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]]
