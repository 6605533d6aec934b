"""Faults in the metadata, the teacher, the storage and other fields of the spec."""

from __future__ import annotations

from bad_chains.base import BadChain, regress, unchanged

BAD_CHAINS = (
    BadChain(
        "minimum out of range",
        lambda spec: spec["teacher"]["gate"].update(minMetric=90),
        "spec.teacher.gate.minMetric: got 90, expected a share from 0 to 1; "
        "for five points write 0.05, for ninety percent 0.9",
        ("spec.teacher.gate", "teacher.gate.minMetric", "from 0 to 1"),
    ),
    BadChain(
        "gate of the teacher without a bound",
        lambda spec: spec["teacher"].update(gate={}),
        "spec.teacher.gate: expected minMetric, or maxMetric for a metric that is better when lower; add it",
        ("spec.teacher.gate", "expected minMetric"),
    ),
    BadChain(
        "patience of a fine-tuning that keeps its last epoch",
        lambda spec: spec["teacher"].update(fineTune={"patience": 1}),
        "spec.teacher.fineTune.patience: got 1, expected 0 with selection: Last; write selection: Best, or remove "
        "patience",
        ("spec.teacher.fineTune", "expected 0 with selection: Last"),
    ),
    BadChain(
        "export of a teacher that the chain does not train",
        lambda spec: spec["teacher"].update(export={"onnx": {}}),
        'spec.teacher.export: got {"onnx": {}}, expected none without fineTune; only a model that the chain trains is '
        "exported: add fineTune, or remove export",
        ("spec.teacher.export", "expected none without fineTune"),
    ),
    BadChain(
        "password in the endpoint",
        lambda spec: spec["storage"].update(endpointUrl="http://user:secret@s3:9000"),
        'spec.storage.endpointUrl: got "http://user:secret@s3:9000", expected http(s)://host[:port] without user or '
        "password; credentials belong into secretRef",
        ("spec.storage.endpointUrl",),
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
        "storage on the hub",
        lambda spec: spec["storage"].update(uri="hf://org/models"),
        'spec.storage.uri: got "hf://org/models", expected s3://bucket/prefix or file:///absolute/path; '
        "without spaces, '//', '/./' and '/../'",
        ("spec.storage.uri",),
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
        "metadata.labels.gpu: got true, expected text; in YAML, quote it: without quotation marks, YAML 1.1 and kubectl "
        "read y, yes and on as true",
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
        "a negative error",
        lambda spec: (regress(spec), spec["teacher"].update(gate={"maxMetric": -0.5})),
        "spec.teacher.gate.maxMetric: got -0.5, expected a number from 0; mse has no other values",
        ("spec.teacher.gate", "expected a number from 0"),
    ),
    BadChain(
        "one seed of each control",
        lambda spec: spec.update(evidence={"seeds": 1}),
        "spec.evidence.seeds: got 1, expected a whole number from 2 to 20",
        ("spec.evidence.seeds",),
    ),
    BadChain(
        "no control",
        lambda spec: spec.update(evidence={"controls": []}),
        "spec.evidence.controls: got [], expected a list of Direct and FromRoot",
        ("spec.evidence.controls",),
    ),
    BadChain(
        "a control twice",
        lambda spec: spec.update(evidence={"controls": ["Direct", "Direct"]}),
        'spec.evidence.controls[1]: got "Direct", expected every control once; remove one',
        ("spec.evidence.controls",),
    ),
    BadChain(
        "an unknown control",
        lambda spec: spec.update(evidence={"controls": ["Random"]}),
        "spec.evidence.controls[0]: got \"Random\", expected 'Direct' or 'FromRoot'",
        ("spec.evidence.controls",),
    ),
    BadChain(
        "a gain of nothing",
        lambda spec: spec.update(evidence={"smallestGain": 0}),
        "spec.evidence.smallestGain: got 0, expected a number from 0.000001 to 1000000; for half a point of accuracy "
        "write 0.005",
        ("spec.evidence.smallestGain", "0.000001"),
    ),
    BadChain(
        "a chain of one stage compared with itself",
        lambda spec: (spec["stages"].pop(0), spec.update(evidence={"controls": ["FromRoot"]})),
        'spec.evidence.controls: got ["FromRoot"], expected Direct among them; with one stage the chain is FromRoot '
        "itself; add Direct, or remove evidence",
        ("spec.evidence.controls", "the chain is FromRoot itself"),
    ),
    BadChain(
        "no Job at a time",
        lambda spec: spec.update(maxParallelJobs=0),
        "spec.maxParallelJobs: got 0, expected a whole number from 1 to 100",
        ("spec.maxParallelJobs",),
    ),
    BadChain(
        "a key of KMS for another kind of encryption",
        lambda spec: spec["storage"].update(encryption={"type": "AES256", "keyId": "alias/models"}),
        'spec.storage.encryption.keyId: got "alias/models", expected nothing unless type is aws:kms or '
        "aws:kms:dsse; remove it",
        ("spec.storage.encryption.keyId", "remove it"),
    ),
    BadChain(
        "a bucket key without KMS",
        lambda spec: spec["storage"].update(encryption={"type": "AES256", "bucketKey": True}),
        "spec.storage.encryption.bucketKey: got true, expected nothing unless type is aws:kms; remove it",
        ("spec.storage.encryption.bucketKey", "remove it"),
    ),
    BadChain(
        "encryption of a volume",
        lambda spec: spec["storage"].update(uri="file:///models", encryption={"type": "AES256"}),
        "spec.storage.encryption: expected nothing with file://, whose volume decides; remove it",
        ("spec.storage.encryption", "whose volume decides"),
    ),
)
