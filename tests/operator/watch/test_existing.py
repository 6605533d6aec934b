"""What is known of the chains that exist, after lists and changes, and the periodic look at them."""

from __future__ import annotations

from typing import Any

import pytest

from distillchain_operator.api_server.connection import SILENCE_S
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.watch import resync
from distillchain_operator.watch.existing import ExistingChains
from distillchain_operator.watch.resync import resync_every


def item(name: str, namespace: str = "ml") -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "name": name}}


def names(existing: ExistingChains) -> set[str] | None:
    keys = existing.keys()
    return None if keys is None else {key.name for key in keys}


def test_nothing_is_known_before_the_last_page_of_every_namespace():
    existing = ExistingChains(["ml", "nlp"])
    existing.note_page("ml", [item("one")], is_first=True, is_last=False)
    existing.note_page("nlp", [], is_first=True, is_last=True)
    assert existing.keys() is None
    existing.note_page("ml", [item("two")], is_first=False, is_last=True)
    assert existing.keys() == {ChainKey("ml", "one"), ChainKey("ml", "two")}


def test_a_watch_adds_and_removes_chains_in_its_order():
    existing = ExistingChains([None])
    existing.note_page(None, [item("one"), item("two")], is_first=True, is_last=True)
    existing.note_change(None, "DELETED", item("one"))
    existing.note_change(None, "ADDED", item("one"))
    existing.note_change(None, "DELETED", item("two"))
    existing.note_change(None, "ADDED", item("three"))
    existing.note_change(None, "BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    assert names(existing) == {"one", "three"}


def test_a_list_replaces_what_was_known_when_it_is_complete():
    existing = ExistingChains([None])
    existing.note_page(None, [item("one"), item("two")], is_first=True, is_last=True)
    existing.note_page(None, [item("two")], is_first=True, is_last=False)
    assert names(existing) == {"one", "two"}
    existing.note_page(None, [item("lost")], is_first=True, is_last=False)  # the first list broke off
    existing.note_page(None, [item("three")], is_first=False, is_last=True)
    assert names(existing) == {"lost", "three"}


def test_a_watch_without_a_change_or_bookmark_for_long_is_silent():
    now = 0.0
    existing = ExistingChains(["ml", "nlp"], monotonic=lambda: now)
    for namespace in ("ml", "nlp"):
        existing.note_page(namespace, [item("one", namespace)], is_first=True, is_last=True)
    now = SILENCE_S
    existing.note_change("ml", "BOOKMARK", {})
    assert existing.silent() == set()
    now += 1
    assert existing.silent() == {"nlp"}
    assert existing.keys() == {ChainKey("ml", "one"), ChainKey("nlp", "one")}
    existing.note_change("nlp", "BOOKMARK", {})
    assert existing.silent() == set()


async def test_a_watch_that_does_not_work_stops_neither_the_looks_at_other_namespaces_nor_what_is_kept():
    now = 0.0
    existing = ExistingChains(["ml", "nlp"], monotonic=lambda: now)
    for namespace in ("ml", "nlp"):
        existing.note_page(namespace, [item("one", namespace)], is_first=True, is_last=True)
    now = SILENCE_S + 1
    existing.note_change("ml", "BOOKMARK", {})
    looked: list[ChainKey] = []
    kept: list[tuple[set[ChainKey], bool]] = []
    asked = iter([existing])
    # It ends when it asks again.
    with pytest.raises(RuntimeError):
        await resync_every(0, lambda: next(asked), look=looked.append, keep=lambda *keeps: kept.append(keeps))
    assert kept == [({ChainKey("ml", "one"), ChainKey("nlp", "one")}, False)]
    assert looked == [ChainKey("ml", "one")]


async def test_a_resync_is_spread_over_the_time_until_the_next_one(monkeypatch: pytest.MonkeyPatch):
    existing = ExistingChains(["ml"])
    existing.note_page("ml", [item(f"c{number}") for number in range(5)], is_first=True, is_last=True)
    happens: list[Any] = []

    async def sleep(seconds: float) -> None:
        happens.append(seconds)

    monkeypatch.setattr(resync.asyncio, "sleep", sleep)
    asked = iter([existing])
    with pytest.raises(RuntimeError):
        await resync_every(100, lambda: next(asked), look=lambda _: happens.append("look"), keep=lambda *_: None)
    assert happens == [100, *["look", 20] * 5, 0]


async def test_before_every_namespace_was_listed_there_is_no_periodic_look():
    existing = ExistingChains(["ml", "nlp"])
    existing.note_page("ml", [item("one")], is_first=True, is_last=True)
    asked = iter([None, existing, existing])
    calls: list[Any] = []
    # It ends when nothing more is asked for.
    with pytest.raises(RuntimeError):
        await resync_every(0, lambda: next(asked), look=calls.append, keep=lambda *keeps: calls.append(keeps))
    assert calls == []
