"""Commands and options that users of kubectl expect, on a real API server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import yaml

from chain_builders import a_document
from cli.parts import distillchain, distillchain_here, write_chain
from cli.scene import NAME, Scene
from cli.test_kubeconfig import KUBECONFIG
from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.output.output import OBJECT_FORMATS, output_of
from distillchain_cli.status import list_watch
from distillchain_operator.jobs.labels import CHAIN_LABEL, STAGE_LABEL

on_api_server = [pytest.mark.cluster, pytest.mark.xdist_group("cli")]
RESOURCE = f"distillationchain.distillchain.io/{NAME}"


def with_marks(function: Any) -> Any:
    for mark in on_api_server:
        function = mark(function)
    return function


def create_chain(scene: Scene, name: str, **labels: str) -> None:
    document = a_document(name)
    document["metadata"] |= {"labels": labels}
    scene.cluster.kubectl("-n", scene.namespace, "apply", "-f", "-", input=json.dumps(document))


def names_on_cluster(scene: Scene) -> list[str]:
    listed = scene.cluster.kubectl("-n", scene.namespace, "get", "dchain", "-o", "jsonpath={.items[*].metadata.name}")
    return sorted(listed.stdout.split())


# --- -o name, jsonpath


@with_marks
def test_names_and_templates_of_a_list_are_those_of_kubectl(scene: Scene):
    template = 'jsonpath={range .items[*]}{.metadata.name}{"\\n"}{end}'

    names = scene.distillchain("list", "-o", "name")
    texts = scene.distillchain("list", "-o", template)
    status = scene.write_status(tiny="Running")
    phase = scene.distillchain("status", NAME, "-o", "jsonpath={.stages[0].digest}")

    def of_kubectl(output: str) -> str:
        return scene.cluster.kubectl("-n", scene.namespace, "get", "dchain", "-o", output).stdout

    assert names.stdout == of_kubectl("name") == f"{RESOURCE}\n"
    assert texts.stdout == of_kubectl(template) == f"{NAME}\n"
    assert phase.stdout == status.stages[0].digest


# --- list -w


@with_marks
def test_a_watched_list_prints_a_line_for_each_change(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("list", "-w") as watch:
        watch.wait_for("Running")
        scene.cluster.kubectl("-n", scene.namespace, "label", "dchain", NAME, "team=nlp")  # a line does not show it
        scene.write_status(tiny="Failed")
        watch.wait_for("Failed")
        create_chain(scene, "another")
        watch.wait_for("another")
        scene.cluster.kubectl("-n", scene.namespace, "delete", "dchain", "another")
        watch.wait_for("deleted")

    assert [line.split()[:3] for line in watch.stdout.splitlines()] == [
        ["NAME", "PHASE", "STAGE"],
        [NAME, "Running", "1/2"],
        [NAME, "Failed", "1/2"],
        ["another", "Pending", "-"],
        [f"{scene.namespace}/another", "deleted"],
    ], watch.dump()


@with_marks
def test_a_watched_list_in_json_has_one_object_in_a_line(scene: Scene):
    with scene.start("list", "-w", "-o", "json") as watch:
        watch.wait_for(NAME)
        scene.write_status(tiny="Running")
        watch.wait_for("Running")

    first, *_, last = [json.loads(line) for line in watch.stdout.splitlines()]
    assert (first["kind"], last["kind"]) == ("DistillationChain", "DistillationChain")
    assert (first["status"].get("phase"), last["status"]["phase"]) == (None, "Running")


@pytest.mark.parametrize(
    "output, goes_to",
    [("table", "stdout"), ("wide", "stdout"), *((name, "stderr") for name in ("json", "yaml", "name"))],
)
def test_a_deletion_is_printed_where_it_does_not_disturb_a_program(
    output: str, goes_to: str, monkeypatch: pytest.MonkeyPatch
):
    metadata = {"uid": "u", "namespace": "ml", "resourceVersion": "1", "creationTimestamp": "2026-01-01T12:00:00Z"}
    document = a_document()
    document["metadata"] |= metadata
    monkeypatch.setattr(list_watch, "follow", lambda *_: iter([{"u": document}, {}]))
    lines: dict[str, list[str]] = {"stdout": [], "stderr": []}

    list_watch.watch_list(
        mock.create_autospec(Cluster),
        everywhere=False,
        selector=None,
        output=output_of(OBJECT_FORMATS)(output),
        line=lines["stdout"].append,
        note=lines["stderr"].append,
    )

    found = [stream for stream, printed in lines.items() if f"ml/{document['metadata']['name']} deleted" in printed]
    assert found == [goes_to]


# --- --as, --as-group


@with_marks
def test_as_acts_with_the_rights_of_another_user_and_groups(scene: Scene):
    of = ("-n", scene.namespace)
    scene.cluster.kubectl(*of, "create", "role", "r", "--verb=list", "--resource=distillationchains.distillchain.io")
    scene.cluster.kubectl(*of, "create", "rolebinding", "r", "--role=r", "--group=readers")

    alone = scene.distillchain("list", "--as", "jane")
    as_member = scene.distillchain("list", "--as", "jane", "--as-group", "writers", "--as-group", "readers")

    assert alone.returncode == 1
    assert 'User "jane" cannot list resource "distillationchains"' in alone.stderr
    assert (as_member.returncode, NAME in as_member.stdout) == (0, True), as_member.stderr


def test_a_group_needs_a_user(tmp_path: Path):
    done = distillchain_here("list", "--as-group", "readers", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (2, "--as-group: expected together with --as, which names the user\n")


# --- validate --dry-run=server


@with_marks
def test_the_api_server_can_validate_without_creating(scene: Scene):
    write_chain(scene.folder, storage={"uri": "s3://models/distill"})
    document = yaml.safe_load((scene.folder / "chain.yaml").read_text())
    elsewhere = scene.folder / "elsewhere.yaml"
    elsewhere.write_text(yaml.safe_dump(document | {"metadata": {"name": "x", "namespace": "nowhere"}}))
    # As `kubectl get -o yaml` prints it, with fields that the API server has set.
    stored = scene.folder / "stored.yaml"
    stored.write_text(scene.cluster.kubectl("-n", scene.namespace, "get", "dchain", NAME, "-o", "yaml").stdout)

    good = scene.distillchain("validate", "--dry-run", "server", "-f", "chain.yaml", "-f", "stored.yaml")
    bad = scene.distillchain("validate", "--dry-run=server", "elsewhere.yaml")
    contradiction = scene.distillchain("validate", "--dry-run=server", "elsewhere.yaml", "-n", "ml")

    assert good.returncode == 0, good.stderr
    assert [line.split(": ")[1] for line in good.stdout.splitlines()] == ["valid, also for the API server"] * 2
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == 'elsewhere.yaml: namespaces "nowhere" not found\n'
    assert contradiction.stderr == (
        "elsewhere.yaml: metadata.namespace: got nowhere, expected ml as --namespace says; correct one of them\n"
    )
    assert names_on_cluster(scene) == [NAME]


@with_marks
def test_a_field_that_the_file_leaves_out_does_not_count_in_a_dry_run(scene: Scene):
    # The chain on the cluster has student.model, which must not stand beside student.fromTeacher.
    document = a_document(NAME)
    document["spec"]["stages"][0]["student"] = {"fromTeacher": {"layers": 2}}
    (scene.folder / "chain.yaml").write_text(yaml.safe_dump(document))

    done = scene.distillchain("validate", "--dry-run=server", "chain.yaml")

    assert done.returncode == 0, done.stderr


# --- describe


@with_marks
def test_describe_shows_spec_status_conditions_and_events(scene: Scene):
    scene.write_status(tiny="Failed")
    scene.create_event("StageFailed", "stage tiny: LabelMismatch: labels differ", type="Warning")

    done = scene.distillchain("describe", NAME)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        f"Name:         {NAME}",
        f"Namespace:    {scene.namespace}",
        "Labels:       -",
        "Annotations:  -",
    ]
    assert "Teacher:      hf://org/teacher" in lines
    assert "Students:     mini (hf://org/mini) -> tiny (hf://org/tiny)" in lines
    assert f"{scene.namespace}/{NAME}: Failed, 1/2 stages committed" in lines
    assert any(line.split()[:3] == ["Stalled", "True", "LabelMismatch"] for line in lines), done.stdout
    assert any(line.split()[1:3] == ["Warning", "StageFailed"] for line in lines), done.stdout


@with_marks
def test_describe_works_without_the_right_to_read_events(scene: Scene):
    done = distillchain("describe", NAME, cwd=scene.folder, KUBECONFIG=str(scene.reader_kubeconfig()))

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("events: not allowed to read them\n")


# --- delete


@with_marks
def test_delete_removes_the_named_chains_and_their_jobs(scene: Scene):
    create_chain(scene, "first", team="nlp")
    create_chain(scene, "second", team="nlp")
    create_chain(scene, "third")

    by_name = scene.distillchain("delete", NAME)
    by_label = scene.distillchain("delete", "-l", "team=nlp", "-o", "name")
    missing = scene.distillchain("delete", "nothing")
    ignored = scene.distillchain("delete", "nothing", "--ignore-not-found")
    neither = scene.distillchain("delete")

    assert (by_name.returncode, by_name.stdout) == (0, f"{RESOURCE} deleted\n"), by_name.stderr
    assert by_label.stdout == "".join(f"distillationchain.distillchain.io/{name}\n" for name in ("first", "second"))
    assert names_on_cluster(scene) == ["third"]
    assert (missing.returncode, missing.stdout) == (1, "")
    assert (ignored.returncode, ignored.stderr) == (0, f"there are no such chains in namespace {scene.namespace}\n")
    assert (neither.returncode, neither.stderr) == (
        2,
        "expected names of chains, --filename, --selector or --all, and only one of them\n",
    )


@with_marks
def test_delete_takes_files_whose_chains_need_not_be_valid(scene: Scene, tmp_path: Path):
    create_chain(scene, "first")
    create_chain(scene, "second")
    create_chain(scene, "third")
    (tmp_path / "team").mkdir()
    first = f"kind: DistillationChain\nmetadata: {{name: first, namespace: {scene.namespace}}}"
    gone = "kind: DistillationChain\nmetadata: {name: gone}"
    (tmp_path / "team" / "chains.yaml").write_text(f"{first}\n---\n{gone}\n---\n{{kind: Secret}}\n")
    (tmp_path / "second.json").write_text('{"kind": "DistillationChain", "metadata": {"name": "second"}}')

    done = scene.distillchain("delete", "-R", "-f", str(tmp_path), "--ignore-not-found", "-o", "name")

    assert done.stdout == "".join(f"distillationchain.distillchain.io/{name}\n" for name in ("second", "first"))
    assert names_on_cluster(scene) == sorted([NAME, "third"])


@with_marks
def test_delete_waits_for_finalizers_as_long_as_it_is_allowed_to(scene: Scene):
    patch = ("patch", "dchain", NAME, "--type=merge", "-p")
    scene.cluster.kubectl("-n", scene.namespace, *patch, '{"metadata": {"finalizers": ["example.com/wait"]}}')

    at_once = scene.distillchain("delete", NAME, "--no-wait")
    waited = scene.distillchain("delete", NAME, "--timeout", "1s")
    scene.cluster.kubectl("-n", scene.namespace, *patch, '{"metadata": {"finalizers": null}}')

    assert (at_once.returncode, at_once.stderr) == (0, "")
    assert waited.returncode == 1
    assert waited.stderr == f"{NAME} still exists after 1 s; see metadata.finalizers of the chain\n"


# --- requests as a server sees them


class Server(BaseHTTPRequestHandler):
    """An API server of one chain with one pod; it records requests, and never answers if `is_silent`."""

    requests: ClassVar[list[str]] = []
    is_silent: ClassVar[bool] = False
    released = threading.Event()

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.is_silent:
            self.released.wait(30)
            return
        path, _, _ = self.path.partition("?")
        body = "2026-01-01T12:00:00Z a line\n" if path.endswith("/log") else json.dumps(self._document(path))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def _document(self, path: str) -> dict[str, Any]:
        if path.endswith("/pods"):
            return {"metadata": {"resourceVersion": "1"}, "items": [POD]}
        chain = a_document("relay")
        return chain | {"metadata": chain["metadata"] | {"namespace": "ml", "uid": "u"}}

    def log_message(self, *_: object) -> None:
        """Keep stderr free."""


POD: dict[str, Any] = {
    "metadata": {
        "name": "relay-mini-x",
        "uid": "p",
        "creationTimestamp": "2026-01-01T12:00:00Z",
        "labels": {CHAIN_LABEL: "relay", STAGE_LABEL: "mini"},
    },
    "status": {
        "phase": "Running",
        "containerStatuses": [{"name": "trainer", "state": {"running": {"startedAt": "2026-01-01T12:00:00Z"}}}],
    },
}


@contextmanager
def serving(folder: Path, *, is_silent: bool = False) -> Iterator[Path]:
    """A kubeconfig of the server."""
    Server.requests.clear()
    Server.is_silent = is_silent
    Server.released.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    path = folder / "config"
    path.write_text(yaml.safe_dump(KUBECONFIG | {"clusters": [cluster], "current-context": "x"}))
    try:
        yield path
    finally:
        Server.released.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "content, want",
    [
        ("{kind: Secret}", "chain.yaml: found no DistillationChain, expected at least one"),
        ("{kind: DistillationChain}", "chain.yaml: metadata.name: missing, expected the name of a chain; add it"),
        (
            "{kind: DistillationChain, metadata: {name: a, namespace: ml}}",
            "chain.yaml: metadata.namespace: got ml, expected other as --namespace says; correct one of them",
        ),
    ],
)
def test_delete_refuses_a_file_without_a_chain_that_it_can_find(tmp_path: Path, content: str, want: str):
    (tmp_path / "chain.yaml").write_text(content)
    with serving(tmp_path) as kubeconfig:
        argv = ("delete", "-f", "chain.yaml", "-n", "other")
        done = distillchain_here(*argv, cwd=tmp_path, KUBECONFIG=str(kubeconfig))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{want}\n")


def test_logs_since_asks_for_the_lines_of_the_last_seconds(tmp_path: Path):
    with serving(tmp_path) as kubeconfig:
        done = distillchain_here("logs", "relay", "--since", "5m", cwd=tmp_path, KUBECONFIG=str(kubeconfig))

    assert (done.returncode, done.stdout) == (0, "[mini] a line\n"), done.stderr
    assert "sinceSeconds=300" in Server.requests[-1]


def test_a_request_ends_after_the_request_timeout(tmp_path: Path):
    with serving(tmp_path, is_silent=True) as kubeconfig:
        done = distillchain_here("list", "--request-timeout", "1s", cwd=tmp_path, KUBECONFIG=str(kubeconfig))

    assert done.returncode == 1
    assert done.stderr.endswith(" does not answer\n")
