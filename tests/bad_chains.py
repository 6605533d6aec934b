"""One table of bad chains for both boundaries: what our own validation says, and what `kubectl apply` says.

Each row changes a good chain in one place. `want` is our whole message; `server` are parts of the API server's message,
the field among them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distillchain_api.tasks import task_types

GOOD: dict[str, Any] = {
    "apiVersion": "distillchain.io/v1alpha1",
    "kind": "DistillationChain",
    "metadata": {"name": "good"},
    "spec": {
        "task": {
            "type": "TextClassification",
            "dataset": {
                "uri": "s3://data/sst2",
                "splits": {"train": "train.tsv", "validation": "dev.tsv"},
                "text": ["sentence"],
                "label": "label",
            },
            "labels": ["negative", "positive"],
        },
        "storage": {"uri": "s3://models/distill", "secretRef": {"name": "s3-credentials"}},
        "teacher": {"model": "hf://org/teacher@main", "gate": {"minMetric": 0.9}},
        "stages": [
            {"name": "mini", "student": {"model": "hf://org/mini"}},
            {"name": "tiny", "student": {"model": "hf://org/tiny"}, "gate": {"maxDrop": 0.05}},
        ],
    },
}

Change = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class BadChain:
    id: str
    change: Change
    want: str
    server: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        document = copy.deepcopy(GOOD)
        self.change(document["spec"])
        document["metadata"] |= self.metadata
        return document


def language_chain(spec: dict[str, Any], form: dict[str, Any], *, train: str) -> None:
    """Makes it a chain of language models, without gates: their metrics are better when lower."""
    splits = {"train": train, "validation": "dev.jsonl"}
    spec["task"] = {"type": "CausalLM", "dataset": {"uri": "s3://data/texts", "splits": splits, **form}}
    spec["teacher"].pop("gate")
    spec["stages"][1].pop("gate")


def unchanged(_: dict[str, Any]) -> None:
    """The fault is in the metadata."""


def tagging(*labels: str, **dataset: Any) -> Change:
    """A chain of TokenClassification with these labels and fields of the data set."""

    def change(spec: dict[str, Any]) -> None:
        source = {key: spec["task"]["dataset"][key] for key in ("uri", "splits")}
        labels_or_default = list(labels) or ["O", "B-person", "I-person"]
        spec["task"] = {"type": "TokenClassification", "dataset": {**source, **dataset}, "labels": labels_or_default}

    return change


def regress(spec: dict[str, Any]) -> None:
    """Makes the good chain one of a regression, judged by mse."""
    del spec["task"]["labels"]
    spec["task"].update(type="Regression", metric="mse")
    spec["teacher"]["gate"] = {"maxMetric": 0.5}
    spec["stages"][1]["gate"] = {"maxMetric": 0.6, "maxDrop": 2}


BAD_CHAINS = (
    BadChain(
        "unknown field",
        lambda spec: spec["stages"][0].update(trainnig={}),
        "spec.stages[0].trainnig: unknown field; did you mean training?",
        ('unknown field "spec.stages[0].trainnig"',),
    ),
    BadChain(
        "field that belongs elsewhere",  # the most alike, batchSize, would change the recipe
        lambda spec: spec["stages"][0].update(training={"microBatchSize": 8}),
        "spec.stages[0].training.microBatchSize: unknown field; it belongs to spec.template or spec.stages[]",
        ('unknown field "spec.stages[0].training.microBatchSize"',),
    ),
    BadChain(
        "field in snake case",
        lambda spec: spec["task"].update(max_length=64),
        "spec.task.max_length: unknown field; did you mean maxLength?",
        ('unknown field "spec.task.max_length"',),
    ),
    BadChain(
        "duplicate stage name",
        lambda spec: spec["stages"][1].update(name="mini"),
        'spec.stages[1].name: got "mini", expected a name no other stage has; rename one',
        ("spec.stages[1]", "Duplicate value"),
    ),
    BadChain(
        "malformed stage name",
        lambda spec: spec["stages"][1].update(name="Tiny_1"),
        "spec.stages[1].name: got \"Tiny_1\", expected a DNS label: lowercase letters, digits and '-', "
        "starting with a letter, 32 at most; for example tiny-2",
        ("spec.stages[1].name", "Tiny_1"),
    ),
    BadChain(
        "stage named teacher",
        lambda spec: spec["stages"][1].update(name="teacher"),
        'spec.stages[1].name: got "teacher", expected another name; `teacher` is the stage that teacher.fineTune adds',
        ("spec.stages[1].name", "teacher.fineTune"),
    ),
    BadChain(
        "no stage",
        lambda spec: spec.update(stages=[]),
        "spec.stages: got [], expected a list of 1 to 32 stages",
        ("spec.stages",),
    ),
    BadChain(
        "share out of range",
        lambda spec: spec["stages"][1]["gate"].update(maxDrop=5),
        "spec.stages[1].gate.maxDrop: got 5, expected a share from 0 to 1; "
        "for five points write 0.05, for ninety percent 0.9",
        ("stages[].gate.maxDrop", "from 0 to 1"),
    ),
    BadChain(
        "minimum out of range",
        lambda spec: spec["teacher"]["gate"].update(minMetric=90),
        "spec.teacher.gate.minMetric: got 90, expected a share from 0 to 1; "
        "for five points write 0.05, for ninety percent 0.9",
        ("spec.teacher.gate", "teacher.gate.minMetric", "from 0 to 1"),
    ),
    BadChain(
        "maximum of a metric that is better when higher",
        lambda spec: spec["stages"][1].update(gate={"maxMetric": 0.9}),
        "spec.stages[1].gate.maxMetric: got 0.9, expected no maxMetric, because accuracy is better when higher; "
        "write minMetric",
        ("stages[].gate.maxMetric", "write minMetric"),
    ),
    BadChain(
        "gate of the teacher without a bound",
        lambda spec: spec["teacher"].update(gate={}),
        "spec.teacher.gate: expected minMetric, or maxMetric for a metric that is better when lower; add it",
        ("spec.teacher.gate", "expected minMetric"),
    ),
    BadChain(
        "learning rate of zero",
        lambda spec: spec.update(template={"training": {"learningRate": 0}}),
        "spec.template.training.learningRate: got 0, expected a learning rate above 0 and at most 1; "
        "for example 1.0e-4",
        ("spec.template.training.learningRate", "greater than 0"),
    ),
    BadChain(
        "temperature of zero",
        lambda spec: spec.update(template={"distillation": {"temperature": 0}}),
        "spec.template.distillation.temperature: got 0, expected a temperature above 0 and at most 100; 1.0 is neutral",
        ("spec.template.distillation.temperature",),
    ),
    BadChain(
        "parameter of an objective that is not stated",
        lambda spec: spec.update(template={"distillation": {"parameters": {"beta": 0.3}}}),
        "spec.template.distillation.parameters.beta: got 0.3, expected it only beside objective JensenShannon; "
        "state that objective here, or remove beta",
        ("spec.template.distillation.parameters", "beta only beside objective JensenShannon"),
    ),
    BadChain(
        "parameters of another objective",
        lambda spec: spec["stages"][1].update(
            distillation={"objective": "ReverseKL", "parameters": {"nonTargetWeight": 2}}
        ),
        "spec.stages[1].distillation.parameters.nonTargetWeight: got 2.0, expected it only beside objective Decoupled; "
        "state that objective here, or remove nonTargetWeight",
        ("spec.stages[1].distillation.parameters", "only beside objective Decoupled"),
    ),
    BadChain(
        "parameter out of range",
        lambda spec: spec.update(template={"distillation": {"objective": "JensenShannon", "parameters": {"beta": 1}}}),
        "spec.template.distillation.parameters.beta: got 1, expected a number above 0 and below 1",
        ("spec.template.distillation.parameters.beta", "less than 1"),
    ),
    BadChain(
        "temperature of an objective without one",
        lambda spec: spec["stages"][0].update(distillation={"objective": "LogitMSE", "temperature": 2}),
        "spec.stages[0].distillation.temperature: got 2.0, expected 1.0 beside objective LogitMSE, which has no "
        "temperature; remove it",
        ("spec.stages[0].distillation.temperature", "which has no temperature"),
    ),
    BadChain(
        "field of another loss on hidden states",
        lambda spec: spec["stages"][0].update(
            distillation={"hidden": {"objective": "HiddenMSE", "relations": ["Value"]}}
        ),
        "spec.stages[0].distillation.hidden.relations: unknown field; it belongs to objective ValueRelation; remove it",
        ("spec.stages[0].distillation.hidden.relations", "relations belongs to objective ValueRelation"),
    ),
    BadChain(
        "a relation twice",
        lambda spec: spec["stages"][0].update(
            distillation={"hidden": {"objective": "ValueRelation", "relations": ["Value", "Value"]}}
        ),
        'spec.stages[0].distillation.hidden.relations: got ["Value", "Value"], expected every relation once',
        ("spec.stages[0].distillation.hidden.relations", "Duplicate value"),
    ),
    BadChain(
        "layer below the embeddings",
        lambda spec: spec.update(
            template={"distillation": {"hidden": {"objective": "HiddenMSE", "layers": [{"student": -1, "teacher": 2}]}}}
        ),
        "spec.template.distillation.hidden.layers[0].student: got -1, expected the number of a layer; "
        "0 is the embeddings, 1 the first",
        ("spec.template.distillation.hidden.layers[0].student",),
    ),
    BadChain(
        "label smoothing of one",
        lambda spec: spec.update(template={"training": {"labelSmoothing": 1}}),
        "spec.template.training.labelSmoothing: got 1, expected a share from 0 and below 1; 0.1 is common; "
        "0 leaves the labels as they are",
        ("spec.template.training.labelSmoothing", "less than 1"),
    ),
    BadChain(
        "weights of classes in two ways",
        lambda spec: spec["stages"][0].update(training={"balancedClasses": True, "classWeights": {"positive": 2}}),
        "spec.stages[0].training.balancedClasses: got true, expected false beside classWeights; "
        "write balancedClasses: false or classWeights: {} to turn one off",
        ("spec.stages[0].training.balancedClasses", "either classWeights or balancedClasses"),
    ),
    BadChain(
        "a teacher with two sources",
        lambda spec: spec["stages"][1].update(teachers=[{"stage": "mini"}, {"stage": "teacher", "model": "hf://a/b"}]),
        "spec.stages[1].teachers[1]: got both, expected one of stage and model",
        ("spec.stages[1].teachers[1]", "expected one of stage and model"),
    ),
    BadChain(
        "a teacher without weight",
        lambda spec: spec["stages"][1].update(teachers=[{"stage": "mini"}, {"stage": "teacher", "weight": 0}]),
        "spec.stages[1].teachers[1].weight: got 0, expected a number from 0.001 to 1000; 1.0 is the default",
        ("spec.stages[1].teachers[1].weight",),
    ),
    BadChain(
        "patience where no epoch is chosen",
        lambda spec: spec.update(template={"training": {"patience": 3}}),
        "spec.template.training.patience: got 3, expected 0 beside selection: Last; write selection: Best, or remove "
        "patience",
        ("spec.template.training.patience", "expected 0 beside selection: Last"),
    ),
    BadChain(
        "the last epoch beside an inherited patience",
        lambda spec: (
            spec.update(template={"training": {"selection": "Best", "patience": 3}}),
            spec["stages"][1].update(training={"selection": "Last"}),
        ),
        'spec.stages[1].training.selection: got "Last", expected Best beside the template\'s patience of 3; write '
        "patience: 0 to train all epochs",
        ("spec.stages", "expected 0 beside selection: Last"),
    ),
    BadChain(
        "patience of a fine-tuning that keeps its last epoch",
        lambda spec: spec["teacher"].update(fineTune={"patience": 1}),
        "spec.teacher.fineTune.patience: got 1, expected 0 beside selection: Last; write selection: Best, or remove "
        "patience",
        ("spec.teacher.fineTune", "expected 0 beside selection: Last"),
    ),
    BadChain(
        "number as text",
        lambda spec: spec["stages"][0].update(training={"epochs": "5"}),
        'spec.stages[0].training.epochs: got the text "5", expected a whole number from 1 to 1000000; drop the quotes',
        ("spec.stages[0].training.epochs", "integer"),
    ),
    BadChain(
        "password in the endpoint",
        lambda spec: spec["storage"].update(endpointUrl="http://user:secret@s3:9000"),
        'spec.storage.endpointUrl: got "http://user:secret@s3:9000", expected http(s)://host[:port] without user or '
        "password; credentials belong into secretRef",
        ("spec.storage.endpointUrl",),
    ),
    BadChain(
        "unreadable duration",
        lambda spec: spec.update(template={"timeout": "6 hours"}),
        'spec.template.timeout: got "6 hours", expected a duration such as 6h, 1h30m or 90s; '
        "write whole hours, minutes and seconds in that order",
        ("spec.template.timeout", "6 hours"),
    ),
    BadChain(
        "duration of zero",
        lambda spec: spec.update(template={"saveInterval": "0s"}),
        'spec.template.saveInterval: got "0s", expected a duration above zero',
        ("spec.template.saveInterval", "above zero"),
    ),
    BadChain(
        "no node",
        lambda spec: spec.update(template={"parallelism": {"nodes": 0}}),
        "spec.template.parallelism.nodes: got 0, expected a whole number from 1 to 256; 1 is a single pod",
        ("spec.template.parallelism.nodes",),
    ),
    BadChain(
        "number of processes in words",
        lambda spec: spec.update(template={"parallelism": {"processesPerNode": "two"}}),
        'spec.template.parallelism.processesPerNode: got "two", expected a whole number from 1 to 256; leave it out for '
        "one process for each GPU of the container",
        ("spec.template.parallelism.processesPerNode", "integer"),
    ),
    BadChain(
        "a word in another case",
        lambda spec: spec.update(template={"parallelism": {"sharding": "full"}}),
        "spec.template.parallelism.sharding: got \"full\", expected 'None' or 'Full'; write Full",
        ("spec.template.parallelism.sharding", "Full"),
    ),
    BadChain(
        "part of a GPU",
        lambda spec: spec.update(template={"resources": {"limits": {"nvidia.com/gpu": 0.5}}}),
        "spec.template.resources.limits.nvidia.com/gpu: got 0.5, expected a whole number of nvidia.com/gpu; to share one, "
        "use MIG (a resource such as nvidia.com/mig-1g.10gb) or time-slicing, where 1 is a share",
        ("spec.template.resources.limits.nvidia.com/gpu",),
    ),
    BadChain(
        "cache without a volume",
        lambda spec: spec.update(template={"cache": {"maxSize": "100Gi"}}),
        "spec.template.cache.volume: missing, expected a mapping with one source of a volume, such as "
        "persistentVolumeClaim, hostPath or emptyDir; add it",
        ("spec.template.cache.volume", "Required value"),
    ),
    BadChain(
        "cache on two volumes",
        lambda spec: spec.update(template={"cache": {"volume": {"emptyDir": {}, "hostPath": {"path": "/mnt"}}}}),
        "spec.template.cache.volume: got emptyDir, hostPath, expected one source of a volume, such as "
        "persistentVolumeClaim, hostPath or emptyDir",
        ("spec.template.cache.volume",),
    ),
    BadChain(
        "size of a cache in words",
        lambda spec: spec.update(template={"cache": {"volume": {"emptyDir": {}}, "maxSize": "large"}}),
        'spec.template.cache.maxSize: got "large", expected a quantity such as 1, 500m or 16Gi',
        ("spec.template.cache.maxSize",),
    ),
    BadChain(
        "sharding with one process",
        lambda spec: spec["stages"][1].update(parallelism={"processesPerNode": 1, "sharding": "Full"}),
        'spec.stages[1].parallelism.sharding: got "Full", expected None with one process; '
        "sharding divides a model among several processes: set nodes or processesPerNode",
        ("spec.stages[1].parallelism.sharding", "set nodes or processesPerNode"),
    ),
    BadChain(
        "quoted number",
        lambda spec: spec.update(template={"training": {"learningRate": "5e-3"}}),
        'spec.template.training.learningRate: got the text "5e-3", expected a learning rate above 0 and at most 1; '
        "drop the quotes",
        ("spec.template.training.learningRate",),
    ),
    BadChain(
        "quoted boolean",
        lambda spec: spec.update(suspend="true"),
        'spec.suspend: got the text "true", expected true or false; drop the quotes',
        ("spec.suspend",),
    ),
    BadChain(
        "teacher that is no URI",
        lambda spec: spec["teacher"].update(model="bert-large"),
        'spec.teacher.model: got "bert-large", expected hf://repo[@revision], s3://bucket/prefix or '
        "file:///absolute/path; without spaces, '//', '/./' and '/../'",
        ("spec.teacher.model", "bert-large"),
    ),
    BadChain(
        "URI with two spellings",
        lambda spec: spec["task"]["dataset"].update(uri="file:///data/../data/sst2"),
        'spec.task.dataset.uri: got "file:///data/../data/sst2", expected hf://repo[@revision], s3://bucket/prefix or '
        "file:///absolute/path; without spaces, '//', '/./' and '/../'",
        ("spec.task.dataset.uri",),
    ),
    BadChain(
        "storage on the hub",
        lambda spec: spec["storage"].update(uri="hf://org/models"),
        'spec.storage.uri: got "hf://org/models", expected s3://bucket/prefix or file:///absolute/path; '
        "without spaces, '//', '/./' and '/../'",
        ("spec.storage.uri",),
    ),
    BadChain(
        "one label",
        lambda spec: spec["task"].update(labels=["positive"]),
        'spec.task.labels: got ["positive"], expected the names of at least two classes, in class order; '
        "for example [negative, positive]",
        ("spec.task.labels",),
    ),
    BadChain(
        "a label twice",
        lambda spec: spec["task"].update(labels=["positive", "positive"]),
        'spec.task.labels: got ["positive", "positive"], expected every class name once',
        ("spec.task.labels", "Duplicate value"),
    ),
    BadChain(
        "label that YAML reads as a truth value",
        lambda spec: spec["task"].update(labels=[False, "yes please"]),
        "spec.task.labels[0]: got false, expected text of 1 to 256 characters; in YAML, quote it",
        ("spec.task.labels[0]", "boolean"),
    ),
    BadChain(
        "three text columns",
        lambda spec: spec["task"]["dataset"].update(text=["a", "b", "c"]),
        'spec.task.dataset.text: got ["a", "b", "c"], expected one or two column names',
        ("spec.task.dataset.text",),
    ),
    BadChain(
        "label among the text columns",
        lambda spec: spec["task"]["dataset"].update(label="sentence"),
        'spec.task.dataset.label: got "sentence", expected a column that is not also in text',
        ("spec.task.dataset.label", "not in text"),
    ),
    BadChain(
        "config of a file",
        lambda spec: spec["task"]["dataset"].update(config="sst2"),
        'spec.task.dataset.config: got "sst2", expected nothing with files; remove it, or use an hf:// dataset',
        ("spec.task.dataset.config", "hf://"),
    ),
    BadChain(
        "unknown task",
        lambda spec: spec["task"].update(type="Translation"),
        f'spec.task.type: got "Translation", expected {" or ".join(map(repr, task_types()))}',
        ("spec.task.type", "TextClassification"),
    ),
    BadChain(
        "unknown metric",
        lambda spec: spec["task"].update(metric="f1"),
        "spec.task.metric: got \"f1\", expected 'accuracy' or 'macroF1'",
        ("spec.task.metric", "macroF1"),
    ),
    BadChain(
        "configuration of unlabelled files",
        lambda spec: spec["task"].update(transfer={"uri": "s3://data/imdb", "config": "plain", "files": ["a.txt"]}),
        'spec.task.transfer.config: got "plain", expected nothing with files; remove it, or use an hf:// dataset',
        ("spec.task.transfer.config", "hf://"),
    ),
    BadChain(
        "pairs of unlabelled text for single texts",
        lambda spec: spec["task"].update(
            transfer={"uri": "s3://data/imdb", "files": ["a.tsv"], "text": ["one", "other"]}
        ),
        'spec.task.transfer.text: got ["one", "other"], expected 1 as in dataset.text',
        ("spec.task.transfer.text", "as many columns as in dataset.text"),
    ),
    BadChain(
        "metric of another task",
        lambda spec: spec["task"].update(metric="pearson"),
        "spec.task.metric: got \"pearson\", expected 'accuracy' or 'macroF1'",
        ("spec.task", "metric"),
    ),
    BadChain(
        "minimum of a metric that is better when lower",
        lambda spec: (regress(spec), spec["stages"][1].update(gate={"minMetric": 0.9})),
        "spec.stages[1].gate.minMetric: got 0.9, expected no minMetric, because mse is better when lower; "
        "write maxMetric",
        ("stages[].gate.minMetric", "write maxMetric"),
    ),
    BadChain(
        "objective that compares no numbers",
        lambda spec: (regress(spec), spec.update(template={"distillation": {"objective": "ReverseKL"}})),
        'spec.template.distillation.objective: got "ReverseKL", expected LogitMSE for task Regression; '
        "the outputs of this task do not fit the others",
        ("spec.template.distillation.objective", "LogitMSE"),
    ),
    BadChain(
        "label smoothing of numbers",
        lambda spec: (regress(spec), spec.update(template={"training": {"labelSmoothing": 0.1}})),
        "spec.template.training.labelSmoothing: got 0.1, expected nothing for task Regression, whose loss on the labels "
        "has no classes that exclude each other; remove it",
        ("spec.template.training", "labelSmoothing, classWeights and balancedClasses do not apply to task"),
    ),
    BadChain(
        "objective of one stage that compares no numbers",
        lambda spec: (regress(spec), spec["stages"][1].update(distillation={"objective": "SoftTargets"})),
        'spec.stages[1].distillation.objective: got "SoftTargets", expected LogitMSE for task Regression; '
        "the outputs of this task do not fit the others",
        ("spec.stages", "task Regression expects LogitMSE"),
    ),
    BadChain(
        "labels of a regression",
        lambda spec: (regress(spec), spec["task"].update(labels=["low", "high"])),
        "spec.task.labels: unknown field; it belongs to type MultiLabelClassification or TextClassification or "
        "TokenClassification; remove it",
        ("spec.task.labels", "remove it"),
    ),
    BadChain(
        "separator of a task without lists",
        lambda spec: spec["task"]["dataset"].update(separator=";"),
        "spec.task.dataset.separator: unknown field; expected one of config, label, splits, text, uri",
        ("dataset.separator", "remove it"),
    ),
    BadChain(
        "student from nowhere",
        lambda spec: spec["stages"][0].update(student={}),
        "spec.stages[0].student: got none, expected one of model, fromTeacher and architecture; "
        "a pretrained model is the better start",
        ("spec.stages[0].student", "one of model, fromTeacher and architecture"),
    ),
    BadChain(
        "two starts of a student",
        lambda spec: spec["stages"][0]["student"].update(fromTeacher={"layers": 2}),
        "spec.stages[0].student: got model and fromTeacher, expected one of model, fromTeacher and architecture; "
        "a pretrained model is the better start",
        ("spec.stages[0].student", "one of model, fromTeacher and architecture"),
    ),
    BadChain(
        "layers of the teacher in no order",
        lambda spec: spec["stages"][0].update(student={"fromTeacher": {"indices": [3, 1]}}),
        "spec.stages[0].student.fromTeacher.indices: got [3, 1], expected every layer once, in rising order",
        ("spec.stages[0].student.fromTeacher.indices", "rising order"),
    ),
    BadChain(
        "chats in a csv file",
        lambda spec: language_chain(spec, {"messages": "messages"}, train="train.csv"),
        'spec.task.dataset.splits.train: got "train.csv", which has only text; keep chats in jsonl or parquet, not as text',
        ("spec.task.dataset.splits", "keep chats in jsonl or parquet, not as text"),
    ),
    BadChain(
        "texts in a txt file",
        lambda spec: language_chain(spec, {"text": ["text"]}, train="train.txt"),
        'spec.task.dataset.splits.train: got "train.txt", unknown kind of file; expected csv, tsv or jsonl (also as .gz), '
        "or parquet",
        ("spec.task.dataset.splits", "unknown kind of file"),
    ),
    BadChain(
        "an adapter of new weights",
        lambda spec: spec["stages"][0].update(
            student={"architecture": {"modelType": "bert"}, "tokenizer": "hf://org/tiny", "lora": {}}
        ),
        "spec.stages[0].student.lora: expected none beside architecture, whose new weights would stay untrained; remove it",
        ("spec.stages[0].student.lora", "expected none beside architecture"),
    ),
    BadChain(
        "an adapter without a rank",
        lambda spec: spec["stages"][0]["student"].update(lora={"rank": 0}),
        "spec.stages[0].student.lora.rank: got 0, expected a whole number from 1 to 1024",
        ("spec.stages[0].student.lora.rank", "greater than or equal to 1"),
    ),
    BadChain(
        "an adapter with a name twice",
        lambda spec: spec["stages"][0]["student"].update(lora={"targetModules": ["query", "query"]}),
        'spec.stages[0].student.lora.targetModules: got ["query", "query"], expected every name once',
        ("spec.stages[0].student.lora.targetModules[1]", "Duplicate value"),
    ),
    BadChain(
        "new weights without a tokenizer",
        lambda spec: spec["stages"][0].update(student={"architecture": {"modelType": "bert-hash"}}),
        "spec.stages[0].student.tokenizer: missing, expected a checkpoint with a tokenizer beside architecture; add it",
        ("spec.stages[0].student", "tokenizer"),
    ),
    BadChain(
        "pod without its spec",
        lambda spec: spec.update(template={"pod": {"nodeSelector": {"gpu": "a100"}}}),
        "spec.template.pod.nodeSelector: unknown field; did you mean pod.spec.nodeSelector?",
        ("spec.template.pod", "did you mean pod.spec.nodeSelector?"),
    ),
    BadChain(
        "a whole Pod as template",
        lambda spec: spec.update(template={"pod": {"kind": "Pod", "spec": {}}}),
        "spec.template.pod.kind: unknown field; a pod template has only metadata and spec; remove it",
        ("spec.template.pod.kind",),
    ),
    BadChain(
        "pod of a stage without its spec",
        lambda spec: spec["stages"][0].update(pod={"metadata": {}, "hostNetwork": True}),
        "spec.stages[0].pod.hostNetwork: unknown field; did you mean pod.spec.hostNetwork?",
        ("spec.stages[0].pod", "hostNetwork"),
    ),
    BadChain(
        "quantity in words",
        lambda spec: spec.update(template={"resources": {"limits": {"nvidia.com/gpu": "two"}}}),
        'spec.template.resources.limits.nvidia.com/gpu: got "two", expected a quantity such as 1, 500m or 16Gi',
        ("spec.template.resources.limits.nvidia.com/gpu", "two"),
    ),
    BadChain(
        "fraction as a number",
        lambda spec: spec["stages"][0].update(resources={"requests": {"cpu": 0.5}}),
        'spec.stages[0].resources.requests.cpu: got 0.5, expected a quantity such as 1, 500m or 16Gi; write "0.5"',
        ("spec.stages[0].resources.requests.cpu",),
    ),
    BadChain(
        "unknown key of resources",
        lambda spec: spec.update(template={"resources": {"limit": {"cpu": 1}}}),
        "spec.template.resources.limit: unknown field; did you mean limits?",
        ('unknown field "spec.template.resources.limit"',),
    ),
    BadChain(
        "namespace that is no DNS label",
        unchanged,
        'metadata.namespace: got "Foo_Bar", expected the name of a namespace: 1 to 63 lowercase letters, digits and '
        "'-', with a letter or digit at both ends",
        ("Foo_Bar",),
        metadata={"namespace": "Foo_Bar"},
    ),
    BadChain(
        "name with an empty part",
        unchanged,
        "metadata.name: got \"a..b\", expected a name of 1 to 63 lowercase letters, digits, '-' and '.', each part "
        "between letters or digits",
        ("metadata.name", "a..b"),
        metadata={"name": "a..b"},
    ),
    BadChain(
        "misspelt metadata",
        unchanged,
        "metadata.lables: unknown field; did you mean labels?",
        ('unknown field "metadata.lables"',),
        metadata={"lables": {"team": "nlp"}},
    ),
    BadChain(
        "label in the metadata that YAML reads as a truth value",
        unchanged,
        "metadata.labels.gpu: got true, expected text; quote it",
        ("labels",),
        metadata={"labels": {"gpu": True}},
    ),
    BadChain(
        "label with a space",
        unchanged,
        "metadata.labels.team: got \"a b\", expected at most 63 letters, digits, '-', '_' and '.', with a letter or "
        "digit at both ends; free text belongs in an annotation",
        ("metadata.labels", "a b"),
        metadata={"labels": {"team": "a b"}},
    ),
    BadChain(
        "label with a bad key",
        unchanged,
        "metadata.labels.our team: not a valid key; expected a name of at most 63 letters, digits, '-', '_' and '.', "
        "optionally after a domain and a slash, such as example.com/team",
        ("metadata.labels", "our team"),
        metadata={"labels": {"our team": "nlp"}},
    ),
    BadChain(
        "annotation with a bad key",
        unchanged,
        "metadata.annotations.a/b/c: not a valid key; expected a name of at most 63 letters, digits, '-', '_' and '.', "
        "optionally after a domain and a slash, such as example.com/team",
        ("metadata.annotations", "a/b/c"),
        metadata={"annotations": {"a/b/c": "d"}},
    ),
    BadChain(
        "no teacher",
        lambda spec: spec.pop("teacher"),
        "spec.teacher: missing; add it",
        ("spec.teacher", "Required value"),
    ),
    BadChain(
        "tags without O",
        tagging("B-person", "I-person"),
        'spec.task.labels: got ["B-person", "I-person"], expected the tag O among them; it is the tag of words outside of '
        "entities",
        ("spec.task.labels", "expected the tag O"),
    ),
    BadChain(
        "tags of BIOES",
        tagging("O", "B-person", "I-person", "E-person", "S-person"),
        'spec.task.labels: got "E-person", expected a tag of IOB2; BIOES and BILOU mark ends and single words too: write '
        "E- and L- as I-, and S- and U- as B-, in labels and data",
        ("spec.task.labels", "IOB2"),
    ),
    BadChain(
        "a tag that is no tag",
        tagging("O", "B-person", "person"),
        'spec.task.labels: got "person", expected O, B-X or I-X for a kind X of entity; for example B-person',
        ("spec.task.labels", "IOB2"),
    ),
    BadChain(
        "words and tags in one column",
        tagging(words="tokens", tags="tokens"),
        'spec.task.dataset.tags: got "tokens", expected another column than words',
        ("spec.task.dataset.tags", "expected another column than words"),
    ),
    BadChain(
        "label of a tagger",
        tagging(label="tag"),
        "spec.task.dataset.label: unknown field; expected one of config, splits, tags, uri, words",
        ("spec.task.dataset.label", "remove it"),
    ),
    BadChain(
        "metric of another task",
        lambda spec: spec["task"].update(metric="entityF1"),
        "spec.task.metric: got \"entityF1\", expected 'accuracy' or 'macroF1'",
        ("spec.task.metric", "expects accuracy or macroF1"),
    ),
    BadChain(
        "credentials in the address of a tracker",
        lambda spec: spec.update(template={"tracking": {"mlflow": {"trackingUri": "https://bob:secret@mlflow"}}}),
        'spec.template.tracking.mlflow.trackingUri: got "https://bob:secret@mlflow", expected http(s)://host[:port] without '
        "user or password, or file:///absolute/path; credentials belong into the environment of the pod",
        ("spec.template.tracking.mlflow.trackingUri",),
    ),
    BadChain(
        "a tracker without a project",
        lambda spec: spec.update(template={"tracking": {"wandb": {"entity": "team"}}}),
        "spec.template.tracking.wandb.project: missing, expected text of 1 to 256 characters; add it",
        ("spec.template.tracking.wandb.project",),
    ),
    BadChain(
        "a correlation beyond its range",
        lambda spec: (
            regress(spec),
            spec["task"].update(metric="pearson"),
            spec["teacher"].update(gate={"minMetric": 90}),
            spec["stages"][1].update(gate={}),
        ),
        "spec.teacher.gate.minMetric: got 90, expected a number from -1 to 1; pearson has no other values",
        ("spec.teacher.gate", "expected a number from -1 to 1"),
    ),
    BadChain(
        "a drop of a correlation beyond its range",
        lambda spec: (
            regress(spec),
            spec["task"].update(metric="spearman"),
            spec["teacher"].update(gate={"minMetric": -1}),
            spec["stages"][1].update(gate={"maxDrop": 2.5}),
        ),
        "spec.stages[1].gate.maxDrop: got 2.5, expected a number from 0 to 2; spearman has no other values",
        ("stages[].gate.maxDrop: expected a number from 0 to 2",),
    ),
    BadChain(
        "a negative error",
        lambda spec: (regress(spec), spec["teacher"].update(gate={"maxMetric": -0.5})),
        "spec.teacher.gate.maxMetric: got -0.5, expected a number from 0; mse has no other values",
        ("spec.teacher.gate", "expected a number from 0"),
    ),
)
