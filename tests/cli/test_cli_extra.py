"""The commands work with the packages of the extra `cli` only: without torch, transformers and kopf."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from cli.parts import clean_environment, distillchain, write_chain
from cli.test_kubeconfig import KUBECONFIG
from cluster.s3 import S3Server
from distillchain_cli.main import build_command

SITE = """
import sys

class Installed:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Installed, sys.meta_path)
"""
RUN_ALL = """
import json, sys
from distillchain_cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        code = main()
    except SystemExit as ended:
        code = ended.code
    print("EXIT", code, *arguments, file=sys.stderr, flush=True)
"""


def packages_of_extra(repository: Path, extra: str) -> set[str]:
    """All packages that `pip install distillchain[extra]` installs, by normalised name."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    found: set[str] = set()

    def add(requirements: Iterable[str]) -> None:
        for requirement in requirements:
            name, own_extra = _parsed(requirement)
            if name == "distillchain":
                add(project["optional-dependencies"][own_extra])
            elif name not in found:
                found.add(name)
                add(_unconditional(name))

    add([*project["dependencies"], f"distillchain[{extra}]"])
    return found


def _parsed(requirement: str) -> tuple[str, str]:
    matched = re.match(r"([\w.-]+)(?:\[(\w+)\])?", requirement)
    assert matched
    return re.sub(r"[-_.]+", "-", matched[1]).lower(), matched[2] or ""


def _unconditional(package: str) -> Iterator[str]:
    """What a package needs whatever its extras; other markers are of other platforms and Python versions."""
    try:
        requirements = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return
    yield from (requirement for requirement in requirements if "extra ==" not in requirement)


@pytest.fixture(scope="module")
def only_the_extra(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variable with which Python imports no third-party package that the extra `cli` does not install."""
    allowed = packages_of_extra(repository, "cli") | {"distillchain"}
    modules = importlib.metadata.packages_distributions()
    hidden = {top for top, owners in modules.items() if allowed.isdisjoint(_parsed(owner)[0] for owner in owners)}
    assert {"torch", "transformers", "kopf", "pyarrow"} <= hidden
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITE.format(hidden=hidden))
    before = os.environ.get("PYTHONPATH", "")  # the tests may run in a checkout that is not installed
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), before)))}


@pytest.mark.slow
def test_every_command_runs_with_the_packages_of_the_extra(tmp_path: Path, only_the_extra: dict[str, str]):
    write_chain(tmp_path)
    config = KUBECONFIG | {"current-context": "x"}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    with_name = ("status", "describe", "logs", "events", "retry", "suspend", "resume", "delete")
    on_cluster = ["list", "list -w", "validate chain.yaml --dry-run server", *(f"{each} relay" for each in with_name)]
    # Exit code 1 with these messages: each command came as far as its cluster, its store or the trainer.
    want = {
        "version": (0, ""),
        "completion bash": (0, ""),
        "validate chain.yaml": (0, ""),
        "plan chain.yaml": (0, "this command changed nothing"),
        "report chain.yaml --to report.html": (0, "report: report.html"),
        "gc chain.yaml": (0, ""),
        "compare chain.yaml:mini chain.yaml:tiny": (1, "stage mini is not committed in"),
        "advise chain.yaml": (1, "no committed step in"),
        "download chain.yaml --to there": (1, "is not committed"),
        "run chain.yaml": (1, "training needs torch, which is not installed"),
        **dict.fromkeys(on_cluster, (1, "https://127.0.0.1:1 cannot be reached")),
    }
    assert {command.split()[0] for command in want} == build_command().commands.keys()

    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps([command.split() for command in want])],
        cwd=tmp_path,
        env=clean_environment(tmp_path) | only_the_extra | {"KUBECONFIG": "config"},
        check=False,
        capture_output=True,
        text=True,
    )

    found = re.findall(r"(?:^|\n)((?:(?!EXIT ).*\n)*)EXIT (\d) (.*)", done.stderr)
    assert [command for _, _, command in found] == list(want), done.stderr
    for message, code, command in found:
        assert (command, int(code)) == (command, want[command][0]), message
        assert want[command][1] in message, command


@pytest.mark.cluster
def test_a_store_on_s3_is_read_with_the_packages_of_the_extra(
    s3: S3Server, bucket: str, tmp_path: Path, only_the_extra: dict[str, str]
):
    write_chain(tmp_path, storage={"uri": f"{bucket}/distill", "endpointUrl": s3.endpoint})
    identity = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}

    done = distillchain("plan", "chain.yaml", cwd=tmp_path, **identity, **only_the_extra)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not in the store") == 2
