"""Fixtures of the cluster; tests/conftest.py loads them as a plugin.

A session fixture belongs to one pytest-xdist worker. Workers share nothing, so tests may use any names.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import pytest

from cluster.controlplane import ControlPlane
from cluster.s3 import S3Server
from cluster.whole import WholeCluster


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """API server and controllers without a node: pods stay Pending. Starts in about 4 s."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server on 127.0.0.1 without buckets. Starts in about 4 s."""
    with S3Server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def whole_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeCluster]:
    """A second cluster with a node (two simulated GPUs) and an S3 server that pods reach. About 9 s; needs root."""
    with WholeCluster(tmp_path_factory.mktemp("whole-cluster"), gpus=2) as running:
        yield running


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """s3://NAME of an empty bucket for this test."""
    return s3.ensure_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new namespace of `control_plane`, named after the test and deleted after it."""
    yield from _new_namespace(control_plane, request.node.name)


@pytest.fixture
def cluster_namespace(whole_cluster: WholeCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `namespace`, in `whole_cluster`."""
    yield from _new_namespace(whole_cluster.control_plane, request.node.name)


@pytest.fixture
def cluster_bucket(whole_cluster: WholeCluster) -> str:
    """Like `bucket`, in `whole_cluster`."""
    return whole_cluster.s3.ensure_bucket(f"test-{uuid.uuid4().hex[:12]}")


def _new_namespace(cluster: ControlPlane, test_name: str) -> Iterator[str]:
    words = re.sub(r"[^a-z0-9]+", "-", test_name.lower()).strip("-")[:40]
    name = f"{words}-{uuid.uuid4().hex[:6]}"
    cluster.create_namespace(name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
