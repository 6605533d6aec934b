"""Finished chains in bulk: one goes through the API, and the others are copies of it, written straight to etcd.

A copy is what the API server stores of the chain, its Jobs and its pods, with other names and UIDs. Creating each of
them through the API takes 14 requests, which would take longer than the measurement itself.
"""

from __future__ import annotations

import base64
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp

from chain_builders import NOON, a_commit, a_document
from cluster.controlplane import ControlPlane
from distillchain_api.graph import PlannedStage, build_plan
from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_operator.jobs.labels import CHAIN_LABEL
from distillchain_operator.jobs.stage_job import JobDefaults, build_job, build_probe_pod
from distillchain_operator.status.chain_status import build_chain_status, status_patch
from distillchain_operator.status.committed import committed_entry
from operator_bench.api import Api, chains_path, connected

STAGES = ("mini", "tiny", "femto")
MODEL = "model-of-copies"  # name of the chain that is copied, and of its namespace
PUTS = 30  # etcd accepts 128 in one transaction, and 1.5 MB


async def create_model(control_plane: ControlPlane) -> list[dict[str, Any]]:
    """Creates a chain that has succeeded, with its finished Jobs and pods.

    Returns: these objects, as the API server has them.
    """
    async with connected(control_plane) as api:
        await _add_chain(api)
        selector = f"labelSelector={CHAIN_LABEL}={MODEL}"
        jobs = await api.get(f"/apis/batch/v1/namespaces/{MODEL}/jobs?{selector}")
        pods = await api.get(f"/api/v1/namespaces/{MODEL}/pods?{selector}")
        return [
            await api.get(f"{chains_path(MODEL)}/{MODEL}"),
            # The items of a list have neither.
            *({"apiVersion": "batch/v1", "kind": "Job"} | job for job in jobs["items"]),
            *({"apiVersion": "v1", "kind": "Pod"} | pod for pod in pods["items"]),
        ]


async def _add_chain(api: Api) -> None:
    path = chains_path(MODEL)
    document = await api.send("POST", path, a_document(MODEL, stages=STAGES))
    plan = build_plan(parse_chain(document, from_cluster=True))
    entries = [await _add_stage(api, plan.chain, stage) for stage in plan.stages]
    finished = build_chain_status(plan, entries, previous=ChainStatus(), now=datetime.now(UTC))
    await api.patch_status(f"{path}/{MODEL}", status_patch(finished))


async def _add_stage(api: Api, chain: DistillationChain, stage: PlannedStage) -> StageStatus:
    at = f"/namespaces/{chain.metadata.namespace}"
    job, answer = build_job(chain, stage, defaults=JobDefaults()), a_commit(stage)
    name = job["metadata"]["name"]
    stored = await api.send("POST", f"/apis/batch/v1{at}/jobs", job)
    done = [{"type": kind, "status": "True", "lastTransitionTime": NOON} for kind in ("SuccessCriteriaMet", "Complete")]
    status = {"startTime": NOON, "completionTime": NOON, "succeeded": 1, "conditions": done}
    await api.patch_status(f"/apis/batch/v1{at}/jobs/{name}", status)
    pod = build_probe_pod(job)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "controller": True}
    pod["metadata"] |= {"name": f"{name}-p0", "ownerReferences": [owner | {"uid": stored["metadata"]["uid"]}]}
    await api.send("POST", f"/api/v1{at}/pods", pod)
    ended = {"exitCode": 0, "message": answer.to_json(), "finishedAt": NOON, "startedAt": NOON}
    container: dict[str, Any] = {"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    container["state"] = {"terminated": ended}
    await api.patch_status(f"/api/v1{at}/pods/{name}-p0", {"phase": "Succeeded", "containerStatuses": [container]})
    created_at = stored["metadata"]["creationTimestamp"]
    return committed_entry(stage, answer, job=name, attempt=1, started_at=created_at, finished_at=NOON)


async def add_copies(
    control_plane: ControlPlane, model: list[dict[str, Any]], numbers: Iterable[int], *, namespaces: int
) -> None:
    """Adds the chains relay-<number>, each with its Jobs and pods, in the namespaces team-<number>."""
    puts = itertools.chain.from_iterable(_copy(model, number, f"team-{number % namespaces}") for number in numbers)
    async with aiohttp.ClientSession(control_plane.etcd_url) as etcd:
        while batch := list(itertools.islice(puts, PUTS)):
            operations = [{"requestPut": {"key": _base64(key), "value": _base64(value)}} for key, value in batch]
            async with etcd.post("/v3/kv/txn", json={"success": operations}) as answer:
                assert (await answer.json()).get("succeeded"), await answer.text()


def _copy(model: list[dict[str, Any]], number: int, namespace: str) -> Iterator[tuple[str, str]]:
    """The keys and values of the objects in etcd."""
    text = json.dumps(model).replace(f'"namespace": "{MODEL}"', f'"namespace": "{namespace}"')
    text = text.replace(MODEL, f"relay-{number}")
    for document in model:
        text = text.replace(document["metadata"]["uid"], str(uuid.uuid4()))
    for document in json.loads(text):
        metadata = document["metadata"]
        del metadata["resourceVersion"]  # the API server takes it from etcd
        folder = {"Job": "jobs", "Pod": "pods"}.get(document["kind"], "distillchain.io/distillationchains")
        yield f"/registry/{folder}/{namespace}/{metadata['name']}", json.dumps(document)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
