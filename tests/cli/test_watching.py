"""Following a chain on a real API server: to its end, over connections that are really lost, and over forgotten changes."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from cli.scene import DEADLINE_S, NAME, Scene
from cluster.cut import CuttableRelay
from cluster.waiting import wait_until
from distillchain_cli import status_watch, watching
from distillchain_cli.cluster import Cluster, Collection
from distillchain_cli.errors import Expired, Refused
from distillchain_cli.watching import Lost, Watched, follow

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cli")]


def connect(scene: Scene, kubeconfig: Path | None = None) -> Cluster:
    return Cluster(kubeconfig=str(kubeconfig or scene.kubeconfig()), context=None, namespace=None)


def test_a_watch_tells_each_change_and_ends_with_0_on_success(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: running")
        scene.write_status(tiny="Running", step=120)
        watch.wait_for("train 120/600")
        want = scene.write_status(tiny="Committed")

        assert watch.end() == 0, watch.dump()

    assert want.result is not None
    assert watch.stdout.splitlines() == [
        f"{scene.namespace}/{NAME}: Running, 1/2 stages committed",
        f"stage mini: committed after 0:00:41, accuracy 0.8500: {want.stages[0].checkpoint}",
        "stage tiny: running",
        "stage tiny: train 120/600 loss 0.41 812 examples/s",
        f"{scene.namespace}/{NAME}: Succeeded, 2/2 stages committed",
        f"stage tiny: committed after 0:00:41, accuracy 0.8100: {want.stages[1].checkpoint}",
    ]
    assert watch.stderr == f"succeeded: {want.result.checkpoint}\n"


def test_a_failure_ends_the_watch_with_1_and_where_to_read_on(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: running")
        scene.write_status(tiny="Failed")

        assert watch.end() == 1

    assert watch.stdout.splitlines()[-1] == "stage tiny: failed: LabelMismatch: labels differ"
    assert watch.stderr == "failed: tiny: labels differ\nsee docs/troubleshooting.md#labelmismatch\n"


@pytest.mark.parametrize("command", [("status", "-w"), ("logs", "-f")])
def test_a_stall_that_clears_by_itself_ends_nothing(scene: Scene, command: tuple[str, str]):
    """As a registry that answers one pull with 429."""
    word, flag = command
    scene.write_status(tiny="Running", stalled="pod x: ErrImagePull: too many requests")
    with scene.start(word, NAME, flag) as watch:
        watch.wait_for("too many requests")
        scene.write_status(tiny="Running", step=120)
        watch.wait_for("train 120/600" if word == "status" else "running tiny")
        scene.write_status(tiny="Committed")

        assert watch.end() == 0, watch.dump()

    assert watch.stderr.splitlines()[-1].startswith("succeeded: ")


def test_a_stall_that_stays_ends_the_watch(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(status_watch, "STALL_PATIENCE_S", 0.5)
    scene.write_status(tiny="Running", stalled="no such image")

    verdict = status_watch.watch_status(connect(scene), NAME, lambda: nullcontext(Unseen()))

    assert verdict.lines == ("stalled: tiny: no such image", "see docs/troubleshooting.md#podrejected")
    assert not verdict.final


class Unseen:
    """A screen that nobody looks at."""

    def show(self, _: status_watch.Scene) -> None:
        return


def test_a_failed_stage_that_was_told_to_try_again_is_no_end(scene: Scene):
    scene.write_status(tiny="Failed")
    scene.fail_job()
    assert scene.distillchain("retry", NAME).returncode == 0
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: failed")  # as the operator left it, which has yet to look
        scene.write_status(tiny="Running")
        watch.wait_for("stage tiny: running")
        scene.write_status(tiny="Committed")

        assert watch.end() == 0, watch.dump()


def test_a_watch_survives_cut_connections_and_an_api_server_that_is_away(scene: Scene):
    scene.write_status(tiny="Running")
    with CuttableRelay(scene.cluster.url) as relay:
        kubeconfig = relay.write_kubeconfig(scene.cluster.kubeconfig, scene.folder / "cut", namespace=scene.namespace)
        with scene.start("status", NAME, "-w", kubeconfig=kubeconfig) as watch:
            watch.wait_for("stage tiny: running")
            relay.cut()
            watch.wait_for("connected again")
            scene.write_status(tiny="Running", step=120)
            watch.wait_for("train 120/600")

            relay.cut(for_good=True)
            wait_until("the loss to be told", lambda: watch.stdout.count("reconnecting") >= 2, deadline_s=DEADLINE_S)
            scene.write_status(tiny="Committed")
            assert watch.process.poll() is None
            relay.restore()

            assert watch.end() == 0, watch.dump()

    assert watch.stdout.splitlines()[-2:][0].endswith("Succeeded, 2/2 stages committed")
    assert "Traceback" not in watch.stderr


def test_a_restarted_api_server_is_found_again(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: running")
        scene.cluster.restart_apiserver()
        scene.write_status(tiny="Committed")

        assert watch.end() == 0, watch.dump()

    assert "reconnecting: " in watch.stdout


def test_changes_the_api_server_has_forgotten_are_listed_again(scene: Scene):
    cluster = connect(scene)
    chain = cluster.the_chain(NAME)
    with pytest.raises(Expired, match="too old"):
        list(cluster.watch(chain, "1"))

    class Late(Cluster):
        """Its first list is so old that the changes since are forgotten: a laptop that slept."""

        lists = 0

        def list(self, collection: Collection) -> tuple[list[dict[str, Any]], str]:
            items, version = super().list(collection)
            self.lists += 1
            return items, version if self.lists > 1 else "1"

    late = Late(kubeconfig=str(scene.kubeconfig()), context=None, namespace=None)
    seen = follow(late, chain)
    next(seen)
    again = next(seen)
    scene.write_status(tiny="Running")
    changed = next(seen)

    assert late.lists == 2
    assert not isinstance(again, Lost)
    assert not isinstance(changed, Lost)
    (item,) = changed.values()
    assert item["status"]["phase"] == "Running"


def test_several_collections_are_kept_at_once_and_what_is_deleted_leaves(scene: Scene):
    cluster = connect(scene)
    watched = Watched(cluster, {"chain": cluster.the_chain(NAME), "events": cluster.events()})
    assert [chain["metadata"]["name"] for chain in watched["chain"]] == [NAME]

    scene.tell("StageStarted", "stage mini: Job x")
    scene.cluster.kubectl("-n", scene.namespace, "delete", "dchain", NAME)

    def both() -> bool:
        watched.wait(0.1)
        return not watched["chain"] and "StageStarted" in [event["reason"] for event in watched["events"]]

    wait_until("both changes", both, deadline_s=DEADLINE_S)


def test_a_chain_that_is_deleted_ends_its_watch_in_a_sentence(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: running")
        scene.cluster.kubectl("-n", scene.namespace, "delete", "dchain", NAME)

        assert watch.end() == 1

    assert watch.stderr == f"DistillationChain {NAME} was deleted\n"


def test_ctrl_c_ends_a_watch_without_a_word(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: running")
        watch.process.send_signal(signal.SIGINT)

        assert watch.end() == 130

    assert watch.stderr == ""


def test_a_watch_in_json_is_a_status_a_line(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w", "-o", "json") as watch:
        watch.wait_for('"Running"')
        want = scene.write_status(tiny="Committed")

        assert watch.end() == 0

    assert [json.loads(line)["phase"] for line in watch.stdout.splitlines()] == ["Running", "Succeeded"]
    assert json.loads(watch.stdout.splitlines()[1]) == want.to_document()


def test_who_may_not_read_events_and_pods_may_still_watch(scene: Scene):
    scene.write_status(tiny="Running", step=120)
    with scene.start("status", NAME, "-w", kubeconfig=scene.reader_kubeconfig()) as watch:
        watch.wait_for("train 120/600")
        scene.write_status(tiny="Committed")

        assert watch.end() == 0, watch.dump()
    assert watch.stderr.startswith("succeeded: ")


class Refusing:
    """A stand-in for an API server whose Roles allow list and not watch; how long it is asked is ours to count."""

    def __init__(self, allowed_after: int) -> None:
        self.allowed_after, self.lists, self.watches = allowed_after, 0, 0

    def list(self, _: Collection) -> tuple[list[dict[str, Any]], str]:
        self.lists += 1
        return [], "1"

    def watch(self, _: Collection, version: str) -> Iterator[dict[str, Any]]:
        self.watches += 1
        if self.watches <= self.allowed_after:
            raise Refused("the API server refused: watch is forbidden")
        metadata = {"uid": "u", "resourceVersion": version}
        yield {"type": "ADDED", "object": {"metadata": metadata}}


def seen(server: Refusing, count: int) -> list[Any]:
    return list(itertools.islice(follow(cast("Cluster", server), cast("Collection", None)), count))


def test_a_watch_that_is_refused_for_a_moment_is_made_anew():
    told = seen(Refusing(allowed_after=1), 4)
    assert [type(each) for each in told[:3]] == [dict, Lost, dict]
    assert told[3] == {"u": {"metadata": {"uid": "u", "resourceVersion": "1"}}}


def test_a_watch_that_is_refused_for_good_ends_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watching, "REFUSAL_PATIENCE_S", 2)
    server = Refusing(allowed_after=10**6)
    with pytest.raises(Refused, match="watch is forbidden"):
        seen(server, 40)
    assert server.lists <= 2 / watching.FIRST_PAUSE_S + 2, "not without a pause"
