"""A chain of TokenClassification from a pretrained encoder to its report, recomputed with plain transformers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillchain_api.wire.answer import Committed
from distillchain_api.wire.manifest import Manifest
from distillchain_report.build import build_report
from distillchain_report.load import WantedStage, load_stages
from distillchain_report.render import render_html, render_markdown
from distillchain_store.folder import FileStore
from docs.blocks import blocks
from report.test_tagging_scores import FROM_SEQEVAL
from trainer.parts import manifest_of, run_here
from trainer.tagging_parts import LABELS, SENTENCES, an_order, write_models

pytestmark = pytest.mark.models


@dataclass(frozen=True)
class Run:
    """A committed chain: stage zero, which fine-tunes the teacher, and a student with another tokenizer."""

    root: Path
    answers: list[Committed]
    manifests: list[Manifest]

    def checkpoint(self, stage: int) -> Path:
        return Path(self.answers[stage].checkpoint.removeprefix("file://"))

    def lines(self, stage: int, name: str) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in (self.checkpoint(stage).parent / "results" / name).read_text().splitlines()
        ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = write_models(tmp_path_factory.mktemp("names"))
    orders = [an_order(root, stage=stage) for stage in (0, 1)]
    answers = [run_here(order, root, attempt=f"a{stage}") for stage, order in enumerate(orders)]
    return Run(root, answers, [manifest_of(root, order.digest) for order in orders])


def sentences(split: str) -> list[tuple[list[str], list[str]]]:
    """Words and tags."""
    blocks = (SENTENCES / f"{split}.conll").read_text().strip("\n").split("\n\n")
    rows = [[line.split("\t") for line in block.split("\n")] for block in blocks]
    return [([word for word, _ in row], [tag for _, tag in row]) for row in rows]


def f1_as_seqeval(labels: list[list[str]], predicted: list[list[str]]) -> float:
    """Micro F1 over entities, written as in seqeval's documentation and independent of our own code."""

    def entities(rows: list[list[str]]) -> set[tuple[int, int, int, str]]:
        found = set()
        for row, tags in enumerate(rows):
            start = 0
            for place, tag in enumerate([*tags, "O"]):
                before = tags[place - 1] if place else "O"
                goes_on = tag[0] == "I" and before[1:] == tag[1:]
                if before != "O" and not goes_on:
                    found.add((row, start, place, before[2:]))
                if tag != "O" and not goes_on:
                    start = place
        return found

    theirs, ours = entities(labels), entities(predicted)
    return 2 * len(theirs & ours) / (len(theirs) + len(ours)) if theirs or ours else 0.0


@pytest.mark.parametrize("case", FROM_SEQEVAL[:10], ids=map(str, range(10)))
def test_the_independent_f1_of_this_file_is_that_of_seqeval(case: dict[str, Any]):
    rows = [[line.split() for line in case[name]] for name in ("labels", "predicted")]

    assert f1_as_seqeval(*rows) == pytest.approx(case["f1"], abs=1e-8)


def test_teacher_and_student_learn_the_task(run: Run):
    teacher, student = (manifest.student for manifest in run.manifests)

    assert teacher.metrics.validation["entityF1"] > 0.8
    assert student.metrics.validation["entityF1"] > 0.6
    assert teacher.doubt is None
    assert student.doubt is None
    assert run.manifests[1].teacher is not None
    assert run.manifests[1].teacher.metrics.validation == teacher.metrics.validation


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("stage", [0, 1])
def test_the_metrics_follow_from_the_predictions(run: Run, stage: int, split: str):
    lines = run.lines(stage, f"predictions-{split}.jsonl")
    labels, predicted = ([line[name] for line in lines] for name in ("labels", "predicted"))
    metrics = getattr(run.manifests[stage].student.metrics, split)

    assert labels == [tags for _, tags in sentences(split)]
    assert metrics["entityF1"] == pytest.approx(f1_as_seqeval(labels, predicted), abs=1e-9)
    hits = [a == b for row in zip(labels, predicted, strict=True) for a, b in zip(*row, strict=True)]
    assert metrics["tokenAccuracy"] == pytest.approx(np.mean(hits), abs=1e-9)


@pytest.mark.parametrize("stage", [0, 1])
def test_plain_transformers_predicts_the_same_tag_for_every_word(run: Run, stage: int):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(run.checkpoint(stage)).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoint(stage))
    assert list(model.config.id2label.values()) == LABELS

    for (words, _), line in zip(sentences("validation"), run.lines(stage, "predictions-validation.jsonl"), strict=True):
        inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt", truncation=True)
        with torch.inference_mode():
            tags = model(**inputs).logits[0].argmax(-1).tolist()
        word_ids = inputs.word_ids(0)
        # A word that the student does not read, because it is beyond maxLength, counts as O.
        own = [LABELS[tags[word_ids.index(word)]] if word in word_ids else "O" for word in range(len(words))]
        assert own == line["predicted"]


def test_the_program_of_the_docs_prints_the_predicted_tags(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (block,) = (block for block in blocks("python") if block.page == "docs/token-classification.md")
    monkeypatch.chdir(run.checkpoint(1).parent)

    for row in (0, 3):
        line = f"words = {sentences('validation')[row][0]!r}"
        program = re.sub(r"words = \[.*\]", line, block.text)
        exec(program, {})
        printed = capsys.readouterr().out.strip().splitlines()[-1]
        assert printed == str(run.lines(1, "predictions-validation.jsonl")[row]["predicted"])


def test_teacher_and_student_read_words_in_other_pieces(run: Run):
    from transformers import AutoTokenizer

    ids = [
        [AutoTokenizer.from_pretrained(run.checkpoint(stage))(words, is_split_into_words=True).word_ids() for words, _ in sentences("validation")]
        for stage in (0, 1)
    ]  # fmt: skip

    assert sum(one != other for one, other in zip(*ids, strict=True)) > 10


def test_the_report_shows_kinds_errors_and_sentences(run: Run):
    store = FileStore(f"file://{run.root}/store")
    wanted = [WantedStage(answer.stage, answer.digest) for answer in run.answers]
    report = build_report(
        "ml/names", load_stages(store, wanted), storage=store.uri, generated_at="2026-01-01T12:00:00Z", version="0.1.0"
    )

    assert report.missing == []
    assert report.metric.name == "entityF1"
    assert report.chance is not None
    assert report.chance.value < 0.2
    assert report.against_root is not None
    student = run.manifests[1].student.metrics
    assert report.stages[1].model is not None
    assert report.stages[1].model.metric.value == pytest.approx(student.validation["entityF1"])
    assert report.stages[1].model.test is not None
    assert report.stages[1].model.test.low is not None
    assert report.details is not None
    document = report.details.to_document()
    assert [kind["kind"] for kind in document["kinds"]] == ["LOC", "ORG", "PER"]
    tags = [tag for _, tags in sentences("validation") for tag in tags]
    assert sum(kind["entities"] for kind in document["kinds"]) == sum(tag.startswith("B-") for tag in tags)
    for sentence in document.get("sentences", []):
        words, tags = sentences("validation")[sentence["row"]]
        assert sentence["words"] == words
        assert len(sentence["labels"]) == sum(tag.startswith("B-") for tag in tags)
    for page in (render_html(report), render_markdown(report)):
        assert "Entities of small" in page
        assert "predicted where there is none" in page


def test_no_words_are_stored_where_the_user_forbids_it(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DISTILLCHAIN_KEEP_TEXTS", "0")
    root = write_models(tmp_path)
    order = an_order(root, training={"epochs": 2})

    answer = run_here(order, root)

    results = Path(answer.checkpoint.removeprefix("file://")).parent / "results"
    assert not (results / "examples-validation.jsonl").exists()
    assert not [path for path in results.iterdir() if "Ingrid" in path.read_text()]
