"""The operator's settings, read once from the environment."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from distillchain_api.faults import BadDocument
from distillchain_api.resource.pod import pod_faults, unknown_fields
from distillchain_api.wire.work_order import (
    ALLOW_CPU_ENV,
    ATTEMPT_ENV,
    GPUS_ENV,
    KEEP_TEXTS_ENV,
    RENDEZVOUS_ENV,
    TERMINATION_PATH_ENV,
    WORK_DIRECTORY_ENV,
    WORK_ORDER_ENV,
)
from distillchain_api.yaml_text import load_yaml

# Kubernetes sets such variables in every pod for a Service named distillchain-...
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT\w*|PORT(_\d+_\w+)?)$")

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "plain"]
PREFIX = "DISTILLCHAIN_"
# Variables of the trainer, the command line and the tests that may be in the operator's environment.
OF_TRAINERS = (
    WORK_ORDER_ENV,
    ATTEMPT_ENV,
    GPUS_ENV,
    ALLOW_CPU_ENV,
    TERMINATION_PATH_ENV,
    WORK_DIRECTORY_ENV,
    KEEP_TEXTS_ENV,
    RENDEZVOUS_ENV,
)
OF_TESTS = ("DISTILLCHAIN_UPDATE_GOLDEN", "DISTILLCHAIN_SHARED")
FOREIGN = frozenset((*OF_TRAINERS, *OF_TESTS))


class BadSetting(ValueError):
    """An invalid setting; the message gives variable, value, expectation and remedy."""


@dataclass(frozen=True)
class Settings:
    """How this operator works; each field is set by the variable DISTILLCHAIN_<FIELD>."""

    trainer_image: str = ""
    """Trainer image of stages that name none; empty: every chain must name one."""
    pod_template: Mapping[str, Any] = field(default_factory=dict)
    """Path of a YAML file with a PodTemplateSpec; a stage's `pod` is merged over it; empty: none."""
    network_policies: bool = True
    """true: create a NetworkPolicy for each stage on several nodes, so that only its own pods reach each other."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose chains are run, separated by commas; empty: all, which needs the ClusterRole."""
    resync_s: float = 300.0
    """Seconds after which the operator looks at every unfinished chain again, also without an event."""
    progress_s: float = 15.0
    """Least seconds between two reads of a running pod's log."""
    max_running_chains: int = 0
    """How many chains of a namespace run at the same time; the others wait. 0: no limit."""
    lease: str = ""
    """NAMESPACE/NAME of the Lease that the working operator of several holds; empty: none, it works at once."""
    lease_duration_s: int = 15
    """Seconds without a renewal of the Lease after which another operator takes it."""
    lease_deadline_s: float = 10.0
    """Seconds without a successful renewal after which the working operator stops; below the duration."""
    lease_retry_s: float = 2.0
    """Seconds between two attempts to renew or to take the Lease; below the deadline."""
    health_port: int = 0
    """Port of GET /healthz and /readyz; 0: none."""
    metrics_port: int = 0
    """Port of GET /metrics for Prometheus; 0: none."""
    log_level: LogLevel = "info"
    """debug, info, warning or error."""
    log_format: LogFormat = "json"
    """json: one object for each line; plain: text."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings from DISTILLCHAIN_<FIELD> variables.

        Raises: BadSetting with every fault.
        """
        known = {f"{PREFIX}{name}": setting for name, setting in zip(setting_names(), fields(cls), strict=True)}
        values: dict[str, object] = {}
        faults = []
        for name, text in sorted(environment.items()):
            if not name.startswith(PREFIX) or name in FOREIGN:
                continue
            if _SERVICE_LINK.search(name) and (name not in known or "://" in text):
                continue  # a Service named distillchain-metrics sets a DISTILLCHAIN_METRICS_PORT
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
                faults.append(f"{name}: unknown setting; {remedy}")
            elif text:
                try:
                    values[known[name].name] = _PARSERS[known[name].name](text)
                except ValueError as error:
                    faults.append(f"{name}: got {text!r}, expected {error}")
        # All faults at once, or a wrong chart value would cost one restart for each.
        if faults:
            raise BadSetting("\n".join(faults))
        settings = cls(**values)  # type: ignore[arg-type]  # each parser gives its field's type
        # Otherwise two operators could work at once, or a slow answer would end a term. 1.2 is client-go's factor.
        if not 1.2 * settings.lease_retry_s < settings.lease_deadline_s < settings.lease_duration_s:
            raise BadSetting(
                f"{PREFIX}LEASE_DEADLINE_S: got {settings.lease_deadline_s:g}, expected a number above "
                f"1.2 times LEASE_RETRY_S ({settings.lease_retry_s:g}) "
                f"and below LEASE_DURATION_S ({settings.lease_duration_s})"
            )
        return settings


def setting_names() -> list[str]:
    """The names after DISTILLCHAIN_, such as TRAINER_IMAGE."""
    return [setting.name.upper() for setting in fields(Settings)]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # NaN fails this comparison too.
    if not 0 < seconds < float("inf"):
        raise ValueError("a number of seconds above 0")
    return seconds


def _whole_seconds(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("a whole number of seconds above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number, 0 or above")
    return int(text)


def _true_or_false(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError("a port from 0 to 65535")
    return int(text)


def _lease(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9.-]+/[a-z0-9.-]+", text):
        raise ValueError("NAMESPACE/NAME of a Lease")
    return text


def _log_level(text: str) -> str:
    if text.lower() not in get_args(LogLevel):
        raise ValueError(f"one of {', '.join(get_args(LogLevel))}")
    return text.lower()


def _log_format(text: str) -> str:
    if text not in get_args(LogFormat):
        raise ValueError(f"one of {', '.join(get_args(LogFormat))}")
    return text


def _pod_template(path: str) -> dict[str, Any]:
    try:
        template = load_yaml(Path(path).read_text(encoding="utf-8"), source=path)
    except (OSError, BadDocument) as error:
        raise ValueError(f"the path of a YAML file with a PodTemplateSpec; {error}") from error
    # Below spec, the cluster may know fields that this release does not; its strict dry run finds the others.
    unknown = [fault for fault in unknown_fields(template, field="pod") if not fault.field.startswith("spec.")]
    if faults := [*unknown, *pod_faults(template)]:
        raise ValueError("a PodTemplateSpec in that file; " + "; ".join(map(str, faults)))
    return template


_PARSERS: dict[str, Callable[[str], object]] = {
    "trainer_image": str,
    "pod_template": _pod_template,
    "network_policies": _true_or_false,
    "namespaces": lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
    "resync_s": _seconds,
    "progress_s": _seconds,
    "max_running_chains": _count,
    "lease": _lease,
    "lease_duration_s": _whole_seconds,
    "lease_deadline_s": _seconds,
    "lease_retry_s": _seconds,
    "health_port": _port,
    "metrics_port": _port,
    "log_level": _log_level,
    "log_format": _log_format,
}
