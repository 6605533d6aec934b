"""Runs docs/first-chain.md as it is written, on the cluster of `make cluster-up`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.catalogue import Scene, of
from docs.shell import a_checkout, environment, run_block


@pytest.mark.node
@pytest.mark.timeout(1200)
def test_the_first_chain_from_up_to_down(tmp_path: Path) -> None:
    checkout = a_checkout(tmp_path / "checkout")
    variables = environment(tmp_path, XDG_STATE_HOME=str(tmp_path / "state"))
    first, *following = [parameter.values[0] for parameter in of(Scene.NODE, "docs/first-chain.md")]
    outputs = []

    try:
        # `eval` hides a failure of `up`, so check its output. Each later shell runs the same block to set its environment.
        run_block(first, checkout, variables=variables, after='echo "$KUBECONFIG"')
        for block in following:
            outputs.append(run_block(block, checkout, variables=variables, before=first.text).stdout)
    finally:
        down = [sys.executable, "-m", "cluster", "down"]
        subprocess.run(down, cwd=checkout, env=variables | {"PYTHONPATH": "tests"}, check=True)

    assert any('"checkpoint":"s3://models/distill/' in text for text in outputs)
    assert outputs[-1].rstrip().endswith("condition met")
