"""What Jobs and pods of the modelled API server say."""

from __future__ import annotations

import json
from typing import Any

from distillchain_api.wire.work_order import WORK_ORDER_ENV
from distillchain_operator.jobs.labels import CHAIN_LABEL, DIGEST_LABEL, EXPORT_ANNOTATION, STAGE_LABEL
from simulation.etcd import Document


def digest_of(document: Document) -> str:
    return str(document["metadata"]["labels"][DIGEST_LABEL])


def chain_name_of(document: Document) -> str:
    return str(document["metadata"]["labels"][CHAIN_LABEL])


def stage_of(document: Document) -> str:
    return str(document["metadata"]["labels"][STAGE_LABEL])


def owner_of(document: Document) -> str:
    """The UID of what controls a Job or pod."""
    return str(document["metadata"]["ownerReferences"][0]["uid"])


def uid_of(document: Document) -> str:
    return str(document["metadata"]["uid"])


def version_of(document: Document) -> int:
    return int(document["metadata"]["resourceVersion"])


def has_condition(job: Document, kind: str) -> bool:
    return any(condition["type"] == kind for condition in job["status"].get("conditions", []))


def is_export(job: Document) -> bool:
    """Whether a Job exports a committed stage."""
    return EXPORT_ANNOTATION in job["metadata"]["annotations"]


def order_of(pod: Document) -> Document:
    """The work order of a trainer."""
    variables = pod["spec"]["containers"][0]["env"]
    order: Document = json.loads(next(each["value"] for each in variables if each["name"] == WORK_ORDER_ENV))
    return order


def needs_user(entry: Document) -> bool:
    """Whether a stage does not go on without the user, by its entry in status."""
    return entry["phase"] == "Failed" or (entry["phase"] != "Committed" and "failureClass" in entry)


def is_deleting(document: Document) -> bool:
    return "deletionTimestamp" in document["metadata"]


def is_finished(job: Document) -> bool:
    return has_condition(job, "Complete") or has_condition(job, "Failed")


def is_live(job: Document) -> bool:
    return not is_deleting(job) and not is_finished(job)


def is_suspended(job: Document) -> bool:
    return bool(job["spec"].get("suspend"))


def is_running(pod: Document) -> bool:
    return bool(pod["status"]["phase"] == "Running")


def is_over(pod: Document) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def is_succeeded(pod: Document) -> bool:
    return bool(pod["status"]["phase"] == "Succeeded")


def terminated(pod: Document) -> Any:
    """The end of the trainer; empty while it runs."""
    return pod["status"]["containerStatuses"][0]["state"].get("terminated", {})
