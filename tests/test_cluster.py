"""The harness itself: each real part shows the behaviour for which it was put in."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from cluster import build, prerequisites
from cluster.controlplane import ControlPlane
from cluster.errors import ClusterError, CommandFailed, DidNotHappen, PrerequisiteMissing, ProcessDied
from cluster.images import HOST_PYTHON_IMAGE, PAUSE_IMAGE, build_scratch_image, host_python_pod_template
from cluster.ports import free_ports
from cluster.processes import Processes, identify
from cluster.s3 import S3Server
from cluster.slot import Slot, claim_slot, try_slot
from cluster.waiting import wait_until
from cluster.whole import WholeCluster

TESTS = Path(__file__).parent

# As the operator makes its pods.
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 1000,
}

WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.tests.distillchain.io"},
    "spec": {
        "group": "tests.distillchain.io",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        ],
    },
}


def a_job(
    name: str,
    namespace: str,
    *command: str,
    image: str = PAUSE_IMAGE,
    pod: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A Job of one pod, written as the operator writes it: into a template of the user."""
    spec: dict[str, Any] = json.loads(json.dumps((pod or {"spec": {"containers": [{"name": "trainer"}]}})["spec"]))
    (container,) = spec["containers"]
    container |= {
        "image": image,
        "command": list(command),
        "securityContext": RESTRICTED,
        "resources": {"limits": limits or {}},
        "volumeMounts": [*container.get("volumeMounts", []), {"name": "scratch", "mountPath": "/tmp"}],
    }
    spec |= {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 3,
        "volumes": [*spec.get("volumes", []), {"name": "scratch", "emptyDir": {}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }


def the_pod(cluster: ControlPlane, namespace: str, job: str) -> dict[str, Any]:
    (pod,) = cluster.get("pods", "-n", namespace, "-l", f"job-name={job}")["items"]
    return dict(pod)


def wait_for(cluster: ControlPlane, namespace: str, what: str, condition: str) -> None:
    waited = cluster.kubectl("wait", what, "-n", namespace, f"--for={condition}", "--timeout=60s", check=False)
    if waited.returncode != 0:
        state = cluster.kubectl("describe", "pods", "-n", namespace, check=False).stdout
        logs = cluster.kubectl("logs", "-n", namespace, "-l", "job-name", "--tail=50", check=False).stdout
        pytest.fail(f"{waited.stderr}\n{state}\n{logs}")


def run_python(code: str) -> subprocess.Popen[str]:
    """Another process that uses the harness; it says on its first lines what the test must know."""
    return subprocess.Popen([sys.executable, "-c", code], cwd=TESTS, stdout=subprocess.PIPE, text=True)


# The control plane.


@pytest.mark.cluster
def test_an_administrator_may_and_the_version_is_the_pinned_one(control_plane: ControlPlane) -> None:
    version = json.loads(control_plane.kubectl("version", "-o", "json").stdout)

    assert version["serverVersion"]["gitVersion"] == "v1.34.4"
    assert version["clientVersion"]["minor"] == "34"


@pytest.mark.cluster
def test_a_service_account_may_only_what_rbac_grants(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "serviceaccount", "watcher", "-n", namespace)
    control_plane.kubectl("create", "role", "watcher", "--verb=list", "--resource=pods", "-n", namespace)
    control_plane.kubectl(
        "create", "rolebinding", "watcher", "--role=watcher", f"--serviceaccount={namespace}:watcher", "-n", namespace
    )
    kubeconfig = control_plane.kubeconfig_for(namespace, "watcher")

    control_plane.kubectl(f"--kubeconfig={kubeconfig}", "get", "pods")
    with pytest.raises(CommandFailed, match=r"Forbidden.*cannot list resource \"secrets\""):
        control_plane.kubectl(f"--kubeconfig={kubeconfig}", "get", "secrets")


@pytest.mark.cluster
def test_an_outage_of_the_api_server_loses_nothing(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "configmap", "kept", "-n", namespace)

    control_plane.stop_apiserver()
    assert control_plane.kubectl("get", "namespaces", check=False).returncode != 0
    control_plane.start_apiserver()

    assert control_plane.get("configmap", "kept", "-n", namespace)["metadata"]["name"] == "kept"


@pytest.mark.cluster
def test_dependents_of_a_fresh_kind_are_collected_at_once_after_a_restart_of_the_controllers(
    control_plane: ControlPlane, namespace: str
) -> None:
    control_plane.apply(WIDGETS)
    control_plane.wait_until_served("widgets")
    control_plane.restart_controllers()
    widget = {"apiVersion": "tests.distillchain.io/v1", "kind": "Widget"}
    control_plane.apply(widget | {"metadata": {"name": "owner", "namespace": namespace}})
    uid = control_plane.get("widget", "owner", "-n", namespace)["metadata"]["uid"]
    metadata = {"name": "owned", "namespace": namespace, "ownerReferences": [widget | {"name": "owner", "uid": uid}]}
    control_plane.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})

    control_plane.kubectl("delete", "widget", "owner", "-n", namespace)

    control_plane.kubectl("wait", "configmap/owned", "-n", namespace, "--for=delete", "--timeout=10s")


@pytest.mark.cluster
def test_a_control_plane_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    owner = run_python(f"""
from pathlib import Path
from cluster.controlplane import ControlPlane
with ControlPlane(Path({str(tmp_path)!r})) as cluster:
    print(*(cluster.processes.pid(name) for name in cluster.processes.names()), flush=True)
    input()
""")
    assert owner.stdout is not None
    with owner, owner.stdout as said:
        parts = [identify(int(pid)) for pid in said.readline().split()]
        owner.kill()

    assert len(parts) == 3
    wait_until("all parts to die", lambda: not any(part and part.is_alive() for part in parts), deadline_s=10)


@pytest.mark.cluster
def test_sigterm_stops_everything_in_good_order(tmp_path: Path) -> None:
    owner = run_python(f"""
from pathlib import Path
from cluster.s3 import S3Server
with S3Server(Path({str(tmp_path)!r})) as s3:
    print(s3.endpoint, flush=True)
    __import__("time").sleep(60)
""")
    assert owner.stdout is not None
    with owner, owner.stdout as said:
        assert said.readline().startswith("http://127.0.0.1:")
        owner.terminate()

    assert owner.returncode != 0
    assert json.loads((tmp_path / "processes.json").read_text()) == {}


# S3.


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("access_key", "secret_key", "want_code"),
    [
        pytest.param("distillchain", "wrong", "SignatureDoesNotMatch", id="right key, wrong secret"),
        pytest.param("nobody", "only-for-tests", "InvalidAccessKeyId", id="unknown key"),
    ],
)
def test_s3_refuses_wrong_credentials(
    s3: S3Server, bucket: str, access_key: str, secret_key: str, want_code: str
) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
    )

    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key="x", Body=b"")

    assert refused.value.response["Error"]["Code"] == want_code


@pytest.mark.cluster
def test_s3_does_not_make_a_bucket_that_nobody_asked_for(s3: S3Server) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3.client().put_object(Bucket="never-made", Key="x", Body=b"")


@pytest.mark.cluster
def test_a_conditional_put_and_a_conditional_multipart_upload_never_overwrite(s3: S3Server, bucket: str) -> None:
    client, name = s3.client(), bucket.removeprefix("s3://")
    client.put_object(Bucket=name, Key="manifest", Body=b"first", IfNoneMatch="*")

    with pytest.raises(ClientError) as second_put:
        client.put_object(Bucket=name, Key="manifest", Body=b"second", IfNoneMatch="*")
    upload = client.create_multipart_upload(Bucket=name, Key="manifest")["UploadId"]
    part = client.upload_part(Bucket=name, Key="manifest", UploadId=upload, PartNumber=1, Body=b"third")
    with pytest.raises(ClientError) as multipart:
        client.complete_multipart_upload(
            Bucket=name,
            Key="manifest",
            UploadId=upload,
            MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
            IfNoneMatch="*",
        )

    for refused in (second_put, multipart):
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert client.get_object(Bucket=name, Key="manifest")["Body"].read() == b"first"


@pytest.mark.cluster
def test_s3_keeps_objects_and_endpoint_over_an_outage(s3: S3Server, bucket: str) -> None:
    client, name, endpoint = s3.client(), bucket.removeprefix("s3://"), s3.endpoint
    content = os.urandom(5 << 20)  # more than one chunk of SeaweedFS
    client.put_object(Bucket=name, Key="weights", Body=content)

    s3.stop()
    s3.start()

    assert s3.endpoint == endpoint
    assert client.get_object(Bucket=name, Key="weights")["Body"].read() == content


# The node.


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
from test_cluster import a_job, wait_for
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


# The small parts, without any server.


def test_a_process_that_dies_at_once_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("failing", ["sh", "-c", "echo no such flag; exit 1"])
    wait_until("its end", lambda: not processes.is_running("failing"), deadline_s=10)

    with pytest.raises(ProcessDied, match=r"failing ended by itself; the end of .*failing\.log:\nno such flag"):
        processes.check("failing")
    processes.stop_all()


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"])
    wait_until("its trap", lambda: "ready" in processes.log("stubborn").read_text(), deadline_s=10)

    processes.stop("stubborn", grace_s=0.1)

    assert not processes.is_running("stubborn")


def test_processes_of_a_dead_owner_are_known_and_stopped_by_the_next(tmp_path: Path) -> None:
    run_python(f"""
from pathlib import Path
from cluster.processes import Processes
Processes(Path({str(tmp_path)!r}), outlive_caller=True).start("left", ["sleep", "1000"])
""").communicate()
    next_owner = Processes(tmp_path)
    assert next_owner.is_running("left")

    next_owner.stop_all()

    assert Processes(tmp_path).names() == []


def test_a_recorded_pid_that_means_another_process_now_is_left_alone(tmp_path: Path) -> None:
    me = identify(os.getpid())
    assert me is not None
    record = {"gone": {"pid": me.pid, "started_ticks": me.started_ticks - 1}}
    (tmp_path / "processes.json").write_text(json.dumps(record))

    Processes(tmp_path).stop_all()  # would end this test otherwise

    assert Processes(tmp_path).names() == []


def test_ports_are_given_once(tmp_path: Path) -> None:
    ours = free_ports(50)
    theirs = run_python("from cluster.ports import free_ports; print(*free_ports(50))").communicate()[0].split()

    assert len({*ours, *map(int, theirs)}) == 100


def test_a_missed_deadline_tells_what_was_seen() -> None:
    started = time.monotonic()

    with pytest.raises(DidNotHappen, match=r"^waited 0\.1 s for the sun\nit rains$"):
        wait_until("the sun", lambda: False, deadline_s=0.1, dump=lambda: "it rains")

    assert time.monotonic() - started < 5


def test_an_image_is_the_same_bytes_for_the_same_files(tmp_path: Path) -> None:
    first, second = (
        build_scratch_image("x.io/x:1", tmp_path / name, files={"a/b": b"1"}, directories=["tmp"]) for name in "12"
    )

    assert first.read_bytes() == second.read_bytes()


def test_a_folder_for_its_owner_only_is_refused_as_a_mount(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    with pytest.raises(ClusterError, match=f"`chmod o\\+rx {tmp_path}` opens it"):
        host_python_pod_template(tmp_path)


def test_without_go_the_message_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(PrerequisiteMissing, match=r"no `go` is on PATH; install Go 1\.\d+"):
        build.ensure_binaries()


def test_without_root_a_node_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # the suite itself may run as root

    with pytest.raises(PrerequisiteMissing, match="run it as root"):
        prerequisites.ensure_tools()
