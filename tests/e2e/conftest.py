"""Fixtures of the end-to-end tests: a cluster with a node and S3, the operator, real models and sentences in S3."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chain_builders import a_document
from cluster.build_images import Builder
from cluster.distillchain import quickstart_material
from cluster.images import HOST_PYTHON_IMAGE, host_python_pod_template
from cluster.operator_process import OPERATOR_NAMESPACE, SERVICE_ACCOUNT, OperatorProcess, install_manifests
from cluster.s3 import S3Server
from cluster.whole import WholeCluster
from distillchain_api.wire.answer import Committed
from e2e.chains import Chains
from trainer.parts import an_order, answer_in, start_process

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DISTILLCHAIN_SHARED") or CHECKOUT.parent / "shared")
FINE_TUNING_ROWS = 5000  # from 2,000 rows a pretrained BERT-tiny learns nothing
FEMTO_TRAINING = {"learningRate": 1e-3, "epochs": 12}
PASSIVE = {"spec": {"containers": [{"name": "trainer", "env": [{"name": "OMP_WAIT_POLICY", "value": "PASSIVE"}]}]}}
"""Pod template for trainers from their image: idle OpenMP threads must leave the two cores to the cluster."""
TRAIN_ROWS = 2000  # MiniLM reads about 470 sentences a second on two cores: its logits take five seconds


@dataclass(frozen=True)
class Relay:
    """Models and data in S3, as fields of a chain.

    Attributes:
        dataset: few rows, for tests in which a student need not learn.
        teacher: value of spec.teacher.
        tiny: URI of a fine-tuned BERT-tiny.
        full_dataset, full_training: enough rows and steps for a femto to learn the task.
        accuracy: stage -> lowest and highest accuracy on validation after `full_training`.
    """

    dataset: dict[str, Any]
    teacher: dict[str, Any]
    tiny: str
    full_dataset: dict[str, Any]
    full_training: dict[str, Any]
    accuracy: dict[str, tuple[float, float]]


@pytest.fixture(scope="session")
def builder() -> Builder:
    return Builder()


@pytest.fixture(scope="session")
def relay(whole_cluster: WholeCluster, tmp_path_factory: pytest.TempPathFactory) -> Relay:
    return relay_in(whole_cluster.s3, tmp_path_factory.mktemp("relay"))


def relay_in(s3: S3Server, folder: Path) -> Relay:
    """Upload models and data to the bucket `material`: those of the folder `shared` if it exists, else the quick start's."""
    s3.ensure_bucket("material")
    return _sst2(s3, folder) if SHARED.is_dir() else _quickstart(s3, folder)


def _sst2(s3: S3Server, folder: Path) -> Relay:
    source = SHARED / "data" / "sst2-glue"
    _copy_rows(source / "train.tsv", folder / "train.tsv", TRAIN_ROWS)
    (folder / "dev.tsv").write_bytes((source / "dev.tsv").read_bytes())
    _upload(s3, folder, "sst2")
    _upload(s3, SHARED / "models" / "minilm-l6-sst2-lr1e-4-2ep", "minilm")
    _upload(s3, SHARED / "models" / "bert-tiny-splade-sst2-3ep", "tiny")
    return Relay(
        dataset=_dataset("s3://material/sst2"),
        teacher={"model": "s3://material/minilm", "gate": {"minMetric": 0.88}},
        tiny="s3://material/tiny",
        full_dataset=_dataset("s3://material/sst2"),
        full_training=FEMTO_TRAINING,
        accuracy={"tiny": (0.78, 0.85), "femto": (0.66, 0.78)},  # measured: 0.814 to 0.815, 0.720 to 0.721
    )


def _copy_rows(source: Path, target: Path, count: int) -> None:
    with source.open(newline="") as rows, target.open("w", newline="") as copy:
        copy.writelines(itertools.islice(rows, count + 1))  # and the header


def _quickstart(s3: S3Server, folder: Path) -> Relay:
    """BERT-tiny teaches a BERT-tiny: fine-tuning the MiniLM as a teacher would take minutes."""
    cache = quickstart_material()
    data = folder / "data"
    data.mkdir()
    _copy_rows(cache / "data" / "train.tsv", data / "train.tsv", FINE_TUNING_ROWS)
    (data / "dev.tsv").write_bytes((cache / "data" / "validation.tsv").read_bytes())
    _upload(s3, _fine_tuned(cache / "models" / "bert-tiny", folder), "tiny")
    _copy_rows(cache / "data" / "train.tsv", data / "train.tsv", TRAIN_ROWS)
    (data / "whole.tsv").write_bytes(
        (cache / "data" / "train.tsv").read_bytes()
    )  # from 2,000 rows a femto learns nothing
    _upload(s3, data, "data")
    return Relay(
        dataset=_dataset("s3://material/data"),
        teacher={"model": "s3://material/tiny"},
        tiny="s3://material/tiny",
        full_dataset=_dataset("s3://material/data", train="whole.tsv"),
        full_training={"learningRate": 1e-3, "epochs": 4, "warmupRatio": 0.1},
        accuracy={"tiny": (0.70, 0.85), "femto": (0.70, 0.85)},
    )


def _fine_tuned(model: Path, folder: Path) -> Path:
    """Fine-tune a pretrained model on this machine, with the trainer; return the folder of the checkpoint."""
    training = {"epochs": 4, "learningRate": 3e-4, "warmupRatio": 0.1}
    teacher = {"model": f"file://{model}", "fineTune": training}
    trainer = start_process(an_order(folder, teacher=teacher, task={"maxLength": 64}), folder)
    _, log = trainer.communicate()
    answer = answer_in(folder)
    assert isinstance(answer, Committed), log
    return Path(answer.checkpoint.removeprefix("file://"))


def _dataset(uri: str, *, train: str = "train.tsv") -> dict[str, Any]:
    splits = {"train": train, "validation": "dev.tsv"}
    return {"uri": uri, "splits": splits, "text": ["sentence"], "label": "label"}


def _upload(s3: S3Server, folder: Path, prefix: str) -> None:
    client = s3.client()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), "material", f"{prefix}/{path.relative_to(folder).as_posix()}")


@pytest.fixture(scope="session")
def operator(whole_cluster: WholeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """The operator for all namespaces, with the rights of config/access.yaml."""
    control_plane = whole_cluster.control_plane
    install_manifests(control_plane)
    kubeconfig = control_plane.kubeconfig_for(OPERATOR_NAMESPACE, SERVICE_ACCOUNT)
    settings = {
        "DISTILLCHAIN_TRAINER_IMAGE": HOST_PYTHON_IMAGE,
        "DISTILLCHAIN_RESYNC_S": "5",
        "DISTILLCHAIN_PROGRESS_S": "2",
    }
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("operator") / "operator.log", settings) as running:
        yield running


@pytest.fixture
def chains(whole_cluster: WholeCluster, operator: OperatorProcess, cluster_namespace: str) -> Chains:
    return Chains(whole_cluster, operator, cluster_namespace)


@pytest.fixture
def new_chain(whole_cluster: WholeCluster, cluster_namespace: str, cluster_bucket: str, relay: Relay) -> Any:
    """Builds chains in this test's namespace and bucket; the S3 credentials are in a Secret."""
    s3 = whole_cluster.s3
    whole_cluster.control_plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s3-credentials", "namespace": cluster_namespace},
            "stringData": {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key},
        }
    )

    def build(name: str, stages: list[dict[str, Any]], **template: Any) -> dict[str, Any]:
        chain = chain_of(relay, s3, stages, name=name, bucket=cluster_bucket, **template)
        chain["metadata"]["namespace"] = cluster_namespace
        return chain

    return build


def chain_of(
    relay: Relay, s3: S3Server, stages: list[dict[str, Any]], *, name: str, bucket: str, **template: Any
) -> dict[str, Any]:
    """A chain with its credentials in the Secret `s3-credentials`. Its trainers run in this machine's Python by default."""
    task = {"type": "TextClassification", "dataset": relay.dataset, "labels": ["negative", "positive"], "maxLength": 64}
    storage = {"uri": f"{bucket}/distill", "endpointUrl": s3.endpoint, "secretRef": {"name": "s3-credentials"}}
    python = host_python_pod_template(environment={"OMP_WAIT_POLICY": "PASSIVE"})
    template = {"pod": python, "training": {"epochs": 1, "batchSize": 32}, **template}
    chain = a_document(name, task=task, storage=storage, teacher=relay.teacher, template=template)
    chain["spec"]["stages"] = stages
    return chain


def tiny_stage(relay: Relay, **more: Any) -> dict[str, Any]:
    return {"name": "tiny", "student": {"model": relay.tiny}, **more}


def femto_stage(relay: Relay, **more: Any) -> dict[str, Any]:
    start = {"architecture": {"modelType": "bert-hash"}, "tokenizer": relay.tiny}
    return {"name": "femto", "student": start, "training": FEMTO_TRAINING, **more}
