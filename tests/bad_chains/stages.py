"""Faults in spec.stages."""

from __future__ import annotations

from bad_chains.base import BadChain, regress

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
        "field that belongs elsewhere and resembles one here",
        lambda spec: spec.update(teachers=[{"stage": "mini"}]),
        "spec.teachers: unknown field; did you mean teacher? Otherwise it belongs to spec.stages[]",
        ('unknown field "spec.teachers"',),
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
        "maximum of a metric that is better when higher",
        lambda spec: spec["stages"][1].update(gate={"maxMetric": 0.9}),
        "spec.stages[1].gate.maxMetric: got 0.9, expected no maxMetric, because accuracy is better when higher; "
        "write minMetric",
        ("stages[].gate.maxMetric", "write minMetric"),
    ),
    BadChain(
        "parameters of another objective",
        lambda spec: spec["stages"][1].update(
            distillation={"objective": "ReverseKL", "parameters": {"nonTargetWeight": 2}}
        ),
        "spec.stages[1].distillation.parameters.nonTargetWeight: got 2.0, expected it only with objective Decoupled; "
        "state that objective here, or remove nonTargetWeight",
        ("spec.stages[1].distillation.parameters", "only with objective Decoupled"),
    ),
    BadChain(
        "temperature of an objective without one",
        lambda spec: spec["stages"][0].update(distillation={"objective": "LogitMSE", "temperature": 2}),
        "spec.stages[0].distillation.temperature: got 2.0, expected 1.0 with objective LogitMSE, which has no "
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
        "weights of classes in two ways",
        lambda spec: spec["stages"][0].update(training={"balancedClasses": True, "classWeights": {"positive": 2}}),
        "spec.stages[0].training.balancedClasses: got true, expected false with classWeights; "
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
        "the last epoch beside an inherited patience",
        lambda spec: (
            spec.update(template={"training": {"selection": "Best", "patience": 3}}),
            spec["stages"][1].update(training={"selection": "Last"}),
        ),
        'spec.stages[1].training.selection: got "Last", expected Best with the template\'s patience of 3; write '
        "patience: 0 to train all epochs",
        ("spec.stages", "expected 0 with selection: Last"),
    ),
    BadChain(
        "number as text",
        lambda spec: spec["stages"][0].update(training={"epochs": "5"}),
        'spec.stages[0].training.epochs: got the text "5", expected a whole number from 1 to 1000000; drop the quotes',
        ("spec.stages[0].training.epochs", "integer"),
    ),
    BadChain(
        "sharding with one process",
        lambda spec: spec["stages"][1].update(parallelism={"processesPerNode": 1, "sharding": "Full"}),
        'spec.stages[1].parallelism.sharding: got "Full", expected None with one process; '
        "sharding divides a model among several processes: set nodes or processesPerNode",
        ("spec.stages[1].parallelism.sharding", "set nodes or processesPerNode"),
    ),
    BadChain(
        "minimum of a metric that is better when lower",
        lambda spec: (regress(spec), spec["stages"][1].update(gate={"minMetric": 0.9})),
        "spec.stages[1].gate.minMetric: got 0.9, expected no minMetric, because mse is better when lower; "
        "write maxMetric",
        ("stages[].gate.minMetric", "write maxMetric"),
    ),
    BadChain(
        "objective of one stage that compares no numbers",
        lambda spec: (regress(spec), spec["stages"][1].update(distillation={"objective": "SoftTargets"})),
        'spec.stages[1].distillation.objective: got "SoftTargets", expected LogitMSE for task Regression; '
        "the outputs of this task do not fit the others",
        ("spec.stages", "task Regression expects LogitMSE"),
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
        "an adapter of new weights",
        lambda spec: spec["stages"][0].update(
            student={"architecture": {"modelType": "bert"}, "tokenizer": "hf://org/tiny", "lora": {}}
        ),
        "spec.stages[0].student.lora: expected none with architecture, whose new weights would stay untrained; remove it",
        ("spec.stages[0].student.lora", "expected none with architecture"),
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
        "spec.stages[0].student.tokenizer: missing, expected a checkpoint with a tokenizer with architecture; add it",
        ("spec.stages[0].student", "tokenizer"),
    ),
    BadChain(
        "pod of a stage without its spec",
        lambda spec: spec["stages"][0].update(pod={"metadata": {}, "hostNetwork": True}),
        "spec.stages[0].pod.hostNetwork: unknown field; did you mean pod.spec.hostNetwork?",
        ("spec.stages[0].pod", "hostNetwork"),
    ),
    BadChain(
        "fraction as a number",
        lambda spec: spec["stages"][0].update(resources={"requests": {"cpu": 0.5}}),
        'spec.stages[0].resources.requests.cpu: got 0.5, expected a quantity such as 1, 500m or 16Gi; write "0.5"',
        ("spec.stages[0].resources.requests.cpu",),
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
)
