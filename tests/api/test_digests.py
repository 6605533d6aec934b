"""Identity: what decides the result changes the digest, what does not leaves it alone."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bad_chains import GOOD
from distillchain_api.base import Document
from distillchain_api.digests import INITIALISATIONS, canonical_json, distill_digest, identity_of, sha256_of
from distillchain_api.graph import build_plan
from distillchain_api.resource.distillation import Distillation
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.student import Architecture, Student
from distillchain_api.resource.training import Training
from distillchain_api.task import Splits, TextDataset
from distillchain_api.tasks.text_classification import TextClassification


def digests(document: dict[str, Any]) -> list[str]:
    return [stage.digest for stage in build_plan(parse_chain(document)).stages]


def changed(change: Callable[[dict[str, Any]], object]) -> list[str]:
    document = copy.deepcopy(GOOD)
    change(document["spec"])
    return digests(document)


def test_golden_digests_stand():
    """Committed stages in users' buckets bear these names: a change here must raise CONTRACT_VERSION."""
    assert digests(GOOD) == [
        "bcd61a8bc6c4f2b1213e5fd5c896751de69c69c58e88c46172b314549fc2e7d5",
        "3c6b6fdea6bf1ea8dfbe49ba6e99063e15760edb9aa16388071d8f7de530ec5a",
    ]


@pytest.mark.parametrize(
    "kind", [TextClassification, TextDataset, Splits, Student, Architecture, Training, Distillation]
)
def test_a_field_added_with_a_default_renames_nothing(kind: type[Document]):
    """Every document that takes part in identity, as a later release might extend it."""

    class Later(kind):  # type: ignore[misc,valid-type]  # a class chosen by the test
        added_later: int = 5

    chain = parse_chain(GOOD).spec
    parts = {
        TextClassification: chain.task, TextDataset: chain.task.dataset, Splits: chain.task.dataset.splits,
        Student: Student(model="hf://a/b"), Architecture: Architecture(model_type="bert"),
        Training: Training(epochs=1), Distillation: Distillation(alpha=0.5),
    }  # fmt: skip
    later = Later.parse(parts[kind].to_document())
    assert identity_of(later) == identity_of(parts[kind])
    changed = later.model_copy(update={"added_later": 6})
    assert identity_of(changed) == {**identity_of(later), "addedLater": 6}, "a value that is stated takes part"


def test_a_digest_with_an_added_field_is_the_pinned_one():
    class LaterTraining(Training):
        early_stopping: int | None = None

    def digest(training: Training) -> str:
        return distill_digest(
            parse_chain(GOOD).spec.task,
            teacher="hf://org/teacher",
            student=Student(model="hf://org/mini"),
            training=training,
            distillation=Distillation(),
        )

    assert digest(Training()) == "ccd0ecc815778e40aec7f94cab2e2f6eef5d4a77cbcd79564596c5cc2b25dc42"
    assert digest(LaterTraining()) == digest(Training())
    assert digest(LaterTraining(early_stopping=3)) != digest(Training())


def test_new_weights_have_the_version_of_their_initialisation_in_their_digest(monkeypatch: pytest.MonkeyPatch):
    def both() -> list[str]:
        return [
            changed(lambda spec, kind=kind: spec["stages"][0].update(student=new_weights(kind)))[0]  # type: ignore[misc]
            for kind in ("bert-hash", "bert")
        ]

    def new_weights(kind: str) -> dict[str, Any]:
        return {"architecture": {"modelType": kind}, "tokenizer": "hf://org/tiny"}

    before = both()
    monkeypatch.setitem(INITIALISATIONS, "bert_hash", 3)

    assert [a == b for a, b in zip(before, both(), strict=True)] == [False, True]


def test_defaults_are_part_of_the_contract():
    """A changed default gives the same digest another meaning: raise CONTRACT_VERSION and change this test with it."""
    assert Training().to_document() == {
        "epochs": 3, "batchSize": 32, "learningRate": 1e-4, "weightDecay": 0.0, "warmupRatio": 0.0, "scheduler": "linear",
        "maxGradNorm": 1.0, "precision": "float32", "tf32": False, "seed": 42,
        "labelSmoothing": 0.0, "balancedClasses": False, "selection": "Last", "patience": 0,
    }  # fmt: skip
    assert Distillation().to_document() == {"objective": "SoftTargets", "temperature": 1.0, "alpha": 1.0}
    task = parse_chain(GOOD).spec.task
    stated = {name: field for name, field in task.model_dump().items() if name in ("metric", "max_length")}
    assert stated == {"metric": "accuracy", "max_length": 128}


def test_canonical_json_is_written_by_hand():
    assert canonical_json({"b": 1.0, "a": [True, None, "é", 0.1]}) == '{"a":[true,null,"é",0.1],"b":1}'.encode()
    assert sha256_of({}) == hashlib.sha256(b"{}").hexdigest()


def test_not_a_number_has_no_canonical_form():
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=6), st.randoms())
def test_key_order_does_not_matter(value: dict[str, Any], random: Any):
    keys = list(value)
    random.shuffle(keys)
    assert canonical_json({key: value[key] for key in keys}) == canonical_json(value)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda s: s.update(template={"image": "other:1"}), id="image"),
        pytest.param(lambda s: s.update(template={"resources": {"limits": {"nvidia.com/gpu": 1}}}), id="resources"),
        pytest.param(lambda s: s.update(template={"pod": {"spec": {"nodeSelector": {"a": "b"}}}}), id="pod"),
        pytest.param(lambda s: s.update(template={"retries": 9, "timeout": "1h", "saveInterval": "1m"}), id="retries"),
        pytest.param(
            lambda s: s.update(timeout="9h", template={"progressDeadline": "1h", "ttlAfterFinished": "1h"}),
            id="deadlines",
        ),
        pytest.param(lambda s: s.update(template={"microBatchSize": 4}), id="micro-batches"),
        pytest.param(lambda s: s["stages"][0].update(microBatchSize=4), id="micro-batches of a stage"),
        pytest.param(
            lambda s: s.update(
                template={
                    "parallelism": {"nodes": 4, "processesPerNode": 8, "sharding": "Full"},
                    "pendingDeadline": "1h",
                }
            ),
            id="parallelism",
        ),
        pytest.param(lambda s: s["stages"][0].update(parallelism={"nodes": 2}), id="parallelism of a stage"),
        pytest.param(lambda s: s.update(template={"cache": {"volume": {"emptyDir": {}}}}), id="cache"),
        pytest.param(lambda s: s.update(template={"job": {"labels": {"a": "b"}}, "queueName": "gpus"}), id="queue"),
        pytest.param(lambda s: s.update(suspend=True), id="suspend"),
        pytest.param(lambda s: s["storage"].update(endpointUrl="http://s3:9000"), id="storage"),
        pytest.param(lambda s: s["stages"][0].update(gate={"minMetric": 0.5}), id="gate"),
        pytest.param(lambda s: s["stages"][0].update(name="renamed"), id="name"),
        pytest.param(lambda s: s.update(template={"export": {"onnx": {"quantize": "int8"}}}), id="export"),
        pytest.param(
            lambda s: s.update(template={"tracking": {"tensorBoard": {}, "wandb": {"project": "p"}}}), id="tracking"
        ),
        pytest.param(
            lambda s: s.update(
                template={
                    "training": {"epochs": 3, "batchSize": 32, "learningRate": 1e-4, "maxGradNorm": 1},
                    "distillation": {"temperature": 1, "alpha": 1.0},
                }
            ),
            id="defaults spelled out",
        ),
        pytest.param(lambda s: s["stages"][0].update(training={"epochs": 3}), id="the default said by the stage"),
    ],
)
def test_what_does_not_decide_the_result_leaves_the_digest(change: Callable[[dict[str, Any]], object]):
    assert changed(change) == digests(GOOD)


@pytest.mark.parametrize(
    ("change", "first_changed"),
    [
        pytest.param(lambda s: s["task"]["dataset"].update(uri="s3://data/other"), 0, id="data"),
        pytest.param(lambda s: s["task"]["dataset"]["splits"].update(train="t.csv"), 0, id="split"),
        pytest.param(lambda s: s["task"].update(labels=["positive", "negative"]), 0, id="order of labels"),
        pytest.param(lambda s: s["task"].update(maxLength=64), 0, id="length"),
        pytest.param(lambda s: s["teacher"].update(model="hf://org/other"), 0, id="teacher"),
        pytest.param(lambda s: s.update(template={"training": {"seed": 7}}), 0, id="seed"),
        pytest.param(lambda s: s.update(template={"distillation": {"temperature": 2}}), 0, id="temperature"),
        pytest.param(lambda s: s.update(template={"training": {"precision": "bfloat16"}}), 0, id="precision"),
        pytest.param(lambda s: s.update(template={"training": {"tf32": True}}), 0, id="TF32"),
        pytest.param(lambda s: s["stages"][0]["student"].update(model="hf://org/mini@v2"), 0, id="student"),
        pytest.param(lambda s: s["stages"][1].update(training={"epochs": 9}), 1, id="second stage's training"),
        pytest.param(lambda s: s["stages"][1].update(distillation={"alpha": 0.5}), 1, id="second stage's alpha"),
    ],
)
def test_what_decides_the_result_changes_this_digest_and_all_after(
    change: Callable[[dict[str, Any]], object], first_changed: int
):
    before, after = digests(GOOD), changed(change)
    assert [a == b for a, b in zip(before, after, strict=True)] == [i < first_changed for i in range(len(before))]


def test_fine_tuning_the_teacher_adds_stage_zero_and_changes_all_after():
    document = copy.deepcopy(GOOD)
    document["spec"]["teacher"]["fineTune"] = {"epochs": 1}
    plan = build_plan(parse_chain(document))
    assert [stage.name for stage in plan.stages] == ["teacher", "mini", "tiny"]
    assert plan.stages[1].teacher_digest == plan.stages[0].digest
    assert not set(digests(GOOD)) & {stage.digest for stage in plan.stages}


def test_the_export_of_a_fine_tuned_teacher_leaves_the_digests():
    before, after = (
        changed(lambda s, export=export: s["teacher"].update(fineTune={}, **export))
        for export in ({}, {"export": {"onnx": {"quantize": "int8"}}})
    )
    assert after == before
