"""hf:// names: teacher, student and data from a hub, and what it can refuse."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from distillchain_api.failures import StageError
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.manifest import Manifest
from hub_server import Hub, serve_hub
from trainer.checkpoint_parts import LORA
from trainer.parts import an_order, answer_in, run_here, sentences, start_process

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


@pytest.fixture
def here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clients in this process use the hub. They read their variables when they are imported."""
    settings = {
        "huggingface_hub.constants.ENDPOINT": hub.url,
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "huggingface_hub.constants.HF_HUB_CACHE": str(tmp_path / "hf"),
        "huggingface_hub.constants.HF_HUB_OFFLINE": False,
        "datasets.config.HF_ENDPOINT": hub.url,
        "datasets.config.HF_HUB_OFFLINE": False,
        "datasets.config.HF_DATASETS_CACHE": tmp_path / "datasets",
        "datasets.config.DOWNLOADED_DATASETS_PATH": tmp_path / "datasets/downloads",
    }
    for name, value in settings.items():
        monkeypatch.setattr(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.close_session()  # it keeps connections to the hub of the test before
    yield
    huggingface_hub.close_session()


def _order(root: Path, **parts: Any) -> Any:
    student = {"architecture": {"modelType": "bert", "config": _TINY}, "tokenizer": "hf://org/teacher"}
    return an_order(root, **{**CHAIN, "student": student, **parts})


def _refusal(root: Path, **parts: Any) -> StageError:
    with pytest.raises(StageError) as refused:
        run_here(_order(root, **parts), root)
    assert not list(root.glob("store/**/manifest.json"))
    return refused.value


_TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_a_stage_from_the_hub_with_a_token(hub: Hub, tmp_path: Path):
    """As a process of its own: address and token of the hub come from its environment."""
    hub.gated.add("org/teacher")
    process = start_process(
        _order(tmp_path),
        tmp_path,
        HF_ENDPOINT=hub.url,
        HF_HOME=str(tmp_path / "hf"),
        HF_TOKEN="hf_right",
        HF_HUB_OFFLINE="0",
    )
    _, stderr = process.communicate(timeout=120)

    answer = answer_in(tmp_path)
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
            'hf://org/reviews, split train: no column "stars" (spec.task.dataset.label); expected one of label, sentence',
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
@pytest.mark.usefixtures("here")
def test_what_the_hub_does_not_have_is_named(tmp_path: Path, parts: dict[str, Any], failure_class: str, want: str):
    refusal = _refusal(tmp_path, **parts)

    assert (refusal.failure_class, str(refusal)) == (failure_class, want)


@pytest.mark.usefixtures("here")
def test_an_adapter_is_refused_before_anything_is_downloaded(hub: Hub, tmp_path: Path):
    LORA(hub.folder("models", "org/teacher"))

    refusal = _refusal(tmp_path)

    assert refusal.failure_class == "CheckpointInvalid"
    assert str(refusal).startswith("spec.teacher.model: hf://org/teacher has adapter_config.json: ")
    assert not [line for line in hub.requests if "/org/teacher/resolve/" in line]


@pytest.mark.usefixtures("here")
def test_of_a_checkpoint_that_gives_its_tokenizer_no_weights_are_downloaded(hub: Hub, tmp_path: Path):
    shutil.copytree(hub.folder("models", "org/teacher"), tmp_path / "teacher")

    run_here(_order(tmp_path, teacher={"model": f"file://{tmp_path}/teacher"}), tmp_path)

    fetched = [line for line in hub.requests if line.startswith("GET") and "/org/teacher/resolve/" in line]
    assert fetched
    assert not [line for line in fetched if "safetensors" in line]


@pytest.mark.usefixtures("here")
@pytest.mark.usefixtures("here")
def test_the_commit_of_unlabelled_text_is_in_manifest_and_model_card(hub: Hub, tmp_path: Path):
    texts = {"uri": "hf://org/reviews", "config": "short", "files": ["train", "validation"]}

    dataset = {"uri": "hf://org/reviews", "config": "long"}
    answer = run_here(_order(tmp_path, dataset=dataset, task={"transfer": texts}), tmp_path)

    (path,) = tmp_path.glob("store/stages/*/manifest.json")
    commit = hub.commit("datasets", "org/reviews")
    assert Manifest.parse(path.read_bytes()).data["transfer"].revision == commit
    card = Path(answer.checkpoint.removeprefix("file://"), "README.md").read_text()
    assert f"Unlabelled text: hf://org/reviews, revision {commit}." in card


@pytest.mark.usefixtures("here")
def test_a_data_set_that_cannot_be_built_is_no_crash(hub: Hub, tmp_path: Path):
    """The pages are damaged, the footer is not, so reading the rows fails, and `datasets` reports only that it failed."""
    for path in hub.folder("datasets", "org/reviews").glob("short/*.parquet"):
        content = path.read_bytes()
        path.write_bytes(content[:4] + b"x" * 200 + content[204:])

    refusal = _refusal(tmp_path)

    assert refusal.failure_class == "DataInvalid"
    assert str(refusal).startswith("spec.task.dataset.uri: hf://org/reviews cannot be read: ")
    assert "An error occurred while generating" not in str(refusal)


@pytest.mark.usefixtures("here")
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

    refusal = _refusal(tmp_path)

    assert (refusal.failure_class, want in str(refusal)) == ("DataInvalid", True), refusal


@pytest.mark.usefixtures("here")
def test_a_gated_model_asks_for_a_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.gated.add("org/teacher")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_and_secret")

    refusal = _refusal(tmp_path)

    assert refusal.failure_class == "StorageDenied"
    assert "hf://org/teacher is gated; accept its terms and give the pod HF_TOKEN" in str(refusal)
    assert "hf_wrong_and_secret" not in str(refusal)


@pytest.mark.usefixtures("here")
def test_a_hub_that_is_down_is_tried_again_later(hub: Hub, tmp_path: Path):
    hub.broken = True

    refusal = _refusal(tmp_path)

    assert refusal.failure_class == "StorageUnavailable"
    assert "the hub answered 503" in str(refusal)
