"""The only module that talks to the API server: reads, watches, logs and a few writes, with the user's kubeconfig.

Every result is plain JSON data. Every error is a RunFailed with the API server's own message.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from distillchain_api import API_VERSION, GROUP, KIND, PLURAL, VERSION, deep_json
from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.impersonation import Impersonation
from distillchain_cli.api_server.kubeconfig import load_kubeconfig
from distillchain_cli.errors import (
    BadInput,
    Conflict,
    Expired,
    NoData,
    NotFound,
    Refused,
    RunFailed,
    Unauthorized,
    Unreachable,
    require_extra,
)
from distillchain_operator.jobs.labels import CHAIN_LABEL, DIGEST_LABEL, TRAINER_CONTAINER, digest_label
from distillchain_store.connection_faults import bundle_fault, tls_fault

WATCH_S = 60  # the server ends each watch after this, and the next one continues from there
WATCH_SILENCE_S = 75  # longer than WATCH_S: without any data for this long, the connection is dead
LOG_SILENCE_S = 60  # a log may be silent for hours; reconnecting now and then detects a dead connection
FIELD_MANAGER = "distillchain-cli"
MERGE_PATCH = "application/merge-patch+json"
CA_FIELD = "certificate-authority of the kubeconfig"
TRANSIENT = (429, 500, 502, 503, 504)
HINTS = {
    401: "; the credentials of the kubeconfig are missing, wrong or expired: log in again",
    404: "; is the CRD applied?",
}


@dataclass(frozen=True)
class Collection:
    """A list of the API server that can be watched."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)


class Cluster:
    """A connection to an API server, and the namespace in use.

    Attributes:
        namespace: the one of the options, or else the namespace of the context.
        namespace_option: None: the options name none.
    """

    def __init__(self, access: Access) -> None:
        if access.as_groups and access.as_user is None:
            raise BadInput("--as-group: expected together with --as, which names the user")
        require_extra("cli", "kubernetes", purpose="talking to a cluster")
        from kubernetes import client

        configuration = client.Configuration()
        current = load_kubeconfig(access.kubeconfig, access.context, into=configuration)
        # Report at once that a server does not answer. Commands that wait have their own retries, which they report.
        configuration.retries = 0
        self.namespace_option = access.namespace
        self.namespace: str = access.namespace or current.namespace or "default"
        self._timeout_s = access.request_timeout or None
        if not configuration.verify_ssl:  # the kubeconfig says so, and its user knows
            warnings.filterwarnings("ignore", message="Unverified HTTPS request")
        configuration.proxy_headers = _proxy_login(configuration.proxy)
        self._api = client.ApiClient(configuration)
        by_option = access.as_user is not None
        as_user, groups = (
            (access.as_user, access.as_groups or ()) if by_option else (current.as_user, current.as_groups)
        )
        if as_user is not None:
            rest = self._api.rest_client
            rest.pool_manager = Impersonation(rest.pool_manager, as_user, groups)

    def fetch_chain(self, name: str, *, namespace: str | None = None) -> dict[str, Any]:
        """The chain as it is stored. Raises: NotFound."""
        namespace = namespace or self.namespace
        chain = self._get(f"{_chains(namespace)}/{name}")
        if chain is None:
            raise NotFound(
                f"there is no DistillationChain {name} in namespace {namespace}; see kubectl get {PLURAL} -A"
            )
        return chain

    def list_chains(self, *, everywhere: bool = False, selector: str | None = None) -> list[dict[str, Any]]:
        """The chains of the namespace, or of all namespaces, sorted by namespace and name."""
        items, _ = self.list(self.chains(everywhere=everywhere, selector=selector))
        return sorted(items, key=lambda item: (item["metadata"]["namespace"], item["metadata"]["name"]))

    def chains(self, *, everywhere: bool = False, selector: str | None = None) -> Collection:
        """The chains of the namespace, or of all namespaces, with these labels."""
        query = {"labelSelector": selector} if selector else {}
        return Collection(_chains(None if everywhere else self.namespace), query)

    def chain_collection(self, name: str) -> Collection:
        """A collection of this chain only, for a watch."""
        return Collection(_chains(self.namespace), {"fieldSelector": f"metadata.name={name}"})

    def pods_of(self, chain: str) -> Collection:
        """The pods with the label of the chain."""
        return Collection(f"/api/v1/namespaces/{self.namespace}/pods", {"labelSelector": f"{CHAIN_LABEL}={chain}"})

    def pods_of_digests(self, digests: Iterable[str]) -> Collection:
        """The pods of the namespace that run stages with these digests, of any chain."""
        values = ",".join(sorted(map(digest_label, digests)))
        query = {"labelSelector": f"{DIGEST_LABEL} in ({values})"}
        return Collection(f"/api/v1/namespaces/{self.namespace}/pods", query)

    def events(self) -> Collection:
        """All Events of the namespace: the API server cannot select those of a chain with its Jobs and pods.

        They are read from the core group, as kubectl does: the roles `view`, `edit` and `admin` allow only that.
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

    def set_suspend(self, chain: dict[str, Any], suspend: bool) -> None:
        """Writes spec.suspend of the chain with this UID, and no other field.

        Raises: Refused when the chain was deleted and recreated since it was read.
        """
        metadata = chain["metadata"]
        self._request(
            "PATCH",
            f"{_chains(self.namespace)}/{metadata['name']}",
            query={"fieldManager": FIELD_MANAGER},
            # A patch with a UID fails with a conflict if the name now belongs to another chain.
            body={"metadata": {"uid": metadata["uid"]}, "spec": {"suspend": suspend}},
            content_type=MERGE_PATCH,
        )

    def annotate_chain(self, chain: dict[str, Any], annotations: dict[str, str]) -> None:
        """Sets annotations of the chain as it was read.

        Raises: Conflict when anything of it has changed since, or when it was deleted and recreated.
        """
        metadata = chain["metadata"]
        # What the caller writes may depend on the annotations and the status that it has read.
        of_read = {key: metadata[key] for key in ("uid", "resourceVersion")}
        self._request(
            "PATCH",
            f"{_chains(self.namespace)}/{metadata['name']}",
            query={"fieldManager": FIELD_MANAGER},
            body={"metadata": {**of_read, "annotations": annotations}},
            content_type=MERGE_PATCH,
        )

    def delete_chain(self, chain: dict[str, Any]) -> None:
        """Deletes the chain with this UID and, in the background, what it owns. Does nothing if it no longer exists."""
        metadata = chain["metadata"]
        body = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        with suppress(NotFound):
            self._request("DELETE", f"{_chains(metadata['namespace'])}/{metadata['name']}", body=body)

    def dry_run_chain(self, chain: dict[str, Any]) -> None:
        """Lets the API server check a chain as if it were applied, with its schema, rules and webhooks.

        Raises: Refused with the API server's message.
        """
        metadata = chain["metadata"]
        path = _chains(metadata["namespace"])
        query = {"fieldManager": FIELD_MANAGER, "dryRun": "All", "fieldValidation": "Strict"}
        stored = self._get(f"{path}/{metadata['name']}")
        if stored is None:
            self._request("POST", path, query=query, body=chain)
        else:
            # No server-side apply: it would keep every field that another client has written and the file leaves out.
            body = {**stored, **chain, "metadata": {**stored["metadata"], **metadata}}
            self._request("PUT", f"{path}/{metadata['name']}", query=query, body=body)

    def list(self, collection: Collection) -> tuple[list[dict[str, Any]], str]:
        """All objects, and the resource version from which a watch continues."""
        document = self._request("GET", collection.path, query=dict(collection.query))
        items = list(document.get("items") or [])
        if str(document.get("kind")) == f"{KIND}List":
            items = [{**item, "apiVersion": API_VERSION, "kind": KIND} for item in items]  # a list omits both
        return items, str(document["metadata"]["resourceVersion"])

    def watch(self, collection: Collection, version: str) -> Iterator[dict[str, Any]]:
        """The changes after `version` as `{"type": ..., "object": ...}`, with bookmarks. Ends after WATCH_S.

        Raises: Expired when `version` is too old; Unreachable when the connection broke.
        """
        query = {
            **collection.query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        for line in self._stream(collection.path, query, silence_s=WATCH_SILENCE_S):
            change = _decode(line)
            # A proxy that cuts the connection may leave half a line, which does not parse.
            if "object" not in change:
                raise Unreachable("the watch broke off in the middle of a line")
            if change.get("type") == "ERROR":
                error = change.get("object") or {}
                if error.get("code") == 410:
                    raise Expired(str(error.get("message")))
                raise Unreachable(f"the API server ended the watch: {error.get('message')}")
            yield change

    def log_lines(
        self,
        pod: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        newest_s: int | None = None,
        since: str | None = None,
    ) -> Iterator[str]:
        """Lines of the trainer's log, each after its timestamp and a space.

        Args:
            follow: wait for more lines until the container ends.
            tail: return only the last lines, this many.
            newest_s: return only lines of the last seconds, this many.
            since: return only lines of this second (RFC 3339) and later.
        Raises: NotFound when the pod is gone; Unreachable when the connection broke or LOG_SILENCE_S passed.
        """
        query = {"container": TRAINER_CONTAINER, "timestamps": "true", "follow": str(follow).lower()}
        if tail is not None:
            query["tailLines"] = str(tail)
        if newest_s is not None:
            query["sinceSeconds"] = str(newest_s)
        if since is not None:
            query["sinceTime"] = since
        yield from self._stream(f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log", query, silence_s=LOG_SILENCE_S)

    def _get(self, path: str) -> dict[str, Any] | None:
        try:
            return self._request("GET", path)
        except NotFound:
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
        """The decoded response. Raises: RunFailed with the API server's message."""
        with self._translated_errors():
            response = self._open(method, path, query or {}, body, content_type, timeout=self._timeout_s)
            return _decode(response.data)

    def _stream(self, path: str, query: dict[str, str], *, silence_s: float) -> Iterator[str]:
        """Lines as they arrive, until the server ends the response."""
        with self._translated_errors():
            response = self._open("GET", path, query, timeout=(self._timeout_s, silence_s))
            try:
                rest = b""
                # amt=None returns data as it arrives; a size would wait until that much is there.
                for chunk in response.stream(amt=None, decode_content=True):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line.decode(errors="replace")
                if rest:
                    yield rest.decode(errors="replace")
            finally:
                response.close()  # it may not have been read to its end, so the connection cannot be reused

    def _open(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
        *,
        timeout: float | tuple[float | None, float] | None,
    ) -> Any:
        """The response, whose body has not been read yet."""
        # One generic call: the generated classes differ for each API group, and parse objects that are only passed on.
        response = self._api.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json, */*", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,  # the body is read by the caller, as a whole or as a stream
            _request_timeout=timeout,
        )
        return response[0] if isinstance(response, tuple) else response

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Turns errors of the client library into RunFailed."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        host = self._api.configuration.host
        try:
            yield
        except ApiException as error:
            raise _translate(error) from error
        except (HTTPError, OSError) as error:
            # urllib3 wraps the error of a request without a body in another one.
            if isinstance(getattr(error, "reason", error), ReadTimeoutError):
                raise NoData(f"the API server {host} does not answer") from error
            raise Unreachable(f"the API server {host} cannot be reached{_why(error)}") from error


def _translate(error: Any) -> RunFailed:
    """The error for a response other than success, with the API server's message."""
    answer = _decode(error.body)
    message = answer.get("message") or error.reason
    # A 404 for the path itself, without this reason, means that the API server does not know the resource.
    if error.status == 404 and answer.get("reason") == "NotFound":
        return NotFound(str(message))
    if error.status == 410:
        return Expired(str(message))
    if error.status == 409:
        return Conflict(f"the API server refused: {message}")
    kind = Unreachable if error.status in TRANSIENT else Unauthorized if error.status == 401 else Refused
    return kind(f"the API server refused: {message}{HINTS.get(error.status, '')}")


def _decode(content: bytes | str | None) -> dict[str, Any]:
    text = content.decode(errors="replace") if isinstance(content, bytes) else content
    try:
        # One chain that is nested too deeply must not hide the others of a list.
        document = deep_json.loads(text or "{}")
    except ValueError:
        return {"message": str(text).strip()}
    return document if isinstance(document, dict) else {}


def _why(error: Exception) -> str:
    """What failed, which stands at the end of a long chain of causes, and the remedy."""
    from urllib3.exceptions import ProxyError

    cause = getattr(error, "reason", error)
    if isinstance(cause, ProxyError):
        why = str(cause.original_error).rpartition(": ")[2]
        return f" through the proxy of HTTPS_PROXY or the kubeconfig: {why}; correct it, or add the host to NO_PROXY"
    if fault := tls_fault(error, bundle_variable=CA_FIELD) or bundle_fault(error, bundle_variable=CA_FIELD):
        return f": {fault}"
    inner = cause.args[-1] if cause.args and isinstance(cause.args[-1], Exception) else cause
    return f": {str(inner).rpartition(': ')[2]}; check the address in the kubeconfig, and the network"


def _proxy_login(url: str | None) -> dict[str, str] | None:
    """The header with user name and password of a proxy's URL, which urllib3 does not read there."""
    from urllib3.util import make_headers, parse_url

    login = parse_url(url).auth if url else None
    return dict(make_headers(proxy_basic_auth=unquote(login))) if login else None


def _chains(namespace: str | None) -> str:
    return f"/apis/{GROUP}/{VERSION}" + (f"/namespaces/{namespace}" if namespace else "") + f"/{PLURAL}"
