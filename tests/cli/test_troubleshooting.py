"""docs/troubleshooting.md covers every failure class, and its commands work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from email.message import Message
from pathlib import Path

import pytest

from cli.parts import COMMAND, clean_environment
from cli.scene import Scene
from distillchain_api import failures
from distillchain_api.failures import TROUBLESHOOTING, FailureClass, troubleshooting

SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
PARTS = ("**What it means.**", "**See more.**", "**What to do.**")


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / TROUBLESHOOTING).read_text()


def test_every_failure_class_has_its_section_and_there_is_no_other(page: str):
    assert [name for name, _ in SECTION.findall(page)] == [str(name) for name in FailureClass]


def test_links_lead_to_the_published_site_if_there_is_one(monkeypatch: pytest.MonkeyPatch):
    about = Message()
    about["Project-URL"] = "Source, https://git.example/distillchain"
    about["Project-URL"] = "Documentation, https://docs.example/distillchain"
    assert troubleshooting("GateNotMet") == "docs/troubleshooting.md#gatenotmet"

    monkeypatch.setattr(failures, "metadata", lambda _: about)

    assert troubleshooting("GateNotMet") == "https://docs.example/distillchain/troubleshooting/#gatenotmet"


def test_every_section_has_a_meaning_a_command_and_a_remedy(page: str):
    for name, text in SECTION.findall(page):
        assert [text.count(part) for part in PARTS] == [1, 1, 1], name
        assert BLOCK.search(text), f"{name} has no command"


def test_links_lead_to_existing_headings(page: str):
    anchors = {name.lower() for name, _ in SECTION.findall(page)}  # as GitHub and MkDocs build them

    assert {troubleshooting(name).partition("#")[2] for name in FailureClass} == anchors
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= anchors


@pytest.mark.cluster
@pytest.mark.xdist_group("cli")
def test_every_command_of_the_page_runs(page: str, scene: Scene):
    scene.write_status(tiny="Failed")
    commands = {line.partition(" #")[0].strip() for block in BLOCK.findall(page) for line in block.splitlines()}
    search = os.pathsep.join([str(scene.cluster.binaries), os.environ["PATH"]])
    variables = clean_environment(scene.folder) | {"KUBECONFIG": str(scene.kubeconfig()), "PATH": search}
    failed = {}
    # Commands that change the chain come last. `-w` would wait for an operator, which does not run here.
    for command in sorted(commands, key=lambda line: ("retry" in line, line)):
        line = command.replace("distillchain ", f"{shlex.join(COMMAND)} ").removesuffix(" -w")
        done = subprocess.run(
            ["bash", "-c", line], cwd=scene.folder, env=variables, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            failed[command] = done.stderr

    # There are no pods with logs, no S3 server and no Secret in this test.
    assert {command: error for command, error in failed.items() if not _is_expected_here(error)} == {}
    assert len(commands) > 12


def _is_expected_here(error: str) -> bool:
    missing = ('s3-credentials" not found', 'nodes "NODE" not found')
    return any(part in error for part in ("has no log", "has no earlier pod", "spec.storage", *missing))
