"""Jobs that fail and are gone before status says so: a policy of the cluster gave them a TTL of seconds. Pure."""

from __future__ import annotations

from dataclasses import replace

from distillchain_api.resource.status import ChainStatus
from distillchain_operator.jobs.observed import Observed


def with_expired(live: Observed, known: Observed, *, previous: ChainStatus) -> Observed:
    """What a live read shows, and of failed Jobs that are expiring also what the caches still have.

    Otherwise their stages would train again, and fail again.

    Args:
        known: what the caches had before the live read.
        previous: the status as stored. A retry deletes failed Jobs too, but after status has said that they failed.
    """
    running = {(entry.job, entry.started_at) for entry in previous.entries if entry.phase == "Running"}
    failed = {
        job.uid: job
        for job in known.jobs
        if job.has_failed and job.ttl_s is not None and not job.deleting and (job.name, job.created_at) in running
    }
    there = {job.name: job for job in live.jobs}
    # Not if another Job has its name by now: the stage runs again already.
    failed = {uid: job for uid, job in failed.items() if there.get(job.name, job).uid == uid}
    if not failed:
        return live
    jobs = failed | {job.uid: job for job in live.jobs}
    pods = {pod.uid: pod for pod in known.pods if pod.job_uid in failed} | {pod.uid: pod for pod in live.pods}
    return replace(live, jobs=tuple(jobs.values()), pods=tuple(pods.values()))
