"""docs/release.md with a local registry and the operator's image. The trainer's 6 GB would take the same path."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from chart.helm import helm
from cluster.build import ensure_binaries
from cluster.build_images import CHECKOUT, Builder, Image
from cluster.ports import free_ports
from cluster.prerequisites import ensure_program
from cluster.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.root]  # building an image needs root

VERSION = yaml.safe_load((CHECKOUT / "charts" / "distillchain" / "Chart.yaml").read_text())["version"]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Address and prefix of an empty image registry."""
    program = ensure_program("docker-registry", packages=("docker-registry",))
    (port,) = free_ports(1)
    config = tmp_path / "registry.yaml"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    config.write_text(yaml.safe_dump({"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}))
    log = tmp_path / "registry.log"
    with log.open("wb") as out, subprocess.Popen([program, "serve", config], stdout=out, stderr=out) as process:
        try:
            wait_until("the registry", lambda: answers(port), deadline_s=30, dump=log.read_text)
            yield f"localhost:{port}/team"
        finally:
            process.terminate()


def answers(port: int) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://localhost:{port}/v2/", timeout=5).status == 200)
    except OSError:
        return False


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean clone of this checkout, as a maintainer has it. Uncommitted changes are committed there."""
    folder = tmp_path / "checkout"
    for name in git(CHECKOUT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (CHECKOUT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / name)
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(
        folder, "-c", "user.name=maintainer", "-c", "user.email=m@example.com", "commit", "--quiet", "--message=release"
    )


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    identity = {"GIT_COMMITTER_NAME": "maintainer", "GIT_COMMITTER_EMAIL": "m@example.com"}
    argv = ["make", "--no-print-directory", f"HELM={ensure_binaries() / 'helm'}", *words]
    return subprocess.run(argv, cwd=folder, env=os.environ | identity, capture_output=True, text=True, check=False)


def test_a_tag_is_refused_until_changelog_and_commit_are_complete(checkout: Path):
    refused = make(checkout, "release-tag")
    assert refused.returncode != 0
    assert f"CHANGELOG.md has no heading '## {VERSION} (date)'" in refused.stdout
    name_the_version(checkout)
    refused = make(checkout, "release-tag")
    assert "there are changes that are not committed" in refused.stdout
    commit(checkout)
    tagged = make(checkout, "release-tag")
    assert tagged.returncode == 0, tagged.stderr
    assert git(checkout, "tag", "--points-at", "HEAD").split() == [f"v{VERSION}"]
    assert make(checkout, "release-tag").returncode == 0, "an interrupted release can be repeated"
    (checkout / "later").touch()
    commit(checkout)
    assert make(checkout, "release-tag").returncode != 0, "another commit needs another version"


@pytest.mark.parametrize("tool", ["docker", "podman", "buildah"])
def test_the_builder_on_path_is_used(checkout: Path, tmp_path: Path, tool: str):
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("make", "bash", "sed", "id", "test", "git"):
        (path / name).symlink_to(str(shutil.which(name)))
    (path / tool).symlink_to("/bin/true")
    argv = ["make", "--dry-run", "image-operator"]
    done = subprocess.run(argv, cwd=checkout, env={"PATH": str(path)}, capture_output=True, text=True, check=True)
    assert f"{path / tool} build " in done.stdout


def name_the_version(checkout: Path) -> None:
    changelog = checkout / "CHANGELOG.md"
    changelog.write_text(
        changelog.read_text().replace("## Unreleased", f"## {VERSION} ({time.strftime('%Y-%m-%d')})", 1)
    )


def test_image_and_chart_of_a_release_are_pulled_from_the_registry_they_were_pushed_to(
    checkout: Path, registry: str, tmp_path: Path
):
    image = Builder().build("operator", registry=registry)
    builder = f"BUILDER={shlex.join(Builder().argv)}"
    flags = ["PUSH_FLAGS=--tls-verify=false", "HELM_FLAGS=--plain-http"]
    done = make(checkout, "push-operator", "chart-package", "chart-push", f"REGISTRY={registry}", builder, *flags)
    assert done.returncode == 0, done.stdout + done.stderr

    assert image.name == f"{registry}/distillchain-operator:{VERSION}"
    assert config_of(registry, image)["User"] == "65532:65532"
    shown = yaml.safe_load(
        helm("show", "chart", f"oci://{registry}/charts/distillchain", "--plain-http", home=tmp_path)
    )
    assert (shown["version"], shown["appVersion"]) == (VERSION, VERSION)


def test_the_bill_of_materials_lists_what_is_in_the_image(checkout: Path, registry: str):
    image = Builder().build("operator", registry=registry)
    builder = f"BUILDER={shlex.join(Builder().argv)}"
    (checkout / ".venv").symlink_to(CHECKOUT / ".venv")

    done = make(checkout, "sbom-operator", f"REGISTRY={registry}", builder)

    assert done.returncode == 0, done.stdout + done.stderr
    bill = json.loads((checkout / "dist" / f"distillchain-operator-{VERSION}.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    names = {component["name"] for component in bill["components"]}
    assert {"kopf", "kubernetes", "distillchain"} <= names
    assert not {"torch", "transformers"} & names
    assert image.name.endswith(VERSION)


def config_of(registry: str, image: Image) -> dict[str, str]:
    """The image's `config` from the registry."""
    host, path = image.name.removesuffix(f":{VERSION}").split("/", 1)

    def get(what: str) -> dict[str, dict[str, str]]:
        request = urllib.request.Request(f"http://{host}/v2/{path}/{what}", headers={"Accept": MANIFEST})
        with urllib.request.urlopen(request, timeout=30) as answer:
            document: dict[str, dict[str, str]] = json.loads(answer.read())
            return document

    return get(f"blobs/{get(f'manifests/{VERSION}')['config']['digest']}")["config"]
