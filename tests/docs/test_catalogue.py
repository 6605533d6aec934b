"""Every block runs or has an excuse, and every link has a target."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from distillchain_api.resource.status import Admission
from distillchain_operator.settings import Settings
from docs.blocks import REPOSITORY, anchors, blocks, blocks_of, links, pages
from docs.catalogue import CANNOT, ELSEWHERE, EXTERNAL_LINKS, NOT_RUN_LANGUAGES, RUN, VALUES


def test_every_command_is_run_or_has_an_excuse():
    found = {block.key for block in blocks("bash", "python") if block.page not in ELSEWHERE}

    assert found - RUN.keys() - CANNOT.keys() == set(), "run them in a Scene, or give the reason in CANNOT"
    assert (RUN.keys() | CANNOT.keys()) - found == set(), "no page has this block"
    assert RUN.keys() & CANNOT.keys() == set()


def test_every_block_has_a_known_language():
    unknown = [str(block) for block in blocks() if block.language not in {"bash", "python", *NOT_RUN_LANGUAGES}]

    assert unknown == []


def test_a_block_in_a_list_is_indented_by_a_multiple_of_four():  # Python-Markdown needs it
    assert [str(block) for block in blocks() if block.indent % 4] == []


def test_keys_of_blocks_are_unique():
    keys = [block.key for block in blocks("bash", "python") if block.page not in ELSEWHERE]

    assert sorted(keys) == sorted(set(keys))


def test_blocks_run_by_another_test_are_named_in_that_test():
    assert [test for test, words in ELSEWHERE.values() if words not in (REPOSITORY / test).read_text()] == []
    assert set(ELSEWHERE) <= set(pages())


def test_every_yaml_block_without_a_kind_is_listed_as_values():
    # Blocks with `spec:` alone are fields of a chain.
    without_kind = {block.key for block in blocks("yaml") if not re.search(r"^(kind|spec):", block.text, re.MULTILINE)}

    assert without_kind == VALUES


def test_make_targets_in_the_docs_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {name for block in blocks("bash") for name in re.findall(r"^make ([a-z0-9-]+)", block.text, re.MULTILINE)}

    assert named - targets == set()
    assert named


def test_the_install_page_lists_every_setting_of_the_operator():
    page = (REPOSITORY / "docs" / "install.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)

    assert rows == ["DISTILLCHAIN_"] + [setting.name.upper() for setting in fields(Settings)]


def test_the_operator_writes_the_log_fields_that_the_docs_name():
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    (always, fields_) = re.search(
        r"one JSON object per line: (.*?), and .*?\bsuch\s+as\s+(.*?)\. ", page, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    sources = "".join(path.read_text() for path in (REPOSITORY / "operator").rglob("*.py"))
    written = set(re.findall(r'"(\w+)":', " ".join(re.findall(r"extra=(\{.*?\})", sources, re.DOTALL))))

    assert set(re.findall(r"`(\w+)`", fields_)) <= written
    assert all(f'"{key}": ' in sources for key in re.findall(r"`(\w+)`", always))


def test_the_faq_explains_every_reason_to_wait():
    page = (REPOSITORY / "docs" / "faq.md").read_text()
    rows = re.findall(r"^\| (`\w+`.*?) \|", page, re.MULTILINE)
    admissions = set(get_args(Admission)) - {"Admitted"}  # it runs then

    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == {"StagePending", "StageRunning", *admissions}


def test_the_images_contain_every_package():
    copied = re.findall(r"^COPY (\w+) \1$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)

    assert sorted(copied) == ["api", "cli", "operator", "report", "store", "trainer"]


def test_json_blocks_are_valid():
    for block in blocks("json"):
        json.loads(block.text)


@pytest.mark.parametrize("page", pages())
def test_links_within_the_repository_have_a_target(page: str):
    for target in links(page):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert there.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(str(there.resolve().relative_to(REPOSITORY))), f"{page}: {target}"


@pytest.mark.parametrize("page", [page for page in pages() if page.startswith("docs/")])
def test_a_page_of_the_site_links_only_to_pages_of_the_site(page: str):
    for target in links(page):
        if not target.startswith(("http://", "https://", "#")):
            there = ((REPOSITORY / page).parent / target.partition("#")[0]).resolve()
            assert there.is_relative_to(REPOSITORY / "docs"), f"{page}: {target} is not part of the site"


def test_links_to_other_hosts_are_in_the_catalogue():
    found = {target for page in pages() for target in links(page) if target.startswith(("http://", "https://"))}

    assert found == EXTERNAL_LINKS


def test_a_block_in_a_list_is_found_and_dedented():
    text = "1. Do\n\n    ```bash\n    a \\\n      b\n    ```\n"

    (block,) = blocks_of("page.md", text)

    assert (block.language, block.line, block.indent, block.text) == ("bash", 3, 4, "a \\\n  b\n")


def test_every_page_is_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text()
    missing = [page for page in pages() if page.startswith("docs/") and page.removeprefix("docs/") not in navigation]

    assert missing == []
    assert Path(REPOSITORY / "docs" / "index.md").exists()
