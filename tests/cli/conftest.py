"""The chain on a cluster that the cluster commands are tested with."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.scene import Scene
from cluster.controlplane import ControlPlane


@pytest.fixture
def scene(control_plane: ControlPlane, namespace: str, tmp_path: Path, repository: Path) -> Scene:
    return Scene(control_plane, namespace, tmp_path, repository)
