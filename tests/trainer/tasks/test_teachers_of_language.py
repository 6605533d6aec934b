"""Several language models teach one: examples/llm/two-teachers.yaml with small models on short real sentences."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.training import Training
from distillchain_api.wire.work_order import WorkOrder
from distillchain_api.yaml_text import load_yaml
from distillchain_trainer.engine.passes.teacher_outputs import outputs_digest
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.checkpoints import fetch_checkpoint
from distillchain_trainer.tasks.causal_lm.outputs import at_positions, split_teacher_outputs
from smollm2.texts import HELD_OUT, TRAIN, as_chat, write_jsonl
from trainer.language_parts import DAYS, MONTHS, OTHERS, TEMPLATE, a_task, an_adapter, save_llama
from trainer.parts import manifest_of, run_here, trained_rows
from trainer.rank_parts import Attempt, distance, start_stage

pytestmark = pytest.mark.models

EXAMPLE = Path(__file__).parents[3] / "examples/llm/two-teachers.yaml"
# Without those that the tokenizer of the tests has anyway.
KNOWN = {"Go", "user", "assistant", *DAYS, *MONTHS, *OTHERS}
WORDS = tuple(sorted({word for sentence in [*TRAIN, *HELD_OUT] for word in sentence.split()} - KNOWN))


def example(root: Path) -> dict[str, Any]:
    """The example, whose teacher is fine-tuned here because it starts with random weights.

    Validation repeats training rows: so small a model learns nothing about sentences with other words.
    """
    start = save_llama(root / "start", more_words=WORDS)
    write_jsonl(root / "data/train.jsonl", [as_chat(sentence) for sentence in TRAIN])
    write_jsonl(root / "data/validation.jsonl", [as_chat(sentence) for sentence in TRAIN[:16]])
    document = load_yaml(EXAMPLE.read_text(), source=EXAMPLE.name)
    spec: dict[str, Any] = document["spec"]
    splits = {"train": "train.jsonl", "validation": "validation.jsonl"}
    spec["task"]["dataset"] |= {"uri": f"file://{root}/data", "splits": splits}
    spec["task"]["maxLength"] = 48
    spec["storage"] = {"uri": f"file://{root}/store"}
    spec["teacher"] = {"model": f"file://{start}", "fineTune": {"epochs": 12}}
    spec["template"]["training"] = {"epochs": 3, "batchSize": 8, "learningRate": 0.02}
    three, one = spec["stages"]
    three["student"], one["student"] = {"fromTeacher": {"layers": 2}}, {"model": f"file://{start}"}
    return document


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the committed teacher of the example."""
    folder = tmp_path_factory.mktemp("teachers")
    run_here(build_plan(parse_chain(example(folder))).stages[0].work_order, folder, attempt="teacher")
    return folder


def orders(document: dict[str, Any], store: Path) -> list[WorkOrder]:
    """Those of the chain with another store."""
    spec = {**document["spec"], "storage": {"uri": f"file://{store}"}}
    return [stage.work_order for stage in build_plan(parse_chain({**document, "spec": spec})).stages]


def shares_in_plain_transformers(folder: str, inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
    """Probabilities of all tokens [rows, width, vocabulary]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder.removeprefix("file://")).eval()
    with torch.no_grad():
        return at_positions(model(**inputs).logits, positions).softmax(-1)


def test_the_example_teaches_the_mean_of_both_teachers(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Against plain transformers. topK is 64, of more than 600 tokens."""
    seen = trained_rows(monkeypatch)
    plan = build_plan(parse_chain(example(root)))

    teacher, three, one = [run_here(stage.work_order, root, attempt=stage.name) for stage in plan.stages]

    rows = seen[-1]
    numbers = torch.arange(len(TRAIN))
    inputs, compared = rows.batch(numbers, width=int(rows.lengths.max()))
    items = torch.arange(compared["positions"].shape[1]) < torch.tensor(rows.weights).unsqueeze(1)
    ids, logs = split_teacher_outputs(compared["teacher"])
    models = [shares_in_plain_transformers(it.checkpoint, inputs, compared["positions"]) for it in (three, teacher)]
    want = 2 / 3 * models[0] + 1 / 3 * models[1]
    smallest = 2 / 3 * models[0].topk(64).values[..., -1:] + 1 / 3 * models[1].topk(64).values[..., -1:]
    off = (logs.softmax(-1)[..., :64] - want.gather(-1, ids)).abs()[items]
    assert (off <= smallest[items] + 1e-5).all()
    assert off.median() < 1e-5, "most of it is stored by both"
    assert (want - models[0]).abs()[items].max() > 0.02, "the other one has a say"
    (other,) = manifest_of(root, one.digest).further_teachers
    assert (other.name, round(other.share, 4)) == ("teacher", 0.3333)
    assert len(list(root.glob("store/logits/*"))) == 2, "each teacher has answered once"


def test_two_processes_learn_from_two_teachers_after_a_pass_as_one_process_does_up_to_the_report(root: Path):
    """The pass divides its teacher among its processes, as one that is too large for a GPU."""
    document = example(root)
    for stage in document["spec"]["stages"]:
        stage["training"] = {"epochs": 1, "learningRate": 0.002}
    alone = orders(document, root / "alone")
    shutil.copytree(root / "store", root / "alone")
    expected = [run_here(order, root, attempt=f"alone-{order.stage}") for order in alone[1:]][-1]
    shutil.copytree(root / "alone", root / "two")
    one = document["spec"]["stages"][1]
    one |= {"teacherPass": {"parallelism": {"processesPerNode": 2, "sharding": "Full"}}}
    shutil.rmtree(next((root / "two/stages").glob(expected.digest)))
    shutil.rmtree(root / "two/logits")
    asked, student = orders(document, root / "two")[2:]

    passes = start_stage(Attempt(asked, "pass"), root, 2).answers()
    answers = start_stage(Attempt(student, "two"), root, 2).answers()

    assert (asked.stage, student.stage, student.digest) == ("one-pass", "one", expected.digest)
    assert passes[0].student.metrics == answers[0].teacher.metrics
    assert distance(answers[0], expected) < 1e-5
    (other,) = answers[0].further_teachers
    assert (other.name, round(other.share, 4)) == ("teacher", 0.3333)
    page = (root / f"two/stages/{student.digest}/report.html").read_text()
    assert re.search(r"three \(67 %, [0-9.]+\) and teacher \(33 %, [0-9.]+\)", page)
    assert 'one<span class="quiet"> teacher pass</span>' in page


def test_a_teacher_with_another_vocabulary_is_refused_by_its_name(root: Path):
    document = example(root)
    other = save_llama(root / "other", more_words=WORDS[:-1])
    document["spec"]["stages"] = document["spec"]["stages"][:1]
    document["spec"]["stages"][0]["teachers"] = [{"stage": "teacher"}, {"model": f"file://{other}"}]
    order = build_plan(parse_chain(document)).stages[-1].work_order

    with pytest.raises(CheckpointInvalid) as error:
        run_here(order, root, attempt="other")

    assert str(error.value).startswith(
        f"spec.stages[0].teachers: file://{other}: its vocabulary differs from the vocabulary of the teacher "
    )


@pytest.mark.parametrize(
    "template, is_shared", [(TEMPLATE, True), ("<|im_start|> user : Go <|im_end|> \n" + TEMPLATE, False)]
)
def test_a_teacher_that_reads_as_another_one_does_not_share_its_answers_with_a_chain_where_it_reads_as_itself(
    tmp_path: Path, template: str, is_shared: bool
):
    """Such as Qwen2 and Qwen2.5, whose templates have other default system messages."""
    task = a_task(tmp_path, "messages")
    paths = save_llama(tmp_path / "first", seed=1), save_llama(tmp_path / "other", seed=2, template=template)
    first, other = (
        fetch_checkpoint(f"file://{path}", field="teacher", endpoint_url=None, region=None, folder=path)
        for path in paths
    )
    beside = an_adapter(task)
    beside.load_teacher(first)

    alone, further = an_adapter(task).load_teacher(other), beside.load_further_teacher(other)

    digests = {
        outputs_digest(other.digest, task, Training(), reads_with=loaded.reads_with) for loaded in (alone, further)
    }
    assert (len(digests) == 1) == is_shared
    assert outputs_digest(other.digest, task, Training()) in digests, "what is stored already is still found"
