"""The defaults of every stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distillchain_api.base import Document
from distillchain_api.faults import Expect
from distillchain_api.resource.cache import Cache
from distillchain_api.resource.distillation import TemplateDistillation
from distillchain_api.resource.export import Export
from distillchain_api.resource.job import JobTemplate, QueueName
from distillchain_api.resource.parallelism import Parallelism
from distillchain_api.resource.pod import PodTemplate
from distillchain_api.resource.resources import Resources
from distillchain_api.resource.tracking import Tracking
from distillchain_api.resource.training import PositiveInt, Training
from distillchain_api.values import Duration, LongDuration, Text

Retries = Annotated[int, Field(ge=0, le=100), Expect("a whole number from 0 to 100")]


class Template(Document):
    """Defaults of every stage. Only training and distillation decide the result; the other fields say where it runs."""

    image: Text | None = None
    """Trainer image; empty: the operator's default."""
    resources: Resources | None = None
    """Resources of the container `trainer`, as in a Pod."""
    pod: PodTemplate | None = None
    """Your PodTemplateSpec (`metadata` and `spec`), merged over the operator's; the container `trainer` is written into
    it."""
    job: JobTemplate = JobTemplate()
    queue_name: QueueName | None = None
    """LocalQueue of Kueue in the chain's namespace. The Jobs are created suspended, and Kueue starts them when the
    queue has quota; empty: they start at once."""
    training: Training = Training()
    micro_batch_size: PositiveInt | None = None
    """Rows of one forward pass on one device; empty: batchSize. Not in the digest, because it changes only dropout
    masks."""
    parallelism: Parallelism = Parallelism()
    cache: Cache | None = None
    distillation: TemplateDistillation = TemplateDistillation()
    retries: Retries = 3
    """Crashes of one stage before the chain fails; evictions and interruptions do not count."""
    timeout: Duration | None = None
    """Maximum run time of a stage over all its pods, without the time that they wait to start; empty: no limit."""
    progress_deadline: Duration | None = None
    """Maximum time between two steps of a training, or two batches of rows that a model answers. Then the Job is
    deleted and created again after a pause, which uses one of `retries`; empty: no limit."""
    pending_deadline: Duration | None = None
    """Maximum time that a pod of a stage may wait to start. Then the Job is deleted, so that the other pods hold no
    GPU, and created again after a pause; empty: no limit."""
    ttl_after_finished: LongDuration | None = None
    """How long a Job that has ended is kept with its pods and their logs; at least a minute. The operator applies it
    once status has the result or failure, so no stage runs again because a Job is gone. Empty: until the chain is
    deleted."""
    save_interval: Duration = "10m"
    """Maximum training time that a crash can lose."""
    export: Export = Export()
    """What each student is exported to. For a teacher that `fineTune` trains, see `teacher.export`."""
    tracking: Tracking = Tracking()
