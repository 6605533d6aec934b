"""Faults in spec.task."""

from __future__ import annotations

from bad_chains.base import BadChain, language_chain, regress, tagging
from distillchain_api.tasks import task_types

BAD_CHAINS = (
    BadChain(
        "field in snake case",
        lambda spec: spec["task"].update(max_length=64),
        "spec.task.max_length: unknown field; did you mean maxLength?",
        ('unknown field "spec.task.max_length"',),
    ),
    BadChain(
        "URI with two spellings",
        lambda spec: spec["task"]["dataset"].update(uri="file:///data/../data/sst2"),
        'spec.task.dataset.uri: got "file:///data/../data/sst2", expected hf://repo[@revision], s3://bucket/prefix or '
        "file:///absolute/path; without spaces, '//', '/./' and '/../'",
        ("spec.task.dataset.uri",),
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
        "spec.task.labels[0]: got false, expected text of 1 to 256 characters without tabs, line breaks and other control "
        "characters; in YAML, quote it: without quotation marks, YAML 1.1 and kubectl read n, no and off as false",
        ("spec.task.labels[0]", "boolean"),
    ),
    BadChain(
        "three text columns",
        lambda spec: spec["task"]["dataset"].update(text=["a", "b", "c"]),
        'spec.task.dataset.text: got ["a", "b", "c"], expected a list of one or two column names; write [sentence], for example',
        ("spec.task.dataset.text",),
    ),
    BadChain(
        "text column that is no list",
        lambda spec: spec["task"]["dataset"].update(text="sentence"),
        'spec.task.dataset.text: got "sentence", expected a list of one or two column names; write [sentence], for example',
        ("spec.task.dataset.text", "array"),
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
)
