"""What processes of one stage tell each other outside of collectives, seen from rank 0 of two."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from distillchain_trainer.engine.ranks import peers
from distillchain_trainer.engine.ranks.peers import Peers
from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.signals import Signals

pytestmark = pytest.mark.models


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Signals raise, except where they are deferred."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    signals = Signals()
    signals.install()
    signals.obey()
    yield signals
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Rank 0 of two processes. The other one never leaves."""
    monkeypatch.setattr(peers, "LINGER_S", 0.6)
    return World(0, 2, 0, Peers(dist.HashStore(), 0, 2))


def sigterm_soon() -> None:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()


def test_a_signal_while_a_rank_leaves_does_not_replace_its_failure(world: World, signals: Signals):
    def stage() -> None:
        with world.membership(signals.deferred):
            sigterm_soon()
            raise DataInvalid("row 7: label 'x' is unknown")

    with pytest.raises(DataInvalid):
        stage()
    assert signals.requested


def test_a_signal_while_a_rank_leaves_does_not_replace_its_commit(world: World, signals: Signals):
    def stage() -> str:
        with world.membership(signals.deferred):
            sigterm_soon()
            return "committed"

    assert stage() == "committed"
    assert signals.requested


def test_a_document_may_hold_half_a_character(world: World):
    assert world.from_main(lambda: "a\ud83d", "a document") == "a?"
