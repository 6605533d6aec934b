"""Generate the chart's README and CRD template from values.yaml and crds/, and config/ from the chart.

`python charts/generate.py` writes README and CRD template. `--check` compares them instead. `--config` generates
config/, which needs helm: $HELM, or the helm of the test cluster.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[1]
CHART = CHECKOUT / "charts" / "distillchain"
CRD = CHECKOUT / "crds" / "distillchain.io_distillationchains.yaml"
CONFIG = CHECKOUT / "config"
CRD_ANNOTATIONS = """\
  {{- $kept := dict "helm.sh/resource-policy" "keep" "argocd.argoproj.io/sync-options" "Prune=false,Delete=false" }}
  {{- with merge (dict) .Values.crds.annotations (ternary $kept (dict) .Values.crds.keep) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
"""
GENERATED = "# Generated from charts/distillchain by `make generate`. Edit the chart, not this file.\n"
OWN_NAMESPACE = "distillchain-system"
ANY_NAMESPACE = "namespace-of-kubectl-apply"  # a placeholder: build_config removes it from config/namespaced

NAMESPACE = f"""---
apiVersion: v1
kind: Namespace
metadata:
  name: {OWN_NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
"""
KUSTOMIZATION = """apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [{resources}]
"""


@dataclass(frozen=True)
class Value:
    """One documented value of the chart."""

    path: str
    default: Any
    text: str
    section: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a file is not current")
    parser.add_argument("--config", action="store_true", help="generate config/ instead of README and CRD template")
    arguments = parser.parse_args()
    files = (
        build_config(find_helm())
        if arguments.config
        else {CHART / "README.md": build_readme(), CHART / "templates" / "crd.yaml": build_crd()}
    )
    return check(files) if arguments.check else write(files)


def write(files: dict[Path, str]) -> int:
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


def check(files: dict[Path, str]) -> int:
    """Print the differences of files that are not current. Return 1 if there are any."""
    stale = 0
    for path, want in files.items():
        got = path.read_text() if path.exists() else ""
        if got != want:
            shown = path.relative_to(CHECKOUT)
            sys.stdout.writelines(
                difflib.unified_diff(got.splitlines(True), want.splitlines(True), str(shown), "generated")
            )
            print(f"{shown} is not current; run: make generate")
            stale = 1
    return stale


def build_crd() -> str:
    """The CRD as a template that follows the values below `crds`."""
    text = CRD.read_text().removeprefix("---\n")
    if "{{" in text:
        raise SystemExit(f"{CRD}: contains '{{{{', which Helm would expand; escape it in charts/generate.py")
    labels = '  labels:\n    {{- include "distillchain.labels" . | nindent 4 }}\n'
    head, metadata, rest = text.partition("metadata:\n")
    if not metadata or "annotations:" in rest.split("spec:\n")[0] or "labels:" in rest.split("spec:\n")[0]:
        raise SystemExit(f"{CRD}: expected metadata without labels and annotations")
    return (
        "{{- if .Values.crds.install }}\n"
        + head
        + metadata
        + labels
        + CRD_ANNOTATIONS
        + rest.rstrip("\n")
        + "\n{{- end }}\n"
    )


def build_readme() -> str:
    """The chart's README: how to install it, and a table of all values."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    parts = [
        "<!-- Generated from values.yaml by `make generate`. Edit values.yaml, not this page. -->",
        f"# {chart['name']}",
        chart["description"],
        "```bash\n"
        f"helm install distillchain charts/distillchain --namespace {OWN_NAMESPACE} --create-namespace \\\n"
        "  --set image.registry=registry.example\n"
        "```",
        "`registry.example` is the registry to which `make release` has pushed both images. When the operator runs:",
        f"```bash\nhelm test distillchain --namespace {OWN_NAMESPACE}\n```",
        f"Kubernetes {chart['kubeVersion'].removeprefix('>=').removesuffix('-0')} or newer. One operator works, the "
        "holder of a Lease. With `replicas: 2`, a second one stands by. If no operator works, running stages continue, "
        "and the next operator handles the changes that it missed. Therefore `helm upgrade` and `helm rollback` "
        "interrupt no chain. The CRD is upgraded with the release. `helm uninstall` keeps CRD and chains "
        "(`crds.keep`). Without `crds.keep` it deletes them, but it never deletes checkpoints in the store.",
        "`helm test` creates a chain with one stage. An init container of its pod writes sentences and fine-tunes a "
        "tiny teacher on them. The trainer distils the teacher into a smaller student, and the operator sets the chain "
        "to `Succeeded`. If `test.storage.uri` is on S3, the test also covers store and credentials. All objects "
        "of the test are hooks, deleted after a success. After a failure, they stay until the next `helm test`, "
        "and `helm uninstall` does not delete them.",
    ]
    section = ""
    for value in read_values():
        if value.section != section:
            section = value.section
            parts.append(f"## {section}")
            parts.append("| Value | Default | Meaning |\n|---|---|---|")
        parts[-1] += f"\n| `{value.path}` | `{_shown(value.default)}` | {value.text} |"
    return "\n\n".join(parts) + "\n"


def _shown(default: Any) -> str:
    return (
        yaml.safe_dump(default, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n").strip()
    )


def read_values() -> list[Value]:
    """All documented values, in order. Exits if a value has no comment."""
    values = list(_documented((CHART / "values.yaml").read_text()))
    documented = {value.path for value in values}
    undocumented = list(_leaves(yaml.safe_load((CHART / "values.yaml").read_text()), documented))
    if undocumented:
        raise SystemExit(f"values.yaml: no comment `# -- ...` above {', '.join(undocumented)}; add one")
    return values


def _documented(text: str) -> Iterator[Value]:
    """Yield the keys that have a comment `# -- ...` above them. Expects an indentation of two spaces."""
    whole = yaml.safe_load(text)
    parents: list[str] = []
    comment = section = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# @section -- "):
            section = stripped.removeprefix("# @section -- ")
        elif stripped.startswith("# -- "):
            comment = stripped.removeprefix("# -- ")
        elif stripped.startswith("#") and comment:
            comment += " " + stripped.removeprefix("#").strip()
        elif found := re.match(r"( *)([A-Za-z]\w*):", line):
            parents[len(found[1]) // 2 :] = [found[2]]
            if comment:
                yield Value(".".join(parents), _at(whole, parents), comment, section)
            comment = ""


def _at(values: Any, path: list[str]) -> Any:
    for key in path:
        values = values[key]
    return values


def _leaves(values: dict[str, Any], documented: set[str], prefix: str = "") -> Iterator[str]:
    """Yield the paths that neither are documented nor have a documented ancestor."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if path in documented:
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, documented, f"{path}.")
        else:
            yield path


def build_config(helm: str) -> dict[Path, str]:
    """config/: the chart, rendered with ci/kustomize.yaml, without the labels and comments that only Helm needs."""
    everywhere = render(helm, OWN_NAMESPACE)
    only_here = f"watchNamespaces={{{ANY_NAMESPACE}}},rbac.aggregateToDefaultRoles=false"
    here = render(helm, ANY_NAMESPACE, "--set", only_here)
    here = {
        name: re.sub(rf"^ *namespace: {ANY_NAMESPACE}\n", "", text, flags=re.MULTILINE) for name, text in here.items()
    }
    return {
        CONFIG / "access.yaml": GENERATED + NAMESPACE + everywhere["access"],
        CONFIG / "deployment.yaml": GENERATED + everywhere["deployment"],
        CONFIG / "metrics.yaml": GENERATED + everywhere["metrics"],
        CONFIG / "crd.yaml": GENERATED + "---\n" + CRD.read_text().removeprefix("---\n"),
        CONFIG / "kustomization.yaml": GENERATED
        + KUSTOMIZATION.format(resources="crd.yaml, access.yaml, deployment.yaml, metrics.yaml"),
        CONFIG / "namespaced" / "access.yaml": GENERATED + here["access"],
        CONFIG / "namespaced" / "deployment.yaml": GENERATED + here["deployment"],
        CONFIG / "namespaced" / "metrics.yaml": GENERATED + here["metrics"],
        CONFIG / "namespaced" / "kustomization.yaml": GENERATED
        + KUSTOMIZATION.format(resources="access.yaml, deployment.yaml, metrics.yaml"),
    }


def render(helm: str, namespace: str, *more: str) -> dict[str, str]:
    """The rendered chart in three parts: `access` (service account, roles), `deployment` and `metrics` (a Service)."""
    argv = [helm, "template", "distillchain", str(CHART), "--namespace", namespace]
    values = ["--values", str(CHART / "ci" / "kustomize.yaml"), *more]
    done = subprocess.run([*argv, *values], check=True, capture_output=True, text=True)
    parts = {"access": "", "deployment": "", "metrics": ""}
    for document in filter(str.strip, re.split(r"^---\n", done.stdout, flags=re.MULTILINE)):
        kind = yaml.safe_load(document)["kind"]
        lines = [
            line
            for line in document.rstrip("\n").splitlines()
            if not re.match(r"# Source: | *helm\.sh/chart: | *app\.kubernetes\.io/managed-by: Helm", line)
        ]
        part = {"Deployment": "deployment", "Service": "metrics"}.get(kind, "access")
        parts[part] += "---\n" + "\n".join(lines) + "\n"
    return parts


def find_helm() -> str:
    """$HELM if it is set, otherwise the helm of the test cluster."""
    if os.environ.get("HELM"):
        return os.environ["HELM"]
    sys.path.insert(0, str(CHECKOUT / "tests"))
    from cluster.build import ensure_binaries

    return str(ensure_binaries() / "helm")


if __name__ == "__main__":
    sys.exit(main())
