"""Where each block of the documentation runs, or why it cannot run here. A block in no table fails the tests.

The key of a block is its page and its first line.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest

from docs.blocks import blocks


class Scene(StrEnum):
    """The environment that a block needs."""

    CHECKOUT = "a checkout with its virtual environment"
    QUICKSTART = "the quick start's models and part of its data"
    CHAIN = "an API server with a chain sst2-femto and no operator"
    INSTALL = "an empty API server"
    S3 = "an S3 server with the bucket models"
    SERVING = "copies of checkpoints and of ONNX exports, in one folder"
    NODE = "the cluster of `make cluster-up`, with a node; the blocks of the page run in order"


RUN: dict[tuple[str, str], Scene] = {
    ("README.md", "kubectl apply -f chain.yaml"): Scene.CHAIN,
    (
        "README.md",
        "distillchain report chain.yaml --to report.html    # or the name of a chain on the cluster; -o md, -o json",
    ): Scene.QUICKSTART,
    ("docs/quickstart.md", ".venv/bin/distillchain validate examples/quickstart/chain.yaml"): Scene.CHECKOUT,
    ("docs/quickstart.md", ".venv/bin/distillchain plan examples/quickstart/chain.yaml \\"): Scene.CHECKOUT,
    ("docs/quickstart.md", ".venv/bin/distillchain run examples/quickstart/chain.yaml"): Scene.QUICKSTART,
    (
        "docs/quickstart.md",
        ".venv/bin/distillchain report examples/quickstart/chain.yaml --to report.html",
    ): Scene.QUICKSTART,
    ("docs/quickstart.md", "import json"): Scene.QUICKSTART,
    (
        "docs/choosing-students.md",
        "distillchain plan examples/sst2/chain.yaml --storage file://./store \\",
    ): Scene.CHECKOUT,
    ("docs/install.md", "helm install distillchain charts/distillchain \\"): Scene.INSTALL,
    ("docs/install.md", "kubectl apply --server-side -k config/"): Scene.INSTALL,
    ("docs/install.md", "kubectl apply --server-side -f crds/"): Scene.INSTALL,
    ("docs/install.md", "import sys"): Scene.S3,
    ("docs/first-chain.md", 'eval "$(PYTHONPATH=tests .venv/bin/python -m cluster up)"'): Scene.NODE,
    ("docs/first-chain.md", "kubectl apply -f examples/cluster/chain.yaml"): Scene.NODE,
    ("docs/first-chain.md", "distillchain validate examples/cluster/chain.yaml"): Scene.NODE,
    ("docs/first-chain.md", "kubectl distillchain status example --watch"): Scene.NODE,
    ("docs/first-chain.md", "kubectl distillchain logs example --tail 3"): Scene.NODE,
    ("docs/first-chain.md", "kubectl describe distillationchain example"): Scene.NODE,
    ("docs/first-chain.md", "kubectl delete distillationchain example"): Scene.NODE,
    ("docs/running-chains.md", "distillchain list --all-namespaces"): Scene.CHAIN,
    ("docs/running-chains.md", "distillchain suspend sst2-femto"): Scene.CHAIN,
    ("docs/running-chains.md", "distillchain retry sst2-femto"): Scene.CHAIN,
    (
        "docs/running-chains.md",
        'kubectl annotate distillationchain sst2-femto --overwrite "distillchain.io/retry=tiny@$(date +%s)"',
    ): Scene.CHAIN,
    ("docs/operations.md", "helm upgrade distillchain charts/distillchain \\"): Scene.INSTALL,
    ("docs/operations.md", "helm uninstall distillchain --namespace distillchain-system"): Scene.INSTALL,
    ("docs/operations.md", "kubectl delete crd distillationchains.distillchain.io"): Scene.INSTALL,
    ("docs/operations.md", "import json"): Scene.S3,
    ("docs/serving.md", "import hashlib"): Scene.SERVING,
    ("docs/serving.md", "from transformers import pipeline"): Scene.SERVING,
    ("docs/serving.md", "import sys"): Scene.SERVING,
    ("docs/serving.md", "import json"): Scene.SERVING,
    ("docs/serving.md", "# Continues two prompts."): Scene.SERVING,
}

CANNOT: dict[tuple[str, str], str] = {
    ("docs/running-chains.md", "distillchain retry sst2-femto --from tiny --discard"): (
        "needs a store with commits; tests/operator/on_apiserver/test_chains_on_apiserver.py runs it with one"
    ),
    ("docs/your-data.md", "import csv"): "needs reviews.csv; tests/docs/test_your_data.py runs it",
    ("docs/your-data.md", "distillchain validate chain.yaml"): "needs chain.yaml; tests/docs/test_your_data.py runs it",
    ("docs/your-data.md", "distillchain run chain.yaml"): "trains for minutes; Scene.QUICKSTART runs such a chain",
    (
        "docs/your-data.md",
        "distillchain report chain.yaml --to reviews.html",
    ): "needs a chain that has run; see README.md",
    ("docs/your-data.md", "distillchain validate --dry-run server -f chain.yaml"): (
        "needs data in a bucket; tests/cli/test_kubectl_conventions.py runs the first command, docs/first-chain.md the others"
    ),
    ("docs/evidence.md", "python bench/evidence.py .evidence --prepare"): (
        "takes hours; tests/benchmarks/test_evidence.py runs its small size"
    ),
    ("docs/security.md", "kubectl label namespace monitoring metrics=enabled"): "needs the namespace of a Prometheus",
    (
        "docs/token-classification.md",
        "import torch",
    ): "needs a trained tagger; tests/trainer/tasks/test_token_classification.py runs it and compares what it prints",
    ("docs/gpus.md", 'kubectl exec POD -c trainer -- python -c "import os, signal; os.kill(1, signal.SIGUSR1)"'): (
        "needs a pod that trains; tests/trainer/engine/test_tracing.py sends the signal"
    ),
    ("README.md", "make quickstart"): "creates the environment of the tests and trains for five minutes; "
    "Scene.QUICKSTART runs the chain on part of the data",
    ("README.md", "make test"): "runs this test",
    (
        "docs/text-classification.md",
        "from transformers import pipeline",
    ): "needs a chain that has run; tests/trainer/models/test_checkpoint_files.py runs it",
    (
        "docs/multi-label-classification.md",
        ".venv/bin/distillchain report examples/rated-sentences/labels.yaml --to report.html",
    ): ("needs a chain that has run; tests/trainer/tasks/test_rated_sentences.py writes the report of its own"),
    ("docs/multi-label-classification.md", ".venv/bin/python examples/quickstart/prepare.py --into .quickstart"): (
        "trains for minutes; tests/trainer/tasks/test_rated_sentences.py runs the chain on part of the data"
    ),
    ("docs/regression.md", ".venv/bin/distillchain report examples/rated-sentences/rating.yaml --to report.html"): (
        "needs a chain that has run; tests/trainer/tasks/test_rated_sentences.py writes the report of its own"
    ),
    ("docs/regression.md", ".venv/bin/python examples/quickstart/prepare.py --into .quickstart"): (
        "trains for minutes; tests/trainer/tasks/test_rated_sentences.py runs the chain on part of the data"
    ),
    (
        "docs/multi-label-classification.md",
        "from transformers import pipeline",
    ): "needs a chain that has run; tests/trainer/tasks/test_rated_sentences.py runs it and compares what it prints",
    (
        "docs/regression.md",
        "import torch",
    ): "needs a chain that has run; tests/trainer/tasks/test_rated_sentences.py runs it and compares what it prints",
    (
        "README.md",
        "make cluster-up       # Kubernetes 1.34, S3, CRD and operator on this machine (needs root); prints the next steps",
    ): "runs `python -m cluster up`, which docs/first-chain.md tests",
    ("docs/quickstart.md", "make quickstart"): "see README.md",
    ("docs/first-chain.md", "make cluster-up"): "runs `python -m cluster up`, which the same page tests",
    ("docs/first-chain.md", "make cluster-down"): "runs `python -m cluster down`, which Scene.NODE runs at its end",
    ("docs/development.md", "make help"): "runs this test; another test checks that all targets exist",
    (
        "docs/release.md",
        "make release REGISTRY=registry.example.com/team SOURCE=https://git.example.com/team/distillchain",
    ): "needs a registry",
    (
        "docs/install.md",
        "helm test distillchain --namespace distillchain-system",
    ): "needs a release on a node; tests/chart/test_release_on_a_node.py runs it",
    (
        "docs/install.md",
        "eksctl create iamserviceaccount --cluster my-cluster \\",
    ): "needs an EKS cluster; the service account that it creates is tested as YAML",
}

ELSEWHERE: dict[str, tuple[str, str]] = {
    "charts/distillchain/README.md": ("tests/chart/test_release_on_a_node.py", '"test", RELEASE'),
    "docs/cli.md": ("tests/cli/test_cluster_commands.py", "example_in_help"),
    "docs/report.md": ("tests/cli/test_report.py", 'example_in_help("report"'),
    "docs/troubleshooting.md": ("tests/cli/test_troubleshooting.py", "test_every_command_of_the_page_runs"),
}
"""Pages whose blocks another test runs: the test, and a string in it that shows this."""

VALUES: set[tuple[str, str]] = {
    ("docs/install.md", "chains:"),
    ("docs/operations.md", "replicas: 2"),
    ("docs/multi-tenancy.md", "admissionPolicies:"),
}
"""YAML blocks with values of the chart."""

NOT_RUN_LANGUAGES = {
    "json": "only parsed",
    "mermaid": "a figure",
    "text": "not a command",
    "yaml": "applied to the API server or the chart",
}

EXTERNAL_LINKS = {
    "https://kueue.sigs.k8s.io",
    "https://arxiv.org/abs/1906.02629",
    "https://arxiv.org/abs/2106.09685",
    "https://arxiv.org/abs/1312.6184",
    "https://arxiv.org/abs/2105.08919",
    "https://arxiv.org/abs/2203.08679",
    "https://arxiv.org/abs/2306.08543",
    "https://arxiv.org/abs/2306.13649",
    "https://arxiv.org/abs/1909.10351",
    "https://arxiv.org/abs/2012.15828",
    "https://arxiv.org/abs/1503.02531",
    "https://arxiv.org/abs/1902.03393",
    "https://arxiv.org/abs/1908.08962",
    "https://arxiv.org/abs/1910.01348",
    "https://arxiv.org/abs/2009.08825",
    "https://arxiv.org/abs/2106.05237",
    "https://arxiv.org/abs/2106.05945",
    "https://arxiv.org/abs/2311.07052",
    "https://dev.to/neuml/progressive-distillation-341i",
}
"""Links that the tests cannot follow. Open a link in a browser before you add it."""


def of(scene: Scene, page: str | None = None) -> list[Any]:
    found = [block for block in blocks("bash", "python", page=page) if RUN.get(block.key) is scene]
    return [pytest.param(block, id=f"{block}") for block in found]
