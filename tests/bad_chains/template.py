"""Faults in spec.template."""

from __future__ import annotations

from bad_chains.base import BadChain, regress

BAD_CHAINS = (
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
        "spec.template.distillation.parameters.beta: got 0.3, expected it only with objective JensenShannon; "
        "state that objective here, or remove beta",
        ("spec.template.distillation.parameters", "beta only with objective JensenShannon"),
    ),
    BadChain(
        "parameter out of range",
        lambda spec: spec.update(template={"distillation": {"objective": "JensenShannon", "parameters": {"beta": 1}}}),
        "spec.template.distillation.parameters.beta: got 1, expected a number above 0 and below 1",
        ("spec.template.distillation.parameters.beta", "less than 1"),
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
        "patience where no epoch is chosen",
        lambda spec: spec.update(template={"training": {"patience": 3}}),
        "spec.template.training.patience: got 3, expected 0 with selection: Last; write selection: Best, or remove "
        "patience",
        ("spec.template.training.patience", "expected 0 with selection: Last"),
    ),
    BadChain(
        "unreadable duration",
        lambda spec: spec.update(template={"timeout": "6 hours"}),
        'spec.template.timeout: got "6 hours", expected a duration such as 6h, 1h30m or 90s; '
        "write whole hours, minutes and seconds in that order, "
        "each with its unit",
        ("spec.template.timeout", "6 hours"),
    ),
    BadChain(
        "duration of zero",
        lambda spec: spec.update(template={"saveInterval": "0s"}),
        'spec.template.saveInterval: got "0s", expected a duration above zero',
        ("spec.template.saveInterval", "above zero"),
    ),
    BadChain(
        "a Job that is kept for seconds",
        lambda spec: spec.update(template={"ttlAfterFinished": "10s"}),
        'spec.template.ttlAfterFinished: got "10s", expected at least a minute; write 1m or more, so that the log of a '
        "Job can still be read",
        ("spec.template.ttlAfterFinished", "expected at least a minute; write 1m or more"),
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
        "quoted number",
        lambda spec: spec.update(template={"training": {"learningRate": "5e-3"}}),
        'spec.template.training.learningRate: got the text "5e-3", expected a learning rate above 0 and at most 1; '
        "drop the quotes",
        ("spec.template.training.learningRate",),
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
        "label of the operator on its Jobs",
        lambda spec: spec.update(template={"job": {"labels": {"distillchain.io/chain": "x"}}}),
        'spec.template.job.labels.distillchain.io/chain: got "x", expected another key; the operator and the Job '
        "controller find Jobs by it; use a domain of your own, such as example.com/",
        ("spec.template.job.labels", "expected keys of your own"),
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
        "quantity in words",
        lambda spec: spec.update(template={"resources": {"limits": {"nvidia.com/gpu": "two"}}}),
        'spec.template.resources.limits.nvidia.com/gpu: got "two", expected a quantity such as 1, 500m or 16Gi',
        ("spec.template.resources.limits.nvidia.com/gpu", "two"),
    ),
    BadChain(
        "unknown key of resources",
        lambda spec: spec.update(template={"resources": {"limit": {"cpu": 1}}}),
        "spec.template.resources.limit: unknown field; did you mean limits?",
        ('unknown field "spec.template.resources.limit"',),
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
)
