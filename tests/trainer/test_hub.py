"""hf:// names: teacher, student and data from a hub, and what it can refuse."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from distillchain_api.wire.answer import Committed, Failed
from distillchain_api.wire.manifest import Manifest
from hub_server import Hub, serve_hub
from trainer.parts import an_order, answer_in, sentences, start_process

pytestmark = pytest.mark.models

CHAIN: dict[str, Any] = {
    "teacher": {"model": "hf://org/teacher"},
    "dataset": {"uri": "hf://org/reviews", "config": "short"},
    "splits": {"train": "train", "validation": "validation"},
}


@pytest.fixture(scope="session")
def _hub_files(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """org/teacher with pickles and another form of the weights beside it, org/reviews with two configurations."""
    files = tmp_path_factory.mktemp("hub")
    teacher = files / "models/org/teacher"
    shutil.copytree(taught / "teacher", teacher)
    (teacher / "pytorch_model.bin").write_bytes(b"a pickle that is not downloaded")
    (teacher / "onnx").mkdir()
    (teacher / "onnx/model.safetensors").write_bytes(b"not downloaded either")
    pickled = files / "models/org/pickled"
    shutil.copytree(teacher, pickled)
    (pickled / "model.safetensors").unlink()
    reviews = files / "datasets/org/reviews"
    # The hub's classes have another order than the task's: numbers must become names before they are matched.
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
    )
    for config, sizes in {"short": (160, 60), "long": (20, 20)}.items():
        for seed, (split, rows) in enumerate(zip(("train", "validation"), sizes, strict=True), start=1):
            texts, labels = zip(*sentences(rows, seed), strict=True)
            table = datasets.Dataset.from_dict(
                {"sentence": list(texts), "label": [1 - label for label in labels]}, features=features
            )
            (reviews / config).mkdir(parents=True, exist_ok=True)
            table.to_parquet(reviews / config / f"{split}-00000-of-00001.parquet")
    described = "\n".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in ("train", "validation")).rstrip()
        for config in ("short", "long")
    )
    (reviews / "README.md").write_text(f"---\nconfigs:\n{described}\n---\n")
    return files


@pytest.fixture
def hub(_hub_files: Path, tmp_path: Path) -> Iterator[Hub]:
    shutil.copytree(_hub_files, tmp_path / "hub")
    with serve_hub(tmp_path / "hub") as hub:
        yield hub


def _run(root: Path, hub: Hub, *, token: str = "", **parts: Any) -> tuple[Committed | Failed, str]:
    """The trainer as a process of its own: the hub's client reads its environment when it is imported."""
    student = {"architecture": {"modelType": "bert", "config": _TINY}, "tokenizer": "hf://org/teacher"}
    order = an_order(root, **{**CHAIN, "student": student, **parts})
    process = start_process(
        order, root, HF_ENDPOINT=hub.url, HF_HOME=str(root / "hf"), HF_TOKEN=token, HF_HUB_OFFLINE="0"
    )
    _, stderr = process.communicate(timeout=120)
    answer = answer_in(root)
    assert isinstance(answer, (Committed, Failed))
    return answer, stderr


_TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_a_stage_from_the_hub(hub: Hub, tmp_path: Path):
    answer, stderr = _run(tmp_path, hub)

    assert isinstance(answer, Committed), (answer, stderr, hub.requests)
    (path,) = tmp_path.glob("store/stages/*/manifest.json")
    manifest = Manifest.parse(path.read_bytes())
    assert manifest.teacher is not None
    assert manifest.teacher.revision == hub.commit("models", "org/teacher")
    assert manifest.data_revision == hub.commit("datasets", "org/reviews")
    assert manifest.data["train"].rows == 160
    assert manifest.teacher.metrics.validation["accuracy"] > 0.9, "its classes were matched by name"
    fetched = [line for line in hub.requests if line.startswith("GET") and "/org/teacher/resolve/" in line]
    assert not [line for line in fetched if "onnx" in line or ".bin" in line]


@pytest.mark.parametrize(
    "parts, failure_class, want",
    [
        pytest.param(
            {"teacher": {"model": "hf://org/techer"}},
            "CheckpointInvalid",
            "spec.teacher.model: the hub has no hf://org/techer (or HF_TOKEN may not see it); correct the name",
            id="no such model",
        ),
        pytest.param(
            {"teacher": {"model": "hf://org/pickled"}},
            "CheckpointInvalid",
            "spec.teacher.model: hf://org/pickled has only pickled weights (pytorch_model.bin), which can run code when "
            "loaded; save it with save_pretrained(safe_serialization=True) or name a revision with safetensors",
            id="safetensors in another folder only",
        ),
        pytest.param(
            {"teacher": {"model": "hf://org/teacher@v2"}},
            "CheckpointInvalid",
            "spec.teacher.model: the hub has no revision of that name for hf://org/teacher@v2; correct it",
            id="no such revision",
        ),
        pytest.param(
            {"dataset": {"uri": "hf://org/reviews", "config": "medium"}},
            "DataInvalid",
            "spec.task.dataset.config: hf://org/reviews has no medium; expected one of short, long",
            id="no such configuration",
        ),
        pytest.param(
            {"splits": {"train": "train", "validation": "dev"}},
            "DataInvalid",
            "spec.task.dataset.splits.validation: hf://org/reviews has no split dev; expected one of train, validation",
            id="no such split",
        ),
        pytest.param(
            {"dataset": {"uri": "hf://org/reviews", "config": "short", "label": "stars"}},
            "DataInvalid",
            'hf://org/reviews, split train: no column "stars"; expected one of label, sentence',
            id="no such column",
        ),
        pytest.param(
            {"dataset": {"uri": "hf://org/review", "config": "short"}},
            "DataInvalid",
            "spec.task.dataset.uri: the hub has no hf://org/review (or HF_TOKEN may not see it); correct the name",
            id="no such data set",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    hub: Hub, tmp_path: Path, parts: dict[str, Any], failure_class: str, want: str
):
    answer, _ = _run(tmp_path, hub, **parts)

    assert isinstance(answer, Failed)
    assert (answer.failure_class, answer.message) == (failure_class, want)
    assert not list(tmp_path.glob("store/**/manifest.json"))


def test_a_data_set_that_cannot_be_built_is_no_crash(hub: Hub, tmp_path: Path):
    """The pages are damaged, the footer is not, so reading the rows fails, and `datasets` reports only that it failed."""
    for path in hub.folder("datasets", "org/reviews").glob("short/*.parquet"):
        content = path.read_bytes()
        path.write_bytes(content[:4] + b"x" * 200 + content[204:])

    answer, _ = _run(tmp_path, hub)

    assert isinstance(answer, Failed)
    assert answer.failure_class == "DataInvalid"
    assert answer.message.startswith("spec.task.dataset.uri: hf://org/reviews cannot be read: ")
    assert "An error occurred while generating" not in answer.message


@pytest.mark.parametrize(
    "card, want",
    [
        pytest.param("", "doesn't contain any data files", id="no data at all"),
        pytest.param(
            "---\nconfigs:\n- config_name: short\n  data_files:\n  - split: train\n    path: nothing/*\n---\n",
            "No (supported) data files found in org/reviews",
            id="a card that names files that do not exist",
        ),
    ],
)
def test_a_data_set_without_its_files_is_refused(hub: Hub, tmp_path: Path, card: str, want: str):
    reviews = hub.folder("datasets", "org/reviews")
    for path in reviews.glob("*/*.parquet"):
        path.unlink()
    (reviews / "README.md").write_text(card)

    answer, _ = _run(tmp_path, hub)

    assert isinstance(answer, Failed)
    assert (answer.failure_class, want in answer.message) == ("DataInvalid", True), answer.message


def test_a_gated_model_asks_for_a_token(hub: Hub, tmp_path: Path):
    hub.gated.add("org/teacher")
    answer, stderr = _run(tmp_path, hub, token="hf_wrong_and_secret")

    assert isinstance(answer, Failed)
    assert answer.failure_class == "StorageDenied"
    assert "hf://org/teacher is gated; accept its terms and give the pod HF_TOKEN" in answer.message
    assert "hf_wrong_and_secret" not in stderr + answer.message

    answer, _ = _run(tmp_path, hub, token="hf_right")
    assert isinstance(answer, Committed), answer


def test_a_hub_that_is_down_is_tried_again_later(hub: Hub, tmp_path: Path):
    hub.broken = True
    answer, _ = _run(tmp_path, hub)

    assert isinstance(answer, Failed)
    assert answer.failure_class == "StorageUnavailable"
    assert "the hub answered 503" in answer.message
