"""What is known of the chains that exist, after lists and changes."""

from __future__ import annotations

from typing import Any

from distillchain_operator.chain_key import ChainKey
from distillchain_operator.connection import SILENCE_S
from distillchain_operator.existing import ExistingChains


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


def test_nothing_is_known_while_one_of_the_watches_is_silent():
    now = 0.0
    existing = ExistingChains(["ml", "nlp"], monotonic=lambda: now)
    for namespace in ("ml", "nlp"):
        existing.note_page(namespace, [item("one", namespace)], is_first=True, is_last=True)
    now = SILENCE_S
    existing.note_change("ml", "BOOKMARK", {})
    assert names(existing) == {"one"}
    now += 1
    assert names(existing) is None
    existing.note_change("nlp", "BOOKMARK", {})
    assert names(existing) == {"one"}
