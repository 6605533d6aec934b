"""Finds and reads the user's kubeconfig, and explains what is wrong with one in terms of the option or variable."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from distillchain_cli.api_server.credential_plugin import logged_errors, plugin_fault
from distillchain_cli.errors import BadInput
from distillchain_store.redaction import without_userinfo

VARIABLE = "KUBECONFIG"
DEFAULT = "~/.kube/config"
LIBRARY_PREFIXES = ("Invalid kube-config file. ", "Invalid kube-config. ")
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where Kubernetes mounts it into a pod


@dataclass(frozen=True)
class KubeContext:
    """What a context says besides server and credentials.

    Attributes:
        as_user, as_groups: whom its user acts as.
    """

    namespace: str | None
    as_user: str | None = None
    as_groups: tuple[str, ...] = ()


def load_kubeconfig(option: str | None, context: str | None, *, into: Any) -> KubeContext:
    """Writes server, credentials and proxy of a context into a client's configuration.

    Args:
        option: value of --kubeconfig; None: $KUBECONFIG, or else ~/.kube/config, or else the service account of a pod.
        context: value of --context; None: the kubeconfig's current context.
    Raises: BadInput when there is no such file, no such context, or no usable kubeconfig in the file.
    """
    if option is None and context is None and _is_in_pod_without_kubeconfig():
        return _load_service_account(into)
    origin, files = _locate(option)
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigLoader

    try:
        merger = _merge(files)
        known = [entry["name"] for entry in merger.config.value.get("contexts") or []]
        if context is not None and context not in known:
            raise BadInput(
                f"--context: got {context}, expected one of {', '.join(known) or 'none, there is no context'}"
            )
        # Not list_kube_config_contexts(), the public way to the context in use: without a current-context it fails,
        # even when --context names one.
        loader = KubeConfigLoader(
            config_dict=merger.config,
            active_context=context,
            config_base_path=None,
            config_persister=merger.save_changes,
        )
        with logged_errors() as errors:
            loader.load_and_set(into)
        chosen = loader.current_context["context"]
        user, cluster = (_entry(merger, kind, chosen.get(kind)) for kind in ("user", "cluster"))
        if "exec" in user and not (into.api_key or into.cert_file):
            raise BadInput(f"{origin}: {files}: {plugin_fault(user, errors)}")
        _set_proxy(into, cluster.get("proxy-url"), f"{origin}: {files}")
        return KubeContext(chosen.get("namespace"), user.get("as"), tuple(user.get("as-groups") or ()))
    except BadInput:
        raise
    except (ConfigException, OSError) as error:
        raise BadInput(f"{origin}: {files}: {_explain(error)}; correct the file or use another context") from error
    except Exception as error:  # the client library checks neither syntax nor types
        raise BadInput(f"{origin}: {files} is not a kubeconfig ({type(error).__name__}); use another file") from error


def context_names(option: str | None) -> list[str]:
    """Names of all contexts. Raises: whatever the client library raises on a bad file, and BadInput."""
    _, files = _locate(option)
    return [entry["name"] for entry in _merge(files).config.value.get("contexts") or []]


def _entry(merger: Any, kind: str, name: str | None) -> dict[str, Any]:
    """The user or cluster of that name; empty if there is none."""
    found = merger.config[f"{kind}s"].get_with_name(name, safe=True) if name else None
    return dict(found[kind].value) if found and kind in found else {}


def _set_proxy(into: Any, url: str | None, source: str) -> None:
    """As in kubectl, `proxy-url` of the kubeconfig goes before the environment's proxies, and before NO_PROXY.

    The client library does not read it, and uses HTTP_PROXY for https:// too.
    """
    if url is None:
        into.proxy = getproxies().get(urlsplit(into.host).scheme)
        return
    if not url.startswith(("http://", "https://")):
        raise BadInput(
            f"{source}: proxy-url: got {without_userinfo(url)}, expected http:// or https://; SOCKS proxies cannot be "
            "used"
        )
    into.proxy, into.no_proxy = url, None


def _is_in_pod_without_kubeconfig() -> bool:
    return (
        not os.environ.get(VARIABLE)
        and not Path(DEFAULT).expanduser().exists()
        and (SERVICE_ACCOUNT / "token").exists()
    )


def _load_service_account(into: Any) -> KubeContext:
    """As kubectl does in a pod: its own service account and namespace."""
    from kubernetes.config import ConfigException
    from kubernetes.config.incluster_config import InClusterConfigLoader

    loader = InClusterConfigLoader(str(SERVICE_ACCOUNT / "token"), str(SERVICE_ACCOUNT / "ca.crt"))
    try:
        loader.load_and_set(into)
        _set_proxy(into, None, "")
        return KubeContext((SERVICE_ACCOUNT / "namespace").read_text())
    except (ConfigException, OSError) as error:
        raise BadInput(f"the service account of this pod cannot be used ({error}); use --kubeconfig") from error


def _locate(option: str | None) -> tuple[str, str]:
    """Where the path comes from, and the path (several of $KUBECONFIG are separated by colons).

    Raises: BadInput when none of the files exists. As with kubectl, it is enough if one of several exists.
    """
    if option is not None:
        origin, files, remedy = "--kubeconfig", option, "name an existing file"
    # Read here, because the library reads the variable when it is imported.
    elif os.environ.get(VARIABLE):
        origin, files, remedy = VARIABLE, os.environ[VARIABLE], f"correct {VARIABLE} or use --kubeconfig"
    else:
        origin, files, remedy = "kubeconfig", DEFAULT, f"set {VARIABLE} or use --kubeconfig"
    paths = [path for path in files.split(os.pathsep) if path]
    # The library itself would only say that no configuration was found, without a path.
    if not any(Path(path).expanduser().exists() for path in paths):
        does = "does" if len(paths) == 1 else "do"
        raise BadInput(f"{origin}: {', '.join(paths)} {does} not exist; {remedy}")
    return origin, files


def _merge(files: str) -> Any:
    """The client library's own merge of several kubeconfigs."""
    from kubernetes.config.kube_config import KubeConfigMerger

    return KubeConfigMerger(files)


def _explain(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    for prefix in LIBRARY_PREFIXES:
        text = text.removeprefix(prefix)
    if text.startswith("Expected key current-context"):
        return "there is no current-context"
    return text[:1].lower() + text[1:]
