"""An operator that is killed every five seconds, with ten chains on a real API server."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chain_builders import a_commit, a_document, own_store
from cluster.controlplane import ControlPlane
from cluster.operator_process import OPERATOR_NAMESPACE, SERVICE_ACCOUNT, OperatorProcess, install_manifests
from cluster.waiting import wait_until
from distillchain_operator.jobs.labels import CHAIN_LABEL, STAGE_LABEL
from relay import Relay

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]

CHAINS = [f"relay-{number}" for number in range(10)]
STAGES = ("mini", "tiny", "femto")
KILL_EVERY_S = 5
WORK_S = (0.5, 5.0)  # of one trainer: it may end while no operator runs
DEADLINE_S = 240  # usually 20 to 30; longer on a busy machine
START_WITHIN_S = 60
LABELS = [label.replace(".", r"\.") for label in (CHAIN_LABEL, STAGE_LABEL)]
JOB_COLUMNS = f"custom-columns=UID:.metadata.uid,CHAIN:.metadata.labels.{LABELS[0]},STAGE:.metadata.labels.{LABELS[1]}"


@pytest.fixture
def deployed(control_plane: ControlPlane, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator with the Lease of its Deployment, as the only container of one pod; not started yet."""
    install_manifests(control_plane)
    kubeconfig = control_plane.kubeconfig_for(OPERATOR_NAMESPACE, SERVICE_ACCOUNT)
    settings = {
        "DISTILLCHAIN_LOG_FORMAT": "plain",
        "DISTILLCHAIN_LEASE": f"{OPERATOR_NAMESPACE}/{SERVICE_ACCOUNT}",
        "HOSTNAME": "distillchain-operator-x7k2p",
        "POD_UID": "5f1c0ba2-8f65-4269-9dc3-662646db0d0d",
    }
    running = OperatorProcess(kubeconfig, tmp_path / "operator.log", settings)
    running.log.touch()
    yield running
    running.kill()
    assert "Traceback" not in running.log.read_text()


def test_an_operator_that_is_killed_every_five_seconds_finishes_ten_chains_with_one_job_for_each_stage(
    control_plane: ControlPlane, namespace: str, deployed: OperatorProcess, tmp_path: Path
):
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    with (
        watched_jobs(control_plane, namespace, tmp_path / "jobs.txt") as jobs,
        trainers(control_plane, namespace, deployed, chance),
    ):
        documents = [a_document(name, stages=STAGES, storage=own_store(name)) for name in CHAINS]
        control_plane.apply(
            *(document | {"metadata": {**document["metadata"], "namespace": namespace}} for document in documents)
        )
        kills = kill_until_done(control_plane, namespace, deployed, chance)
    assert kills >= 2, "the chains were too fast for this test"
    created = Counter(tuple(line.split()[1:]) for line in set(jobs.read_text().splitlines()))
    assert created == {(chain, stage): 1 for chain in CHAINS for stage in STAGES}, f"seed {seed}"
    for chain in control_plane.get("dchain", "-n", namespace)["items"]:
        assert [stage["phase"] for stage in chain["status"]["stages"]] == ["Committed"] * 3
        assert [stage["attempt"] for stage in chain["status"]["stages"]] == [1] * 3


def kill_until_done(
    control_plane: ControlPlane, namespace: str, operator: OperatorProcess, chance: random.Random
) -> int:
    """How often the operator was killed before all chains had succeeded."""

    def phases() -> Counter[str]:
        chains = control_plane.get("dchain", "-n", namespace)["items"]
        return Counter(chain.get("status", {}).get("phase", "") for chain in chains)

    kills, give_up_at = 0, time.monotonic() + DEADLINE_S
    while phases() != {"Succeeded": len(CHAINS)}:
        assert time.monotonic() < give_up_at, f"{phases()}\n{operator.tail()}"
        begins_at = operator.log.stat().st_size
        operator.start()
        time.sleep(KILL_EVERY_S + chance.uniform(-1, 1))  # at any point of its start and of its work
        if kills % 2:  # on a busy machine the start alone takes longer, and no operator would ever come to work
            wait_until(
                "the operator to lead",
                lambda begins_at=begins_at: b"INFO leading" in operator.log.read_bytes()[begins_at:],
                deadline_s=START_WITHIN_S,
                dump=operator.tail,
            )
            time.sleep(chance.uniform(0, 2))
        operator.kill()
        kills += 1
    return kills


@contextmanager
def watched_jobs(control_plane: ControlPlane, namespace: str, into: Path) -> Iterator[Path]:
    """A file with a line for each report of a Job: its UID, chain and stage. No Job escapes, however short its life."""
    with into.open("w") as output:
        argv = ["get", "jobs", "-n", namespace, "--watch", "--no-headers", "-o", JOB_COLUMNS]
        watch = subprocess.Popen(
            [control_plane.binaries / "kubectl", f"--kubeconfig={control_plane.kubeconfig}", *argv], stdout=output
        )
        try:
            yield into
        finally:
            watch.kill()
            watch.wait()


@contextmanager
def trainers(
    control_plane: ControlPlane, namespace: str, operator: OperatorProcess, chance: random.Random
) -> Iterator[None]:
    """Each pod runs for a while and commits its stage, as on a node."""
    done = threading.Event()
    ends_at: dict[str, float] = {}

    def run() -> None:
        while not done.wait(0.2):
            for pod in control_plane.get("pods", "-n", namespace, "--field-selector=status.phase=Pending")["items"]:
                name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]
                if time.monotonic() >= ends_at.setdefault(name, time.monotonic() + chance.uniform(*WORK_S)):
                    relay = Relay(control_plane, namespace, operator, labels[CHAIN_LABEL])
                    relay.end(name, exit_code=0, message=a_commit(relay.planned(labels[STAGE_LABEL])).to_json())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
