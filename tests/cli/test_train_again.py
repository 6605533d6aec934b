"""`distillchain retry --from`: what it refuses, what it discards, and what it asks the operator for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from chain_builders import CHAIN_UID, a_document, a_job, a_pod
from cli.parts import distillchain_here
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_cli.changes.train_again import train_again
from distillchain_cli.errors import BadInput, RunFailed
from distillchain_operator.jobs.labels import DIGEST_LABEL, digest_label
from distillchain_store.errors import StorageDenied
from distillchain_store.folder import FileStore

TRUE = {"status": "True", "reason": "x", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T12:00:00Z"}


class Cluster:
    """A cluster with one chain of three stages, committed in a folder, and perhaps another one."""

    def __init__(self, folder: Path, *, with_pass: bool = False, **phases: str) -> None:
        self.folder, self.annotations, self.others = folder, dict[str, str](), list[dict[str, Any]]()
        self.jobs, self.pods = list[dict[str, Any]](), list[dict[str, Any]]()
        self.chain = a_document(stages=["mini", "tiny", "nano"], storage={"uri": f"file://{folder}"})
        if with_pass:
            self.chain["spec"]["stages"][1]["teacherPass"] = {}
        self.chain["metadata"] |= {"namespace": "ml", "uid": CHAIN_UID, "generation": 1}
        self.plan = build_plan(parse_chain(self.chain))
        stages = []
        for stage in self.plan.stages:
            phase = phases.get(stage.name, "Committed")
            stages.append({"name": stage.name, "phase": phase, "digest": stage.digest, "job": f"job-{stage.name}"})
            if phase == "Committed":
                manifest = folder / "stages" / stage.digest / "manifest.json"
                manifest.parent.mkdir(parents=True)
                manifest.write_text(f"manifest of {stage.name}")
        self.chain["status"] = {"observedGeneration": 1, "phase": "Succeeded", "stages": stages}

    def fetch_chain(self, name: str) -> dict[str, Any]:
        return self.chain

    def list_chains(self) -> list[dict[str, Any]]:
        return [self.chain, *self.others]

    def fetch_job(self, name: str) -> dict[str, Any] | None:
        return next((job for job in self.jobs if job["metadata"]["name"] == name), None)

    def pods_of_digests(self, digests: Iterable[str]) -> set[str]:
        return set(map(digest_label, digests))

    def list(self, digests: set[str]) -> tuple[list[dict[str, Any]], str]:
        return [pod for pod in self.pods if pod["metadata"]["labels"][DIGEST_LABEL] in digests], "1"

    def annotate_chain(self, chain: dict[str, Any], annotations: dict[str, str]) -> None:
        # Whoever starts now must not find a commit or a saved state.
        self.committed_then, self.states_then = self.committed, self.states
        self.annotations = annotations

    @property
    def committed(self) -> list[str]:
        return sorted(path.read_text().split()[-1] for path in self.folder.glob("stages/*/manifest.json"))

    @property
    def states(self) -> list[str]:
        return sorted(path.read_text() for path in self.folder.glob("stages/*/resume/*/*"))

    @property
    def discarded(self) -> list[str]:
        return sorted(path.read_text().split()[-1] for path in self.folder.glob("stages/*/discarded/*.json"))


def again(cluster: Any, stage: str, *, discard: bool = True, logits: bool = False) -> str:
    def now() -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    return train_again(cluster, "relay", stage, discard=discard, logits=logits, storage=None, now=now)


def test_a_committed_stage_is_left_alone_without_discard(tmp_path: Path):
    cluster = Cluster(tmp_path)
    with pytest.raises(RunFailed) as refused:
        again(cluster, "tiny", discard=False)
    assert str(refused.value) == (
        "stages tiny, nano of relay are committed; to train from tiny again: --discard, which moves their manifests "
        "aside in the store"
    )
    assert (cluster.annotations, cluster.committed) == ({}, ["mini", "nano", "tiny"])


def test_discard_moves_the_manifests_of_the_stage_and_of_all_that_need_it(tmp_path: Path):
    cluster = Cluster(tmp_path)

    done = again(cluster, "tiny")

    assert done == f"training tiny, nano again: 2 manifests moved to discarded/ in file://{tmp_path}"
    assert (cluster.committed_then, cluster.discarded) == (["mini"], ["nano", "tiny"])
    assert cluster.annotations == {"distillchain.io/retry": "again:nano,tiny@2026-01-01T00:00:00.000+00:00"}


def put_outputs(cluster: Cluster, **outputs: list[str] | None) -> None:
    """Manifests that say from which outputs their stages learned, and these outputs."""
    for name, digests in outputs.items():
        stage = cluster.plan.stage(name)
        assert stage
        run = {} if digests is None else {"logits": digests}
        (cluster.folder / "stages" / stage.digest / "manifest.json").write_text(json.dumps({"run": run}))
        for digest in digests or []:
            part = cluster.folder / "logits" / digest / "part.safetensors"
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(b"x" * 1000)


def outputs_of(cluster: Cluster) -> list[str]:
    return sorted(path.parent.name[0] for path in cluster.folder.glob("logits/*/*"))


def test_logits_deletes_the_outputs_that_the_discarded_stages_learned_from(tmp_path: Path):
    cluster = Cluster(tmp_path)
    put_outputs(cluster, mini=["a" * 64], tiny=["b" * 64, "c" * 64], nano=["d" * 64])

    done = again(cluster, "tiny", logits=True)

    assert done.endswith(f"2 manifests moved to discarded/ in file://{tmp_path}, 3.0 kB of teachers' outputs deleted")
    assert outputs_of(cluster) == ["a"]


def test_outputs_stay_without_logits(tmp_path: Path):
    cluster = Cluster(tmp_path)
    put_outputs(cluster, tiny=["b" * 64])

    again(cluster, "tiny")

    assert outputs_of(cluster) == ["b"]


def test_a_stage_that_was_never_committed_names_its_outputs_in_its_saved_state(tmp_path: Path):
    cluster = Cluster(tmp_path, tiny="Failed", nano="Pending")
    cluster.chain["status"]["phase"] = "Failed"
    put_outputs(cluster, mini=["a" * 64, "b" * 64])
    put_states(cluster, "tiny", content=json.dumps({"step": 3, "logits": ["b" * 64]}))

    again(cluster, "tiny", logits=True)

    assert outputs_of(cluster) == ["a"]


def test_outputs_of_a_pass_are_deleted_with_the_pass_and_not_with_a_stage(tmp_path: Path):
    cluster = Cluster(tmp_path, with_pass=True)
    (of_tiny,) = [vertex for vertex in cluster.plan.vertices if vertex.is_pass]
    manifest = tmp_path / "passes" / of_tiny.digest / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"logits": "b" * 64}))
    put_outputs(cluster, mini=["a" * 64], tiny=["b" * 64], nano=["d" * 64])

    with pytest.raises(
        RunFailed, match=f"tiny learns from belong to the pass {of_tiny.name}.+ use --from {of_tiny.name};"
    ):
        again(cluster, "tiny", logits=True)
    assert outputs_of(cluster) == ["a", "b", "d"]
    assert cluster.discarded == []

    again(cluster, of_tiny.name, logits=True)
    assert outputs_of(cluster) == ["a"]


def test_outputs_that_a_pass_of_another_chain_has_promised_are_not_deleted(tmp_path: Path):
    cluster = Cluster(tmp_path)
    put_outputs(cluster, tiny=["b" * 64], nano=["d" * 64])
    other = tmp_path / "passes" / ("e" * 64) / "manifest.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps({"logits": "b" * 64}))

    with pytest.raises(RunFailed, match="a teacher's pass of another chain also needs"):
        again(cluster, "tiny", logits=True)

    assert outputs_of(cluster) == ["b", "d"]
    assert cluster.discarded == []


@pytest.mark.parametrize("content", [None, "no JSON"])
def test_nothing_changes_if_a_manifest_does_not_name_its_outputs(tmp_path: Path, content: str | None):
    cluster = Cluster(tmp_path)
    put_outputs(cluster, tiny=None if content is None else [], nano=["d" * 64])
    if content is not None:
        stage = cluster.plan.stage("tiny")
        assert stage
        (tmp_path / "stages" / stage.digest / "manifest.json").write_text(content)

    with pytest.raises(
        RunFailed, match=r"does not record which outputs tiny learned from.+ gc --logits --older-than 0s"
    ):
        again(cluster, "tiny", logits=True)

    assert (outputs_of(cluster), cluster.discarded, cluster.annotations) == (["d"], [], {})


def put_states(cluster: Cluster, *names: str, content: str | None = None) -> None:
    """Saved states, as a stage that missed its gate leaves them."""
    for name in names:
        stage = cluster.plan.stage(name)
        assert stage
        state = cluster.folder / "stages" / stage.digest / "resume" / "0a-10-first" / "index.json"
        state.parent.mkdir(parents=True)
        state.write_text(content or name)


def test_discard_deletes_the_saved_states_from_which_a_trainer_would_go_on(tmp_path: Path):
    cluster = Cluster(tmp_path, tiny="Failed", nano="Pending")
    cluster.chain["status"]["phase"] = "Failed"
    put_states(cluster, "mini", "tiny")

    done = again(cluster, "tiny")

    assert done.endswith(f"0 manifests moved to discarded/ in file://{tmp_path}, saved states of tiny deleted")
    assert cluster.states_then == ["mini"]


def test_nothing_is_discarded_if_a_saved_state_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`delete` stands in for a store that gives no right to delete: root may always."""
    cluster = Cluster(tmp_path)
    put_states(cluster, "tiny")

    def refuse(*_: Any) -> None:
        raise StorageDenied("no right to delete")

    monkeypatch.setattr(FileStore, "delete", refuse)
    with pytest.raises(RunFailed) as refused:
        again(cluster, "tiny")
    assert str(refused.value) == (
        "the saved states of tiny cannot be deleted, and its trainer would continue from them instead of training again: "
        f"no right to delete; use credentials that may delete, or delete file://{tmp_path}/stages/"
        f"{cluster.plan.stages[1].digest}/resume/ yourself, then run this again; nothing was started"
    )
    assert (cluster.annotations, cluster.discarded) == ({}, [])


def test_failed_stages_are_retried_without_discard(tmp_path: Path):
    cluster = Cluster(tmp_path, tiny="Failed", nano="Pending")
    cluster.chain["status"]["phase"] = "Failed"
    assert again(cluster, "tiny", discard=False) == "retrying tiny; the operator creates another Job for each"
    assert cluster.annotations["distillchain.io/retry"].startswith("tiny@")
    with pytest.raises(RunFailed, match="nothing to retry: no stage of relay from nano on has failed"):
        again(cluster, "nano", discard=False)


@pytest.mark.parametrize(
    "phase, stages, more",
    [
        pytest.param("Running", {"nano": "Running"}, {}, id="a stage runs"),
        pytest.param("Running", {"nano": "Pending"}, {}, id="between two stages"),
        pytest.param("Failed", {"tiny": "Failed"}, {"job": None}, id="a Job that the API server refused"),
        pytest.param("Succeeded", {}, {"generation": 2}, id="an edit that the operator has not seen"),
        pytest.param("Succeeded", {}, {"annotations": {"distillchain.io/retry": "nano@1"}}, id="a retry not handled"),
    ],
)
def test_nothing_is_discarded_while_a_trainer_could_commit(
    tmp_path: Path, phase: str, stages: dict[str, str], more: dict[str, Any]
):
    cluster = Cluster(tmp_path, **stages)
    cluster.chain["status"]["phase"] = phase
    for stage in cluster.chain["status"]["stages"]:
        stage |= {"job": None} if "job" in more else {}
    cluster.chain["metadata"] |= {name: value for name, value in more.items() if name != "job"}
    before = cluster.committed
    with pytest.raises(RunFailed, match=f"relay is {phase}, and a trainer could commit .* suspend it first"):
        again(cluster, "tiny")
    assert (cluster.annotations, cluster.committed, cluster.discarded) == ({}, before, [])


@pytest.mark.parametrize("phase", ["Failed", "Suspended"])
def test_nothing_is_discarded_while_a_pod_of_a_stage_still_stops(tmp_path: Path, phase: str):
    """A stage is Failed once its Job is deleted, and its pod has its grace period after that."""
    cluster = Cluster(tmp_path, nano=phase)
    cluster.chain["status"] |= {"phase": phase, "conditions": [{"type": "Suspended", **TRUE}]}
    job = a_job(cluster.plan, "nano", active=1)
    cluster.pods = [a_pod(job)]
    put_states(cluster, "nano")
    with pytest.raises(RunFailed) as refused:
        again(cluster, "tiny")
    assert str(refused.value) == (
        f"pod {job['metadata']['name']}-p0 has not ended, and a trainer could commit while the commits are discarded; "
        "wait for its end, then run this again"
    )
    assert (cluster.annotations, cluster.discarded, cluster.states) == ({}, [], ["nano"])
    cluster.pods = [a_pod(job, phase="Failed", exit_code=75), a_pod(a_job(cluster.plan, "mini"))]
    assert again(cluster, "tiny").startswith("training tiny, nano again")


def test_nothing_is_discarded_while_the_job_of_a_failed_stage_may_start_a_pod(tmp_path: Path):
    cluster = Cluster(tmp_path, nano="Failed")
    cluster.chain["status"]["phase"] = "Failed"
    cluster.jobs = [a_job(cluster.plan, "nano")]
    cluster.jobs[0]["metadata"]["name"] = "job-nano"
    with pytest.raises(RunFailed, match="Job job-nano has not ended"):
        again(cluster, "tiny")
    cluster.jobs[0]["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    assert again(cluster, "tiny").startswith("training tiny, nano again")


def test_a_suspended_chain_is_trained_again_once_it_is_resumed(tmp_path: Path):
    cluster = Cluster(tmp_path, nano="Suspended")
    cluster.chain["spec"]["suspend"] = True
    cluster.chain["status"] |= {"phase": "Suspended", "conditions": [{"type": "Suspended", **TRUE}]}
    assert again(cluster, "mini").endswith("; to start it: distillchain resume relay")
    assert cluster.discarded == ["mini", "tiny"]


def test_a_commit_that_a_running_chain_is_about_to_read_is_not_discarded(tmp_path: Path):
    cluster = Cluster(tmp_path)
    shared = {"name": "small", "phase": "Committed", "digest": cluster.plan.stages[1].digest}
    cluster.others = [{"metadata": {"name": "other"}, "status": {"phase": "Running", "stages": [shared]}}]
    put_states(cluster, "tiny")
    with pytest.raises(RunFailed, match="chain other is Running and has the same stage small; wait for its end"):
        again(cluster, "mini")
    assert (cluster.discarded, cluster.states) == ([], ["tiny"])


def test_options_that_do_not_fit_together(tmp_path: Path):
    for options, want in (
        (["--discard"], "--discard: expected together with --from"),
        (["--from", "tiny", "--stage", "tiny"], "--stage: expected alone or --from instead"),
        (["--from", "tiny", "--storage", "s3://a/b"], "--storage: expected together with --discard"),
    ):
        done = distillchain_here("retry", "relay", *options, cwd=tmp_path)
        assert (done.returncode, want in done.stderr) == (2, True), done.stderr
    with pytest.raises(BadInput, match="--from: got huge, expected one of mini, tiny, nano"):
        again(Cluster(tmp_path), "huge")
