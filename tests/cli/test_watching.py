"""Following a chain on a real API server: to its end, across lost connections, and after changes were discarded."""

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
from distillchain_cli.api_server import watching
from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.cluster import Cluster, Collection
from distillchain_cli.api_server.watching import Disconnected, WatchedCollections, follow
from distillchain_cli.errors import Expired, Refused
from distillchain_cli.status import watch as status_watch
from distillchain_cli.status.snapshot import Snapshot

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cli")]


def connect(scene: Scene, kubeconfig: Path | None = None) -> Cluster:
    return Cluster(Access(kubeconfig=str(kubeconfig or scene.kubeconfig())))


def test_a_watch_prints_each_change_and_ends_with_exit_code_0_on_success(scene: Scene):
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


def test_a_failure_ends_the_watch_with_exit_code_1_and_a_link(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: running")
        scene.write_status(tiny="Failed")

        assert watch.end() == 1

    assert watch.stdout.splitlines()[-1] == "stage tiny: failed: LabelMismatch: labels differ"
    assert watch.stderr == "failed: tiny: labels differ\nsee docs/troubleshooting.md#labelmismatch\n"


@pytest.mark.parametrize("command", [("status", "-w"), ("logs", "-f")])
def test_a_stall_that_clears_by_itself_does_not_end_the_command(scene: Scene, command: tuple[str, str]):
    """For example, a registry that answers one pull with 429."""
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

    outcome = status_watch.watch_status(connect(scene), NAME, lambda: nullcontext(NoScreen()))

    assert outcome.lines == ("stalled: tiny: no such image", "see docs/troubleshooting.md#podrejected")
    assert not outcome.final


class NoScreen:
    """A screen that shows nothing."""

    def show(self, _: Snapshot) -> None:
        return


def test_a_watch_continues_when_a_failed_stage_is_retried(scene: Scene):
    scene.write_status(tiny="Failed")
    assert scene.distillchain("retry", NAME).returncode == 0
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: failed")  # the operator has not seen the retry yet
        scene.write_status(tiny="Running")
        watch.wait_for("stage tiny: running")
        scene.write_status(tiny="Committed")

        assert watch.end() == 0, watch.dump()


def test_a_watch_survives_lost_connections_and_an_unreachable_api_server(scene: Scene):
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
            wait_until(
                "the second loss to be printed", lambda: watch.stdout.count("reconnecting") >= 2, deadline_s=DEADLINE_S
            )
            scene.write_status(tiny="Committed")
            assert watch.process.poll() is None
            relay.restore()

            assert watch.end() == 0, watch.dump()

    assert watch.stdout.splitlines()[-2:][0].endswith("Succeeded, 2/2 stages committed")
    assert "Traceback" not in watch.stderr


def test_a_watch_survives_a_restart_of_the_api_server(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: running")
        scene.cluster.restart_apiserver()
        scene.write_status(tiny="Committed")

        assert watch.end() == 0, watch.dump()

    assert "reconnecting: " in watch.stdout


def test_the_collection_is_listed_again_when_the_api_server_discarded_changes(scene: Scene):
    cluster = connect(scene)
    chain = cluster.chain_collection(NAME)
    with pytest.raises(Expired, match="too old"):
        list(cluster.watch(chain, "1"))

    class WokenUp(Cluster):
        """A laptop that slept: the changes since its first list are discarded."""

        lists = 0

        def list(self, collection: Collection) -> tuple[list[dict[str, Any]], str]:
            items, version = super().list(collection)
            self.lists += 1
            return items, version if self.lists > 1 else "1"

    cluster_after_sleep = WokenUp(Access(kubeconfig=str(scene.kubeconfig())))
    seen = follow(cluster_after_sleep, chain)
    next(seen)
    again = next(seen)
    scene.write_status(tiny="Running")
    changed = next(seen)

    assert cluster_after_sleep.lists == 2
    assert not isinstance(again, Disconnected)
    assert not isinstance(changed, Disconnected)
    (item,) = changed.values()
    assert item["status"]["phase"] == "Running"


def test_several_collections_are_watched_and_deleted_objects_leave_them(scene: Scene):
    cluster = connect(scene)
    watched = WatchedCollections(cluster, {"chain": cluster.chain_collection(NAME), "events": cluster.events()})
    assert [chain["metadata"]["name"] for chain in watched["chain"]] == [NAME]

    scene.create_event("StageStarted", "stage mini: Job x")
    scene.cluster.kubectl("-n", scene.namespace, "delete", "dchain", NAME)

    def both() -> bool:
        watched.wait(0.1)
        return not watched["chain"] and "StageStarted" in [event["reason"] for event in watched["events"]]

    wait_until("both changes", both, deadline_s=DEADLINE_S)


def test_deleting_the_chain_ends_its_watch_with_a_message(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: running")
        scene.cluster.kubectl("-n", scene.namespace, "delete", "dchain", NAME)

        assert watch.end() == 1

    assert watch.stderr == f"DistillationChain {NAME} was deleted\n"


def test_ctrl_c_ends_a_watch_without_a_message(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w") as watch:
        watch.wait_for("stage tiny: running")
        watch.process.send_signal(signal.SIGINT)

        assert watch.end() == 130

    assert watch.stderr == ""


def test_a_watch_in_json_prints_a_status_per_line(scene: Scene):
    scene.write_status(tiny="Running")
    with scene.start("status", NAME, "-w", "-o", "json") as watch:
        watch.wait_for('"Running"')
        want = scene.write_status(tiny="Committed")

        assert watch.end() == 0

    assert [json.loads(line)["phase"] for line in watch.stdout.splitlines()] == ["Running", "Succeeded"]
    assert json.loads(watch.stdout.splitlines()[1]) == want.to_document()


def test_a_user_who_may_not_read_events_and_pods_can_watch(scene: Scene):
    scene.write_status(tiny="Running", step=120)
    with scene.start("status", NAME, "-w", kubeconfig=scene.reader_kubeconfig()) as watch:
        watch.wait_for("train 120/600")
        scene.write_status(tiny="Committed")

        assert watch.end() == 0, watch.dump()
    assert watch.stderr.startswith("succeeded: ")


class Refusing:
    """An API server whose roles allow list but not watch. It counts the requests."""

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


def first_news(server: Refusing, count: int) -> list[Any]:
    return list(itertools.islice(follow(cast("Cluster", server), cast("Collection", None)), count))


def test_a_watch_that_is_refused_for_a_moment_is_tried_again():
    news = first_news(Refusing(allowed_after=1), 4)
    assert [type(each) for each in news[:3]] == [dict, Disconnected, dict]
    assert news[3] == {"u": {"metadata": {"uid": "u", "resourceVersion": "1"}}}


def test_a_watch_that_stays_refused_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watching, "REFUSAL_PATIENCE_S", 2)
    server = Refusing(allowed_after=10**6)
    with pytest.raises(Refused, match="watch is forbidden"):
        first_news(server, 40)
    assert server.lists <= 2 / watching.FIRST_PAUSE_S + 2, "it pauses between requests"
