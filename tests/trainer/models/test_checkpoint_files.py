"""The files of an attempt: a checkpoint that transformers loads as it is, and next to it the results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from distillchain_api.wire.answer import Committed
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.records import Prediction
from trainer.page_programs import printed_by_the_program_of
from trainer.parts import GOOD, an_order, manifest_of, run_here, save_bert, sentences, write_tsv

pytestmark = pytest.mark.models


def checkpoint_of(answer: Committed) -> Path:
    return Path(answer.checkpoint.removeprefix("file://"))


def test_plain_transformers_truncates_to_max_length_and_gives_the_stored_predictions(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    long = [(f"the {word} film " * 20 + "bad", 1) for word in GOOD]  # 61 words, maxLength is 16
    write_tsv(root / "data/dev.tsv", [*sentences(40, 2), *long])

    folder = checkpoint_of(run_here(an_order(root, student={"model": f"file://{root}/teacher"}), root))

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 16
    text = (folder.parent / "results/predictions-validation.jsonl").read_text()
    stored = [Prediction.parse(line) for line in text.splitlines()]
    texts = [text for text, _ in [*sentences(40, 2), *long]]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(logits, [line.logits for line in stored], atol=1e-5)
    answers = pipeline("text-classification", model=str(folder), device="cpu")(texts, truncation=True)
    assert [answer["label"] for answer in answers] == [line.predicted for line in stored]
    shown = printed_by_the_program_of("text-classification", str(folder), text=texts[0], capsys=capsys)
    assert f"'label': '{stored[0].predicted}'" in shown


def test_the_checkpoint_holds_the_model_alone_and_texts_are_next_to_it(root: Path):
    answer = run_here(an_order(root), root)

    folder = checkpoint_of(answer)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith(".jsonl")]
    results = {path.name for path in (folder.parent / "results").iterdir()}
    assert {"history.jsonl", "predictions-validation.jsonl", "examples-validation.jsonl"} <= results
    listed = {entry.path for entry in manifest_of(root, answer.digest).files}
    assert listed == {f"checkpoint/{name}" for name in names} | {f"results/{name}" for name in results}


def test_a_committed_checkpoint_starts_a_chain_with_longer_texts(root: Path):
    folder = checkpoint_of(run_here(an_order(root), root))
    shutil.copytree(folder, root / "start")
    order = an_order(root, student={"model": f"file://{root}/start"}, task={"maxLength": 24})

    longer = checkpoint_of(run_here(order, root, attempt="longer"))

    assert AutoTokenizer.from_pretrained(longer).model_max_length == 24
    for name in ("tokenizer.json", "special_tokens_map.json"):
        if (folder / name).exists():
            assert (longer / name).read_bytes() == (folder / name).read_bytes()


def test_a_commit_of_an_older_release_with_one_folder_still_teaches(root: Path):
    save_bert(root / "encoder", labels=None, seed=5)
    student = {"model": f"file://{root}/encoder"}
    stages = [{"name": name, "student": student, "training": {"epochs": 6}} for name in ("one", "two")]
    first = an_order(root, stages=stages)
    run_here(first, root)
    _in_one_folder(root, first.digest)

    adopted = run_here(first, root, attempt="again")
    taught = run_here(an_order(root, stages=stages, stage=1), root, attempt="two")

    assert adopted.reused
    assert adopted.checkpoint == f"file://{root}/store/stages/{first.digest}/attempts/here"
    assert taught.teacher is not None


def _in_one_folder(root: Path, digest: str) -> None:
    """Rewrites a commit as older releases stored it."""
    path = root / f"store/stages/{digest}/manifest.json"
    manifest = Manifest.parse(path.read_text())
    attempt = path.parent / "attempts" / manifest.attempt
    for entry in manifest.files:
        (attempt / entry.path).rename(attempt / Path(entry.path).name)
    (attempt / "checkpoint").rmdir()
    (attempt / "results").rmdir()
    entries = [entry.model_copy(update={"path": Path(entry.path).name}) for entry in manifest.files]
    path.write_text(json.dumps(manifest.model_copy(update={"files": entries}).to_document()))
