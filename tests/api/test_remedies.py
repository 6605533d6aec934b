"""A remedy about quotation marks leads to a value that the same field accepts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bad_chains import GOOD
from distillchain_api.faults import BadDocument
from distillchain_api.resource.spec import parse_chain
from distillchain_api.yaml_scalars import read_scalar

DURATIONS = (
    "spec.timeout",
    "spec.template.timeout",
    "spec.template.saveInterval",
    "spec.template.pendingDeadline",
    "spec.template.progressDeadline",
    "spec.template.ttlAfterFinished",
    "spec.stages.0.timeout",
)
TEXTS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.labels.team",
    "spec.storage.uri",
    "spec.storage.endpointUrl",
    "spec.storage.region",
    "spec.storage.secretRef.name",
    "spec.teacher.model",
    "spec.task.dataset.label",
    "spec.task.dataset.text.0",
    "spec.task.labels.0",
    "spec.stages.0.name",
    "spec.template.image",
    "spec.template.queueName",
    "spec.template.job.managedBy",
    "spec.template.job.labels.team",
    "spec.template.tracking.mlflow.trackingUri",
    "spec.template.training.scheduler",
)
NUMBERS = (
    "spec.maxParallelJobs",
    "spec.evidence.seeds",
    "spec.task.maxLength",
    "spec.stages.0.retries",
    "spec.template.parallelism.nodes",
    "spec.template.distillation.alpha",
    "spec.template.distillation.temperature",
    "spec.template.training.learningRate",
    "spec.template.training.epochs",
    "spec.template.training.seed",
)
WORDS = {True: ("y", "yes", "on"), False: ("n", "no", "off")}


def problem_of(path: str, value: object) -> str:
    """Why a field refuses a value; empty: it does not."""
    document = copy.deepcopy(GOOD)
    holder: Any = document
    *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    for part in parents:
        holder = holder[part] if isinstance(holder, list) else holder.setdefault(part, {})
    holder[last] = value
    try:
        parse_chain(document)
    except BadDocument as error:
        field = path.replace(".0", "[0]")
        return next((fault.problem for fault in error.faults if fault.field == field), "")
    return ""


@pytest.mark.parametrize("path", DURATIONS + TEXTS)
@pytest.mark.parametrize("value", [24, -1, 1.5, True, False])
def test_a_value_is_to_be_quoted_only_where_its_text_is_accepted(path: str, value: float | bool):
    texts = WORDS[value] if isinstance(value, bool) else (str(value),)

    is_advised = "quote it" in problem_of(path, value)

    is_text_accepted = any(not problem_of(path, text) for text in texts)
    assert is_advised == (is_text_accepted and problem_of(path, value) != "")


@pytest.mark.parametrize("path", NUMBERS)
@pytest.mark.parametrize("text", ["0", "-1", "2", "1.5", "1e3", "5e9"])
def test_quotation_marks_are_to_be_dropped_only_where_the_number_is_accepted(path: str, text: str):
    problem = problem_of(path, text)

    assert problem.startswith(f'got the text "{text}", expected ')
    number_is_accepted = not problem_of(path, read_scalar(text))
    assert problem.endswith("; drop the quotes" if number_is_accepted else "; write one without quotes")


@pytest.mark.parametrize("path", DURATIONS)
def test_a_number_where_a_duration_belongs_gets_the_units(path: str):
    assert problem_of(path, 24) == (
        "got 24, expected a duration such as 6h, 1h30m or 90s; write whole hours, minutes and seconds in that order, "
        "each with its unit"
    )


@pytest.mark.parametrize("amount", [0.5, 1.5, 1234567.5, 1e25, 1.5e300])
@pytest.mark.parametrize(
    "path", ["spec.template.resources.limits.cpu", "spec.template.cache.maxSize", "spec.stages.0.resources.limits.memory"]
)  # fmt: skip
def test_a_fraction_is_to_be_quoted_only_where_its_text_is_accepted(path: str, amount: float):
    problem = problem_of(path, amount)

    assert problem
    assert problem.endswith(f'; write "{amount}"') == (not problem_of(path, str(amount)))


@pytest.mark.parametrize(
    "path, value, want",
    [
        ("spec.task.type", "text-classification", "; write TextClassification"),
        ("spec.task.type", "causal_lm", "; write CausalLM"),
        ("spec.task.type", "SequenceClassification", "; did you mean TokenClassification?"),
        ("spec.task.metric", "macro_f1", "; write macroF1"),
        ("spec.template.training.precision", "bf16", "; did you mean bfloat16?"),
        ("spec.template.training.precision", "fp16", "'float32' or 'bfloat16'"),
        ("spec.template.distillation.objective", "soft targets", "; write SoftTargets"),
        ("spec.storage.encryption.type", "kms", "; did you mean aws:kms?"),
    ],
)
def test_a_word_that_resembles_one_of_a_few_gets_that_one(path: str, value: str, want: str):
    assert problem_of(path, value).endswith(want)
