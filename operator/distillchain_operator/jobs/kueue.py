"""What Kueue does with the Job of a stage, as the Job alone shows it. Pure.

Kueue suspends a Job until its queue has quota, and suspends it again to give the quota to another. Why it does so is in
its Workload, which the operator does not read: users may, and see it in `distillchain describe`.
"""

from __future__ import annotations

from collections.abc import Sequence

from distillchain_api.resource.status import Admission
from distillchain_operator.jobs.observed import ObservedJob, ObservedPod

UID_LABEL = "kueue.x-k8s.io/job-uid"  # on a Workload: the UID of its Job


def is_held(job: ObservedJob) -> bool:
    """Whether the Job waits for Kueue to let it run."""
    return bool(job.queue) and job.suspend_wanted and not job.is_finished


def admission(job: ObservedJob, pods: Sequence[ObservedPod]) -> Admission | None:
    """What Kueue has decided about a Job; None if it is in no queue."""
    if not job.queue:
        return None
    if not job.suspend_wanted:
        return "Admitted"
    return "Requeued" if job.noted_pods or pods else "WaitingForQuota"


def describe_queue(job: ObservedJob, pods: Sequence[ObservedPod]) -> str:
    """What a Job waits for that Kueue does not let run."""
    unfinished = [pod.name for pod in pods if not pod.is_over]
    if unfinished:
        return f"Kueue stops Job {job.name}: pod {min(unfinished)} is saving its state"
    why = f"to see why: kubectl describe workloads -l {UID_LABEL}={job.uid}"
    if admission(job, pods) == "Requeued":
        return f"Kueue stopped Job {job.name}, which waits in queue {job.queue} and resumes from its saved state; {why}"
    return f"waiting for quota: Job {job.name} is in queue {job.queue}; {why}"
