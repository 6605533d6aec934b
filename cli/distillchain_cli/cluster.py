"""The rim to the API server: reads, watches, logs and the few writes of a person, by their own kubeconfig.

Every answer is plain JSON data; every error is a RunFailed with the API server's own sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from distillchain_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from distillchain_cli.errors import BadInput, Expired, NotThere, Refused, RunFailed, Silent, Unreachable, require_extra
from distillchain_operator.labels import CHAIN_LABEL, TRAINER_CONTAINER

REQUEST_TIMEOUT_S = 15
WATCH_S = 60  # the server ends each watch after this and the next goes on where it ended
SILENCE_S = 75  # a connection that is silent for longer than a watch lasts is dead, though nobody said so
LOG_SILENCE_S = 60  # a log may be silent for hours; it is asked again, so that a dead connection is noticed
FIELD_MANAGER = "distillchain-cli"
MERGE_PATCH = "application/merge-patch+json"
TRANSIENT = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Collection:
    """A list of the API server that can be watched."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)


class Cluster:
    """One connection to an API server, and the namespace that is looked at.

    Args:
        timeout_s: of each request but watches and logs.
    Attributes:
        namespace: given, else the context's.
    """

    def __init__(
        self,
        *,
        kubeconfig: str | None,
        context: str | None,
        namespace: str | None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        require_extra("operator", "kubernetes", purpose="talking to a cluster")
        from kubernetes import client, config

        try:
            configuration = client.Configuration()
            config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
            contexts, current = config.list_kube_config_contexts(config_file=kubeconfig)
            if context:
                current = next(entry for entry in contexts if entry["name"] == context)
        except (config.ConfigException, OSError) as error:
            raise BadInput(f"kubeconfig: {error}; set KUBECONFIG, --kubeconfig or --context") from error
        configuration.retries = 0  # a server that is away is said at once
        self.namespace: str = namespace or current["context"].get("namespace") or "default"
        self._timeout_s = timeout_s
        self._api = client.ApiClient(configuration)

    def fetch_chain(self, name: str) -> dict[str, Any]:
        """The chain as it is stored. Raises: NotThere when there is none."""
        chain = self._get(f"{_chains(self.namespace)}/{name}")
        if chain is None:
            raise NotThere(
                f"there is no DistillationChain {name} in namespace {self.namespace}; see kubectl get {PLURAL} -A"
            )
        return chain

    def list_chains(self, *, everywhere: bool = False, selector: str | None = None) -> list[dict[str, Any]]:
        """The chains of the namespace, or of all, in order of namespace and name."""
        query = {"labelSelector": selector} if selector else {}
        items, _ = self.list(Collection(_chains(None if everywhere else self.namespace), query))
        for item in items:  # a list leaves them out of its items
            item |= {"apiVersion": API_VERSION, "kind": KIND}
        return sorted(items, key=lambda item: (item["metadata"]["namespace"], item["metadata"]["name"]))

    def the_chain(self, name: str) -> Collection:
        """The one chain, for a watch."""
        return Collection(_chains(self.namespace), {"fieldSelector": f"metadata.name={name}"})

    def pods_of(self, chain: str) -> Collection:
        """The pods that bear the chain's label."""
        return Collection(f"/api/v1/namespaces/{self.namespace}/pods", {"labelSelector": f"{CHAIN_LABEL}={chain}"})

    def events(self) -> Collection:
        """All Events of the namespace: the API server cannot choose those of a chain, its Jobs and pods at once.

        Of the core group, as kubectl reads them: the roles `view`, `edit` and `admin` grant no others.
        """
        return Collection(f"/api/v1/namespaces/{self.namespace}/events")

    def namespaces(self) -> list[str]:
        """Names of all namespaces."""
        items, _ = self.list(Collection("/api/v1/namespaces"))
        return [item["metadata"]["name"] for item in items]

    def fetch_job(self, name: str) -> dict[str, Any] | None:
        """A Job as it is stored, or None."""
        return self._get(f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{name}")

    def fetch_pod(self, name: str) -> dict[str, Any] | None:
        """A pod as it is stored, or None."""
        return self._get(f"/api/v1/namespaces/{self.namespace}/pods/{name}")

    def delete_job(self, name: str, *, uid: str) -> None:
        """Deletes this very Job and, in the background, its pods; one that is gone is fine."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._request("DELETE", f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{name}", body=body)
        except NotThere:
            return

    def set_suspend(self, chain: dict[str, Any], suspend: bool) -> None:
        """Writes spec.suspend of this very chain, and no other field.

        Raises: Refused when it was deleted and made anew since it was read.
        """
        metadata = chain["metadata"]
        self._request(
            "PATCH",
            f"{_chains(self.namespace)}/{metadata['name']}",
            query={"fieldManager": FIELD_MANAGER},
            body={"metadata": {"uid": metadata["uid"]}, "spec": {"suspend": suspend}},
            content_type=MERGE_PATCH,
        )

    def list(self, collection: Collection) -> tuple[list[dict[str, Any]], str]:
        """All objects, and the version from which a watch goes on."""
        document = self._request("GET", collection.path, query=dict(collection.query))
        return list(document.get("items") or []), str(document["metadata"]["resourceVersion"])

    def watch(self, collection: Collection, version: str) -> Iterator[dict[str, Any]]:
        """The changes after `version` as `{"type": ..., "object": ...}`, bookmarks included; ends after WATCH_S.

        Raises: Expired when `version` is too old; Unreachable when the connection broke.
        """
        query = {
            **collection.query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        for line in self._stream(collection.path, query, silence_s=SILENCE_S):
            change = _decoded(line)
            if "object" not in change:
                raise Unreachable("the watch broke off in the middle of a line")
            if change.get("type") == "ERROR":
                answer = change.get("object") or {}
                if answer.get("code") == 410:
                    raise Expired(str(answer.get("message")))
                raise Unreachable(f"the API server ended the watch: {answer.get('message')}")
            yield change

    def log_lines(
        self, pod: str, *, follow: bool = False, tail: int | None = None, since: str | None = None
    ) -> Iterator[str]:
        """Lines of the trainer's log, each behind its timestamp and a space.

        Args:
            follow: wait for more until the container ends.
            tail: only the last so many.
            since: only those of this second (RFC 3339) and later.
        Raises: NotThere when the pod is gone; Unreachable when the connection broke, or was silent for LOG_SILENCE_S.
        """
        query = {"container": TRAINER_CONTAINER, "timestamps": "true", "follow": str(follow).lower()}
        if tail is not None:
            query["tailLines"] = str(tail)
        if since is not None:
            query["sinceTime"] = since
        yield from self._stream(f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log", query, silence_s=LOG_SILENCE_S)

    def _get(self, path: str) -> dict[str, Any] | None:
        try:
            return self._request("GET", path)
        except NotThere:
            return None

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """The answer. Raises: RunFailed in the API server's own words."""
        with self._translated():
            response = self._open(method, path, query or {}, body, content_type, timeout=self._timeout_s)
            return _decoded(response.data)

    def _stream(self, path: str, query: dict[str, str], *, silence_s: float) -> Iterator[str]:
        """Lines as they come, until the server ends them."""
        with self._translated():
            response = self._open("GET", path, query, timeout=(self._timeout_s, silence_s))
            try:
                rest = b""
                for chunk in response.stream(amt=None, decode_content=True):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line.decode(errors="replace")
                if rest:
                    yield rest.decode(errors="replace")
            finally:
                response.close()  # it was not read to its end: the connection cannot serve another request

    def _open(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
        *,
        timeout: float | tuple[float, float],
    ) -> Any:
        """The response, its body not yet read."""
        response = self._api.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json, */*", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=timeout,
        )
        return response[0] if isinstance(response, tuple) else response

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the client as ours."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        try:
            yield
        except ApiException as error:
            raise _translate(error) from error
        except ReadTimeoutError as error:
            raise Silent(f"the API server {self._api.configuration.host} does not answer") from error
        except (HTTPError, OSError) as error:
            host = self._api.configuration.host
            raise Unreachable(f"the API server {host} cannot be reached: {_short(error)}") from error


def _translate(error: Any) -> RunFailed:
    """An answer other than success, in the API server's own words."""
    answer = _decoded(error.body)
    message = answer.get("message") or error.reason
    if error.status == 404 and answer.get("reason") == "NotFound":
        return NotThere(str(message))
    if error.status == 410:
        return Expired(str(message))
    kind = Unreachable if error.status in TRANSIENT else Refused
    hint = "; is the CRD applied?" if error.status == 404 else ""
    return kind(f"the API server refused: {message}{hint}")


def _decoded(content: bytes | str | None) -> dict[str, Any]:
    try:
        document = json.loads(content or "{}")
    except ValueError:
        return {"message": str(content).strip()}
    return document if isinstance(document, dict) else {}


def _short(error: Exception) -> str:
    """The system's own words at the end of a long chain of causes."""
    return str(getattr(error, "reason", error)).rpartition(": ")[2]


def _chains(namespace: str | None) -> str:
    return f"/apis/{GROUP}/{VERSION}" + (f"/namespaces/{namespace}" if namespace else "") + f"/{PLURAL}"
