"""A chain on a cluster: its status, and another try for a stage that failed. By the user's own kubeconfig."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from distillchain_api import GROUP, PLURAL, VERSION
from distillchain_api.status import ChainStatus, StageStatus
from distillchain_cli.columns import Column, count, duration, format_columns
from distillchain_cli.errors import BadInput, RunFailed, require_extra
from distillchain_operator.status import metric_of

REQUEST_TIMEOUT_S = 15


class Cluster:
    """One connection to an API server, and the namespace that is looked at."""

    def __init__(self, *, kubeconfig: str | None, context: str | None, namespace: str | None) -> None:
        require_extra("operator", "kubernetes", purpose="talking to a cluster")
        from kubernetes import client, config

        try:
            configuration = client.Configuration()
            config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
            _, current = config.list_kube_config_contexts(config_file=kubeconfig)
            if context:
                contexts, _ = config.list_kube_config_contexts(config_file=kubeconfig)
                current = next(entry for entry in contexts if entry["name"] == context)
        except (config.ConfigException, OSError) as error:
            raise BadInput(f"kubeconfig: {error}; set KUBECONFIG, --kubeconfig or --context") from error
        configuration.retries = 0  # a server that is away is said at once
        self.namespace: str = namespace or current["context"].get("namespace") or "default"
        self._api = client.ApiClient(configuration)

    def fetch_chain(self, name: str) -> dict[str, Any]:
        """The chain as it is stored. Raises: RunFailed when there is none."""
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}/{name}"
        chain = self._request("GET", path)
        if chain is None:
            raise RunFailed(
                f"there is no DistillationChain {name} in namespace {self.namespace}; see kubectl get {PLURAL} -A"
            )
        return chain

    def fetch_job(self, name: str) -> dict[str, Any] | None:
        """A Job as it is stored, or None."""
        return self._request("GET", f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{name}")

    def delete_job(self, name: str, *, uid: str) -> None:
        """Deletes this very Job and, in the background, its pods; one that is gone is fine."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        self._request("DELETE", f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{name}", body=body)

    def _request(self, method: str, path: str, *, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """The answer; None for 404 of an object. Raises: RunFailed in the API server's own words."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        try:
            response = self._api.call_api(
                path,
                method,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=REQUEST_TIMEOUT_S,
            )
            content = (response[0] if isinstance(response, tuple) else response).data
        except ApiException as error:
            answer = _decoded(error.body)
            if error.status == 404 and answer.get("reason") == "NotFound":
                return None
            hint = "; is the CRD applied?" if error.status == 404 else ""
            raise RunFailed(f"the API server refused: {answer.get('message') or error.reason}{hint}") from error
        except (HTTPError, OSError) as error:
            host = self._api.configuration.host
            raise RunFailed(f"the API server {host} cannot be reached: {_short(error)}") from error
        return _decoded(content)


def _decoded(content: bytes | str | None) -> dict[str, Any]:
    try:
        document = json.loads(content or "{}")
    except ValueError:
        return {"message": str(content).strip()}
    return document if isinstance(document, dict) else {}


def _short(error: Exception) -> str:
    return str(getattr(error, "reason", error)).rpartition(": ")[2]


def status_of(chain: dict[str, Any]) -> ChainStatus:
    """What the operator has said of a chain. Raises: RunFailed when it is of another release."""
    try:
        return ChainStatus.model_validate_json(json.dumps(chain.get("status") or {}))
    except ValidationError as error:
        raise RunFailed("the status is of another release than this command; use -o json to see it") from error


def status_text(chain: dict[str, Any], status: ChainStatus) -> str:
    """A chain in short, and a line for each stage."""
    metric = chain["spec"]["task"].get("metric", "accuracy")
    metadata = chain["metadata"]
    head = f"{metadata['namespace']}/{metadata['name']}: {status.phase}"
    head += f", {status.stage} stages committed" if status.stage else ", the operator has not looked at it yet"
    columns = [
        Column("STAGE"),
        Column("PHASE"),
        Column("ATTEMPT", right=True),
        Column("PARAMETERS", right=True),
        Column(metric.upper(), right=True),
        Column("TIME", right=True),
        Column("MESSAGE"),
    ]
    lines = [head, status.message or ""]
    if status.stages:
        lines += ["", format_columns(columns, [_cells(entry, metric) for entry in status.stages])]
    return "\n".join(line for index, line in enumerate(lines) if line or index != 1)


def _cells(entry: StageStatus, metric: str) -> list[str]:
    progress = entry.progress
    doing = f"{progress.phase} {progress.step}/{progress.of}" if progress and entry.phase == "Running" else ""
    return [
        entry.name,
        entry.phase,
        str(entry.attempt or ""),
        count(entry.model.parameters) if entry.model else "",
        metric_of(entry.model, metric),
        duration(entry.elapsed_seconds) if entry.elapsed_seconds else "",
        " ".join(filter(None, (doing, entry.message))),
    ]


def behind(chain: dict[str, Any], status: ChainStatus) -> str:
    """A warning when the operator has not seen the last edit; else empty."""
    generation = chain["metadata"].get("generation", 0)
    if status.observed_generation >= generation:
        return ""
    return f"generation {generation} is not looked at yet; this status is of generation {status.observed_generation}"


def retry(cluster: Cluster, name: str, stage: str | None) -> str:
    """Deletes the Job of the failed stage, so that the operator makes it anew.

    Returns: what was done. Raises: RunFailed when there is nothing to retry; BadInput for a stage it does not have.
    """
    chain = cluster.fetch_chain(name)
    entry = _failed_stage(name, status_of(chain), stage)
    if entry.job is None:
        raise RunFailed(
            f"stage {entry.name} has no Job yet: {entry.message}; "
            "correct what is refused, the operator asks again by itself"
        )
    job = cluster.fetch_job(entry.job)
    if job is None:
        return f"Job {entry.job} of stage {entry.name} is gone already; the operator makes it anew"
    _check_job(job, chain, entry)
    cluster.delete_job(entry.job, uid=job["metadata"]["uid"])
    return f"deleted Job {entry.job} of stage {entry.name} ({entry.failure_class}); the operator makes it anew"


def _failed_stage(chain: str, status: ChainStatus, wanted: str | None) -> StageStatus:
    if wanted is None:
        entry = next((entry for entry in status.stages if entry.phase == "Failed"), None)
        if entry is None:
            raise RunFailed(f"nothing to retry: {chain} is {status.phase} and none of its stages failed")
        return entry
    found = status.stage_named(wanted)
    if found is None:
        known = ", ".join(entry.name for entry in status.stages) or "no stage yet"
        raise BadInput(f"--stage: got {wanted}, expected one of {known}")
    if found.phase != "Failed":
        raise RunFailed(f"nothing to retry: stage {wanted} of {chain} is {found.phase}, not Failed")
    return found


def _check_job(job: dict[str, Any], chain: dict[str, Any], entry: StageStatus) -> None:
    """It is the chain's own and it is over: status may be a moment behind."""
    owners = job["metadata"].get("ownerReferences") or []
    if not any(owner.get("uid") == chain["metadata"]["uid"] for owner in owners):
        raise RunFailed(f"Job {entry.job} is not one of this chain; it is left alone")
    conditions = (job.get("status") or {}).get("conditions") or []
    if not any(c["type"] in ("Failed", "Complete") and c["status"] == "True" for c in conditions):
        raise RunFailed(f"nothing to retry: Job {entry.job} of stage {entry.name} has not ended")
