"""The whole node: real containers, their network, their end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import prerequisites
from cluster.images import HOST_PYTHON_IMAGE, build_scratch_image, host_python_pod_template
from cluster.processes import identify
from cluster.slot import Slot, claim_slot, try_slot
from cluster.waiting import wait_until
from cluster.whole import WholeCluster
from harness.parts import TESTS, a_job, run_python, the_pod, wait_for


@pytest.mark.node
def test_a_pod_runs_and_its_log_is_read(whole_cluster: WholeCluster, cluster_namespace: str) -> None:
    cluster = whole_cluster.control_plane
    cluster.apply(a_job("hello", cluster_namespace, "sh", "-c", "echo hello; id -u; touch /tmp/x && ! touch /x"))

    wait_for(cluster, cluster_namespace, "job/hello", "condition=Complete")

    assert cluster.kubectl("logs", "job/hello", "-n", cluster_namespace).stdout.startswith("hello\n1000\n")


@pytest.mark.node
def test_this_python_imports_torch_in_a_restricted_pod_and_reaches_s3(
    whole_cluster: WholeCluster, cluster_namespace: str, cluster_bucket: str, tmp_path: Path
) -> None:
    cluster, name = whole_cluster.control_plane, cluster_bucket.removeprefix("s3://")
    tmp_path.chmod(0o755)  # pytest makes it for its owner only
    (tmp_path / "model").write_text("from the host")
    code = f"""
import getpass, os, pathlib, boto3, torch, transformers, distillchain_api
assert (os.getuid(), getpass.getuser(), os.path.expanduser("~")) == (1000, "trainer", "/tmp")
assert not pathlib.Path("/var/run/secrets/kubernetes.io").exists()
boto3.client("s3").put_object(Bucket={name!r}, Key="sum", Body=str(int(torch.ones(3).sum())))
print(pathlib.Path({str(tmp_path / "model")!r}).read_text())
"""
    pod = host_python_pod_template(tmp_path, environment=whole_cluster.s3.environment())
    cluster.apply(a_job("torch", cluster_namespace, "python", "-c", code, image=HOST_PYTHON_IMAGE, pod=pod))

    wait_for(cluster, cluster_namespace, "job/torch", "condition=Complete")

    assert cluster.kubectl("logs", "job/torch", "-n", cluster_namespace).stdout == "from the host\n"
    assert whole_cluster.s3.client().get_object(Bucket=name, Key="sum")["Body"].read() == b"3"


@pytest.mark.node
def test_a_pod_with_a_service_account_reaches_the_api_server(
    whole_cluster: WholeCluster, cluster_namespace: str
) -> None:
    cluster = whole_cluster.control_plane
    cluster.kubectl("create", "role", "self", "--verb=list", "--resource=pods", "-n", cluster_namespace)
    subject = f"--serviceaccount={cluster_namespace}:default"
    cluster.kubectl("create", "rolebinding", "self", "--role=self", subject, "-n", cluster_namespace)
    code = f"""
import kubernetes
kubernetes.config.load_incluster_config()
for pod in kubernetes.client.CoreV1Api().list_namespaced_pod({cluster_namespace!r}).items:
    print(pod.metadata.labels["job-name"])
"""
    job = a_job(
        "asks", cluster_namespace, "python", "-c", code, image=HOST_PYTHON_IMAGE, pod=host_python_pod_template()
    )
    job["spec"]["template"]["spec"]["automountServiceAccountToken"] = True
    cluster.apply(job)

    wait_for(cluster, cluster_namespace, "job/asks", "condition=Complete")

    assert cluster.kubectl("logs", "job/asks", "-n", cluster_namespace).stdout == "asks\n"


@pytest.mark.node
def test_a_name_that_nobody_serves_fails_at_once(whole_cluster: WholeCluster, cluster_namespace: str) -> None:
    cluster = whole_cluster.control_plane
    code = """
import socket, time
started = time.monotonic()
try:
    socket.getaddrinfo("s3.storage", 9000)
except OSError as error:
    print(f"{time.monotonic() - started:.3f}")
"""
    pod = host_python_pod_template()
    cluster.apply(a_job("lookup", cluster_namespace, "python", "-c", code, image=HOST_PYTHON_IMAGE, pod=pod))

    wait_for(cluster, cluster_namespace, "job/lookup", "condition=Complete")

    assert float(cluster.kubectl("logs", "job/lookup", "-n", cluster_namespace).stdout) < 1


@pytest.mark.node
def test_a_pod_over_its_memory_is_oom_killed(whole_cluster: WholeCluster, cluster_namespace: str) -> None:
    cluster = whole_cluster.control_plane
    greedy = ("dd", "if=/dev/zero", "of=/dev/null", "bs=512M", "count=1")
    cluster.apply(a_job("greedy", cluster_namespace, *greedy, limits={"memory": "32Mi"}))

    wait_for(cluster, cluster_namespace, "job/greedy", "condition=Failed")

    (container,) = the_pod(cluster, cluster_namespace, "greedy")["status"]["containerStatuses"]
    assert container["state"]["terminated"]["reason"] == "OOMKilled"
    assert container["state"]["terminated"]["exitCode"] == 137


@pytest.mark.node
def test_an_evicted_pod_is_a_disruption_target(whole_cluster: WholeCluster, cluster_namespace: str) -> None:
    cluster = whole_cluster.control_plane
    cluster.apply(a_job("evicted", cluster_namespace, "sleep", "1000"))
    wait_for(cluster, cluster_namespace, "job/evicted", "jsonpath={.status.ready}=1")
    pod = the_pod(cluster, cluster_namespace, "evicted")["metadata"]["name"]

    whole_cluster.node.evict(cluster_namespace, pod)

    wait_for(cluster, cluster_namespace, f"pod/{pod}", "condition=DisruptionTarget")


@pytest.mark.node
def test_pods_queue_for_gpus(whole_cluster: WholeCluster, cluster_namespace: str) -> None:
    cluster = whole_cluster.control_plane
    both = {"nvidia.com/gpu": 2}
    cluster.apply(a_job("first", cluster_namespace, "sleep", "1000", limits=both))
    wait_for(cluster, cluster_namespace, "job/first", "jsonpath={.status.ready}=1")
    cluster.apply(a_job("second", cluster_namespace, "true", limits=both))

    def why_waiting() -> str | None:
        conditions = the_pod(cluster, cluster_namespace, "second")["status"].get("conditions", [])
        return next((each["message"] for each in conditions if each["reason"] == "Unschedulable"), None)

    assert "Insufficient nvidia.com/gpu" in wait_until("the second to be refused", why_waiting, deadline_s=20)
    cluster.kubectl("delete", "job", "first", "-n", cluster_namespace)
    wait_for(cluster, cluster_namespace, "job/second", "condition=Complete")


@pytest.mark.node
def test_an_image_of_our_own_is_imported_under_another_name(
    whole_cluster: WholeCluster, cluster_namespace: str, tmp_path: Path
) -> None:
    cluster, busybox = whole_cluster.control_plane, prerequisites.ensure_tools().busybox.read_bytes()
    archive = build_scratch_image("distillchain.io/tests/own:1", tmp_path / "own.tar", files={"bin/busybox": busybox})
    whole_cluster.node.import_image(archive, name="example.com/renamed:2")

    job = a_job("renamed", cluster_namespace, "/bin/busybox", "true", image="example.com/renamed:2")
    cluster.apply(job)

    wait_for(cluster, cluster_namespace, "job/renamed", "condition=Complete")


@pytest.mark.node
def test_containers_mounts_and_bridge_of_a_killed_process_are_swept_up(tmp_path: Path) -> None:
    owner = run_python(f"""
import sys
from pathlib import Path
sys.path.insert(0, ".")
from cluster.whole import WholeCluster
from harness.parts import a_job, wait_for
with WholeCluster(Path({str(tmp_path)!r})) as cluster:
    control_plane = cluster.control_plane
    control_plane.create_namespace("x")
    control_plane.apply(a_job("long", "x", "sleep", "100000"))
    wait_for(control_plane, "x", "job/long", "jsonpath={{.status.ready}}=1")
    print(cluster.node.slot.number, flush=True)
    input()
""")
    assert owner.stdout is not None
    with owner, owner.stdout as said:
        slot = Slot(int(said.readline()), None)
        assert str(slot.run) in Path("/proc/self/mountinfo").read_text()
        init_pids = slot.run.glob("containerd/io.containerd.runtime.v2.task/k8s.io/*/init.pid")
        containers = [identity for path in init_pids if (identity := identify(int(path.read_text())))]
        assert len(containers) == 2, "the pod's sandbox and its container"
        owner.kill()

    wait_until("the guard to sweep up", lambda: not slot.run.exists(), deadline_s=30)
    assert str(slot.run) not in Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert slot.bridge not in [name for _, name in socket.if_nameindex()]
    assert not [each for each in containers if each.is_alive()]


@pytest.mark.node
def test_up_and_down_are_idempotent_and_up_again_after_everything_was_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(TESTS)}

    def command(word: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "cluster", word]
        return subprocess.run(
            [*argv, *(["-o", "json"] if word == "status" else [])],
            env=environment,
            text=True,
            capture_output=True,
            check=False,
        )

    try:
        assert "is up\n" in command("up").stderr
        assert "is up already" in command("up").stderr
        first = command("status")
        assert first.returncode == 0, first.stderr
        for part in json.loads(first.stdout)["parts"]:
            if part["pid"] is not None:  # the operator runs in a pod, where its image can be built
                os.kill(part["pid"], signal.SIGKILL)
        assert command("status").returncode == 3
        assert "is up\n" in command("up").stderr
        assert command("status").returncode == 0
    finally:
        assert "is down" in command("down").stderr
    assert "nothing to do" in command("down").stderr
    assert not (tmp_path / "distillchain" / "cluster").exists()


@pytest.mark.node
def test_a_slot_is_free_again_when_its_holder_lets_go() -> None:
    first, second = claim_slot(), claim_slot()
    taken = try_slot(first.number)
    first.release()
    again = try_slot(first.number)

    for slot in (first, second, again):
        if slot is not None:
            slot.release()
    assert first.number != second.number
    assert taken is None
    assert again is not None
