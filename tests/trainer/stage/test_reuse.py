"""What is committed already: taken over when it is whole, named when it is damaged, made by one of two."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from distillchain_api.failures import StageError
from distillchain_api.wire.answer import Committed
from distillchain_store.errors import CheckpointCorrupt, OtherRelease, StorageDenied, StorageUnavailable
from distillchain_store.folder import FileStore
from distillchain_store.verified import RESTORE
from distillchain_trainer.errors import GateNotMet
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.run import run_stage
from trainer.parts import (
    Rival,
    an_order,
    answer_in,
    manifest_of,
    read_json,
    run_here,
    start_process,
)

pytestmark = pytest.mark.models


def test_a_committed_stage_is_reused_in_seconds_and_without_torch(root: Path):
    order = an_order(root)
    first = run_here(order, root)
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "teacher")

    process = start_process(order, root, PYTHONPROFILEIMPORTTIME="1")
    _, stderr = process.communicate(timeout=60)

    answer = answer_in(root)
    assert process.returncode == 0, stderr
    assert isinstance(answer, Committed)
    assert answer.reused
    assert answer.attempt == first.attempt
    assert "| torch\n" not in stderr
    assert "| transformers\n" not in stderr


def test_teacher_logits_are_computed_once_for_two_runs(root: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "distillchain_trainer")
    run_here(an_order(root), root)
    assert "teacher logits computed" in caplog.text

    answer = run_here(an_order(root, training={"seed": 7}), root, attempt="again")

    assert "teacher logits reused from the store" in caplog.text
    run = manifest_of(root, answer.digest).run
    assert run.logits_reused
    assert run.logits == [path.name for path in root.glob("store/logits/*")]


def test_altered_teacher_logits_are_computed_again(root: Path, caplog: pytest.LogCaptureFixture):
    run_here(an_order(root), root)
    (part,) = root.glob("store/logits/*/*.safetensors")
    whole = part.read_bytes()
    part.write_bytes(whole[:-4] + b"abcd")

    answer = run_here(an_order(root, training={"seed": 7}), root, attempt="again")

    assert "altered teacher logits are computed again" in caplog.text
    assert not manifest_of(root, answer.digest).run.logits_reused
    assert part.read_bytes() == whole


@pytest.mark.parametrize("damage", ["altered", "truncated", "deleted"])
def test_a_damaged_commit_is_named_not_used(root: Path, damage: str):
    order = an_order(root)
    weights = Path(run_here(order, root).checkpoint[7:]) / "model.safetensors"
    content = weights.read_bytes()
    damages = {"altered": content[:-1] + bytes([content[-1] ^ 1]), "truncated": content[:-100], "deleted": None}
    weights.unlink()
    if (left := damages[damage]) is not None:
        weights.write_bytes(left)

    with pytest.raises(CheckpointCorrupt) as failure:
        run_here(order, root, attempt="again")

    how = {
        "altered": "was altered: its sha256 is not the one in its manifest",
        "truncated": f"has {len(content) - 100} bytes, its manifest lists {len(content)}",
        "deleted": "is missing",
    }[damage]
    assert str(failure.value) == f"file://{weights} {how}; {RESTORE}"


STAGES = [
    {"name": "one", "student": {"model": "file://{root}/teacher"}, "training": {"epochs": 1, "learningRate": 1e-6}},
    {"name": "two", "student": {"model": "file://{root}/teacher"}, "training": {"epochs": 1, "learningRate": 1e-6}},
]


def two_stages(root: Path) -> list[dict[str, Any]]:
    """Both start from the teacher and hardly move: the first may teach the second at once."""
    parsed: list[dict[str, Any]] = json.loads(json.dumps(STAGES).replace("{root}", str(root)))
    return parsed


def test_a_stage_taught_by_a_damaged_commit_names_it(root: Path):
    stages = two_stages(root)
    weights = Path(run_here(an_order(root, stages=stages), root).checkpoint[7:]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")

    with pytest.raises(CheckpointCorrupt) as failure:
        run_here(an_order(root, stages=stages, stage=1), root, attempt="two")

    assert str(failure.value) == (
        f"file://{weights} was altered: its sha256 is not the one in its manifest; restore it, or delete that stage's "
        "manifest.json, and try again (distillchain retry, or run without a cluster)"
    )


def test_a_stage_whose_teacher_is_not_committed_says_what_makes_it(root: Path):
    order = an_order(root, stages=two_stages(root), stage=1)

    with pytest.raises(CheckpointCorrupt) as failure:
        run_here(order, root)

    assert order.teacher is not None
    assert str(failure.value) == (
        f"file://{root}/store/stages/{order.teacher.digest}/manifest.json is missing: stage one, which teaches this one, "
        "is no longer committed; try again (distillchain retry, or run without a cluster), and stage one runs again first"
    )


def test_a_store_that_was_moved_is_as_good(root: Path):
    stages = two_stages(root)
    run_here(an_order(root, stages=stages), root)
    (root / "store").rename(root / "moved")
    elsewhere = {"uri": f"file://{root}/moved"}

    found = run_here(an_order(root, stages=stages, storage=elsewhere), root, attempt="again")
    taught = run_here(an_order(root, stages=stages, stage=1, storage=elsewhere), root, attempt="two")

    assert found.reused
    assert found.checkpoint.startswith(f"file://{root}/moved/stages/")
    assert Path(found.checkpoint[7:], "config.json").is_file()
    assert taught.teacher is not None


def test_a_manifest_of_a_newer_release_is_adopted(root: Path):
    order = an_order(root)
    run_here(order, root)
    path = root / f"store/stages/{order.digest}/manifest.json"
    manifest = read_json(path)
    manifest["run"]["newFact"] = 1
    path.write_text(json.dumps({**manifest, "newFact": "x"}))

    assert run_here(order, root, attempt="again").reused


def test_a_manifest_of_another_contract_is_never_called_corrupt(root: Path):
    order = an_order(root)
    path = root / f"store/stages/{order.digest}/manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"contract": 1, "digest": order.digest, "student": "in another form"}))

    with pytest.raises(OtherRelease) as failure:
        run_here(order, root)

    assert str(failure.value) == (
        f"file://{path} was made by another release (its contract is 1, this release reads 2); its checkpoint is good: "
        "use an image of that release"
    )


def test_a_cut_manifest_is_named(root: Path):
    order = an_order(root)
    run_here(order, root)
    path = root / f"store/stages/{order.digest}/manifest.json"
    path.write_text(path.read_text()[:200])

    with pytest.raises(CheckpointCorrupt, match=r"manifest\.json cannot be read .*; restore it, or delete it"):
        run_here(order, root, attempt="again")


def test_a_student_under_its_gate_is_kept_and_a_looser_gate_needs_no_training(
    root: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "distillchain_trainer")
    strict = an_order(root, gate={"minMetric": 1.0}, training={"epochs": 1, "learningRate": 0.0001})
    with pytest.raises(GateNotMet) as failure:
        run_here(strict, root)
    assert "is below spec.stages[0].gate.minMetric 1.00" in str(failure.value)
    assert f"the trained student is kept in file://{root}/store/stages/{strict.digest}/resume" in str(failure.value)
    assert not (root / f"store/stages/{strict.digest}/manifest.json").exists()

    loose = an_order(root, gate={"minMetric": 0.1}, training={"epochs": 1, "learningRate": 0.0001})
    answer = run_here(loose, root, attempt="loose")

    assert loose.digest == strict.digest
    assert "training was finished before; its student is measured again" in caplog.text
    run = manifest_of(root, loose.digest).run
    assert run.resumed
    assert run.steps == 10
    assert run.logits == [path.name for path in root.glob("store/logits/*")], "this attempt has not asked the teacher"
    measured = float(str(failure.value).split("accuracy ")[1].split(" ")[0])
    assert answer.student.metrics.validation["accuracy"] == pytest.approx(measured, abs=1e-4)


def test_a_committed_stage_must_hold_a_gate_that_was_tightened(root: Path):
    stage = {"training": {"epochs": 1, "learningRate": 0.0001}}
    run_here(an_order(root, **stage), root)

    with pytest.raises(GateNotMet, match=r"maxDrop 0\.00; step down less"):
        run_here(an_order(root, gate={"maxDrop": 0.0}, **stage), root, attempt="again")

    gated = an_order(root, teacher={"model": f"file://{root}/teacher", "gate": {"minMetric": 0.95}}, **stage)
    path = root / f"store/stages/{gated.digest}/manifest.json"
    document = read_json(path)
    document["teacher"]["metrics"]["validation"]["accuracy"] = 0.91
    path.write_text(json.dumps(document))
    with pytest.raises(
        GateNotMet, match=r"teacher: accuracy 0\.91 is below spec\.teacher\.gate\.minMetric 0\.95; fine-tune"
    ):
        run_here(gated, root, attempt="gated")


def test_of_two_trainers_one_commits_and_the_other_adopts(root: Path):
    order = an_order(root)
    (root / "work").mkdir()

    answer = run_stage(order, attempt="late", folder=root / "work", reporter=Rival(order, root), signals=Signals())

    assert answer.attempt == "rival"
    assert answer.reused
    assert manifest_of(root, order.digest).attempt == "rival"
    attempts = [path.name for path in root.glob(f"store/stages/{order.digest}/attempts/*")]
    assert attempts == ["rival"], "the loser's objects are gone"


@pytest.mark.parametrize("fault", [StorageUnavailable("away"), StorageDenied("no right to delete")])
def test_a_store_that_does_not_delete_fails_no_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: StageError
):
    """`delete` stands in for a store that is away just then, or gives no right to delete: root may always."""

    def refuse(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(FileStore, "delete", refuse)
    order = an_order(root)
    (root / "work").mkdir()

    first = run_stage(order, attempt="late", folder=root / "work", reporter=Rival(order, root), signals=Signals())
    again = run_here(order, root, attempt="again")

    assert [(answer.attempt, answer.reused) for answer in (first, again)] == [("rival", True), ("rival", True)]
    reported = {
        vars(record)["objects"] for record in caplog.records if record.message.startswith("objects were not deleted")
    }
    stage = f"file://{root}/store/stages/{order.digest}"
    probes = {f"{stage}/attempts/{attempt}/store-check" for attempt in ("late", "rival")}
    assert reported == {f"{stage}/resume/", f"{stage}/attempts/late/", *probes}
    kept_behind = f"objects under {stage}/resume/ could not be deleted and stay there ({fault})"
    assert [answer.warnings.count(kept_behind) for answer in (first, again)] == [1, 1]
