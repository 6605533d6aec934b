"""Completion in bash, by our own script, and in kubectl, by the executables that pip installs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.parts import clean_environment, distillchain_here
from cli.scene import NAME, Scene

pytestmark = pytest.mark.slow

CONSOLE_SCRIPT = "#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
SCRIPTS = {
    "distillchain": ("distillchain_cli.main", "main"),
    "kubectl-distillchain": ("distillchain_cli.main", "main"),
    "kubectl_complete-distillchain": ("distillchain_cli.kubectl_completion", "kubectl_complete"),
}
ASK_BASH = """
source <(distillchain completion bash)
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_distillchain_completion distillchain
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def environment(folder: Path, kubeconfig: Path, *more_path: Path) -> dict[str, str]:
    """Variables with the executables that pip creates for the entry points of pyproject.toml."""
    scripts = folder / "bin"
    scripts.mkdir(exist_ok=True)
    for name, (module, function) in SCRIPTS.items():
        path = scripts / name
        path.write_text(CONSOLE_SCRIPT.format(python=sys.executable, module=module, function=function))
        path.chmod(0o755)
    search = os.pathsep.join(map(str, [scripts, *more_path, os.environ["PATH"]]))
    return clean_environment(folder) | {"KUBECONFIG": str(kubeconfig), "PATH": search}


def complete_in_bash(words: str, folder: Path, kubeconfig: Path) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK_BASH.format(words=words)],
        cwd=folder,
        env=environment(folder, kubeconfig),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_and_formats_are_completed_without_a_cluster(tmp_path: Path):
    assert complete_in_bash("distillchain re", tmp_path, tmp_path / "none") == ["retry", "resume", "report"]
    assert complete_in_bash("distillchain status x -o ''", tmp_path, tmp_path / "none") == [
        "table",
        "wide",
        "json",
        "yaml",
    ]


def test_an_unreachable_cluster_gives_no_candidates_and_no_message(tmp_path: Path):
    nowhere = {"clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1"}}]}  # TEST-NET-1: no answer
    contexts = {"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(str({**nowhere, **contexts, "users": [{"name": "u", "user": {"token": "t"}}]}))

    assert complete_in_bash("distillchain status ''", tmp_path, kubeconfig) == []
    assert complete_in_bash("distillchain status --context ''", tmp_path, kubeconfig) == ["x"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(tmp_path: Path, shell: str):
    done = distillchain_here("completion", shell, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"_DISTILLCHAIN_COMPLETE=complete_{shell}" in done.stdout


@pytest.mark.cluster
@pytest.mark.xdist_group("cli")
def test_names_of_chains_stages_and_namespaces_are_completed_from_the_cluster(scene: Scene):
    kubeconfig = scene.kubeconfig()

    assert complete_in_bash("distillchain status ''", scene.folder, kubeconfig) == [NAME]
    assert complete_in_bash(f"distillchain logs {NAME} --stage t", scene.folder, kubeconfig) == ["tiny"]
    assert complete_in_bash(f"distillchain list -n {scene.namespace[:-1]}", scene.folder, kubeconfig) == [
        scene.namespace
    ]
    assert complete_in_bash("distillchain status -n default ''", scene.folder, kubeconfig) == []


@pytest.mark.cluster
@pytest.mark.xdist_group("cli")
def test_kubectl_runs_and_completes_the_plugin(scene: Scene):
    scene.write_status(tiny="Running")
    variables = environment(scene.folder, scene.kubeconfig(), scene.cluster.binaries)

    def kubectl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", *arguments], cwd=scene.folder, env=variables, capture_output=True, text=True, check=False
        )

    status = kubectl("distillchain", "status", NAME)
    usage = kubectl("distillchain", "status", "--help").stdout
    names = kubectl("__complete", "distillchain", "status", "").stdout.splitlines()
    commands = kubectl("__complete", "distillchain", "re").stdout.splitlines()
    files = kubectl("__complete", "distillchain", "run", "").stdout.splitlines()

    assert status.stdout.startswith(f"{scene.namespace}/{NAME}: Running"), status.stderr
    assert usage.startswith("Usage: kubectl distillchain status")
    assert usage.rstrip().endswith("Example: kubectl distillchain status sst2-femto -o json")
    assert names == [NAME, ":4"]
    assert [line.split("\t")[0] for line in commands] == ["retry", "resume", "report", ":4"]
    assert files == [":0"]  # the shell offers files
