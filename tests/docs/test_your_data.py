"""docs/your-data.md: its CSV file is split by its program, and its chain is valid for it."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import yaml

from chain_builders import a_document
from cli.parts import distillchain_here
from distillchain_trainer.models.bert_hash import BertHashConfig
from docs.blocks import REPOSITORY, blocks
from docs.shell import environment, run_block

PAGE = "docs/your-data.md"


def write_reviews(path: Path) -> None:
    rows = [
        (str(number), f'a "quoted" review, number {number}', "bad" if number % 5 else "good") for number in range(1250)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "review", "rating"), *rows])


def text_block(first_line: str) -> str:
    (block,) = [block for block in blocks("text", page=PAGE) if block.text.startswith(first_line)]
    return block.text


def test_the_program_splits_the_file_and_the_chain_reads_the_parts(tmp_path: Path):
    write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "chain.yaml").write_text(text_block("apiVersion: "))
    (program,) = blocks("python", page=PAGE)

    split = run_block(program, tmp_path, variables=environment(tmp_path))
    done = distillchain_here("validate", "chain.yaml", cwd=tmp_path)

    assert re.findall(r"^\w+ \d+", split.stdout, re.MULTILINE) == ["test 150", "validation 200", "train 900"]
    header = (tmp_path / "data" / "train.csv").read_text().splitlines()[0]
    assert header == "id,review,rating"
    assert (done.returncode, done.stderr) == (0, "")
    assert f"file://{tmp_path.parent}/.quickstart/" in done.stdout  # relative to the folder of the chain
    dataset = yaml.safe_load((tmp_path / "chain.yaml").read_text())["spec"]["task"]["dataset"]
    assert {dataset["label"], *dataset["text"]} < set(header.split(","))
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(dataset["splits"].values())


def test_the_page_lists_the_fields_of_bert_hash_with_their_defaults():
    page = (REPOSITORY / PAGE).read_text()
    config = BertHashConfig()
    rows = dict(re.findall(r"^ *\| `(\w+)` \| (\d+) \|", page, re.MULTILINE))

    assert {name: int(value) for name, value in rows.items()} == {name: getattr(config, name) for name in rows}
    assert set(BertHashConfig.__annotations__) - {"model_type", "vocab_size"} <= set(rows)


def test_the_predictions_have_the_fields_that_the_page_shows():
    from distillchain_api.wire.records import Prediction

    shown = text_block('{"row": 0')
    for line in shown.splitlines():
        prediction = Prediction.model_validate_json(line)
        assert prediction.label in ("bad", "good")
        assert len(prediction.logits) == len(a_document()["spec"]["task"]["labels"])
