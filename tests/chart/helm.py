"""The real helm with the chart of this checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from cluster.build import ensure_binaries
from cluster.errors import CommandFailed

CHECKOUT = Path(__file__).resolve().parents[2]
CHART = CHECKOUT / "charts" / "distillchain"
VALUES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
RELEASE, NAMESPACE = "distillchain", "distillchain-system"
DEADLINE_S = 300


def helm(*args: str, kubeconfig: Path | None = None, home: Path | None = None) -> str:
    """The output of `helm ARGS`. Raises: CommandFailed with the output."""
    inherited = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    access = {"KUBECONFIG": str(kubeconfig)} if kubeconfig else {}
    folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")} if home else {}
    argv = [str(ensure_binaries() / "helm"), *args]
    done = subprocess.run(
        argv, env=inherited | access | folders, text=True, capture_output=True, check=False, timeout=DEADLINE_S
    )
    if done.returncode:
        raise CommandFailed(["helm", *args], done.returncode, done.stdout + done.stderr)
    return done.stdout


def values_of(name: str) -> tuple[str, str]:
    """The arguments for a value set of ci/."""
    return "--values", str(CHART / "ci" / f"{name}-values.yaml")


def render(*args: str) -> str:
    """`helm template` of the chart without the CRD, which is generated and compared elsewhere."""
    text = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *args)
    documents = [part for part in text.split("---\n") if part.strip()]
    return "".join(f"---\n{part}" for part in documents if "kind: CustomResourceDefinition" not in part)


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def named(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The one object of a kind, and name where there are several."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(name)]
    return found
