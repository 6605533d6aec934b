"""Chains whose work orders would be too long for an environment variable."""

from __future__ import annotations

from typing import Any

from bad_chains.base import BadChain, Change

SHOWN = ", ".join(f'"{number:05}": 1' for number in range(6)) + ', "00006"'
BUDGET = (
    "expected 60000 at most for task.labels (twice with classWeights), transfer.files, lora.targetModules and evidence "
    "together, because an environment variable holds them; shorten them"
)
CONFIG = "spec.stages[0].student.architecture.config"


def names(count: int, length: int) -> list[str]:
    return [f"{number:0{length}}" for number in range(count)]


def new_weights(**config: Any) -> Change:
    student = {"architecture": {"modelType": "bert", "config": config}, "tokenizer": "hf://org/mini"}
    return lambda spec: spec["stages"][0].update(student=student)


def weighed(spec: dict[str, Any]) -> None:
    spec["task"]["labels"] = names(999, 30)
    spec["stages"][1]["training"] = {"classWeights": {spec["task"]["labels"][0]: 2}}


def many_files(spec: dict[str, Any]) -> None:
    spec["task"]["transfer"] = {"uri": "s3://data/texts", "files": names(256, 250)}


def adapters(spec: dict[str, Any]) -> None:
    spec["task"]["labels"] = names(500, 95)
    for stage in spec["stages"]:
        stage["student"]["lora"] = {"targetModules": names(64, 240)}


def compared_everywhere(spec: dict[str, Any]) -> None:
    stages = [{"name": f"s{number}", "student": {"model": "hf://org/tiny"}} for number in range(32)]
    spec.update(stages=stages, evidence={"stages": "Every", "seeds": 20})


BAD_CHAINS = (
    BadChain(
        "labels too long together",
        lambda spec: spec["task"].update(labels=names(700, 200)),
        f"spec.task.labels: takes 142100 bytes as JSON, and 142100 with other large fields; {BUDGET}",
        (BUDGET,),
    ),
    BadChain(
        "labels too long in bytes",
        lambda spec: spec["task"].update(labels=[f"{number:03}{'é' * 50}" for number in range(600)]),
        f"spec.task.labels: takes 63600 bytes as JSON, and 63600 with other large fields; {BUDGET}",
        (BUDGET,),
    ),
    BadChain(
        "labels with many quotes",
        lambda spec: spec["task"].update(labels=[f"{number:03}{chr(34) * 50}" for number in range(600)]),
        f"spec.task.labels: takes 63600 bytes as JSON, and 63600 with other large fields; {BUDGET}",
        (BUDGET,),
    ),
    BadChain(
        "labels too long with class weights",
        weighed,
        f"spec.task.labels: takes 90909 bytes as JSON, and 90909 with other large fields; {BUDGET}",
        (BUDGET,),
    ),
    BadChain(
        "unlabelled files too many",
        many_files,
        f"spec.task.transfer.files: takes 64768 bytes as JSON, and 64790 with other large fields; {BUDGET}",
        (BUDGET,),
    ),
    BadChain(
        "labels and names of layers too long together",
        adapters,
        f"spec.task.labels: takes 49000 bytes as JSON, and 64552 with other large fields; {BUDGET}",
        (BUDGET,),
    ),
    BadChain(
        "too many students compared",
        compared_everywhere,
        f"spec.evidence: takes 345600 bytes as JSON, and 345622 with other large fields; {BUDGET}",
        (BUDGET,),
    ),
    BadChain(
        "a label with a tab",
        lambda spec: spec["task"].update(labels=["good", "bad\tone"]),
        'spec.task.labels[1]: got "bad\\tone", expected text of 1 to 256 characters without tabs, line breaks and other '
        "control characters",
        ("spec.task.labels[1]",),
    ),
    BadChain(
        "a URI too long in bytes",
        lambda spec: spec["teacher"].update(model="s3://models/" + "é" * 600),
        f'spec.teacher.model: got "s3://models/{"é" * 67}..., expected 1024 bytes at most',
        ("spec.teacher.model", "expected 1024 bytes at most"),
    ),
    BadChain(
        "a long text in a config",
        new_weights(rope_scaling={"type": "x" * 2000}),
        f"{CONFIG}.rope_scaling.type: got 2000 characters, expected 1024 at most",
        (f"{CONFIG}.rope_scaling.type", "Too long"),
    ),
    BadChain(
        "a long list in a config",
        new_weights(short_factor=[1.0] * 600),
        f"{CONFIG}.short_factor: got 600 values, expected 512 at most",
        (f"{CONFIG}.short_factor", "Too many"),
    ),
    BadChain(
        "a config with too many fields",
        new_weights(**dict.fromkeys(names(200, 5), 1)),
        f"{CONFIG}: got {{{SHOWN}..., expected a mapping of 128 fields at most",
        (CONFIG, "Too many"),
    ),
    BadChain(
        "a config nested too deeply",
        new_weights(a=[[[[[1]]]]]),
        f"{CONFIG}.a[0][0][0]: expected 4 levels of lists and mappings at most",
        (f"{CONFIG}.a[0][0][0]", "Too many"),
    ),
)
