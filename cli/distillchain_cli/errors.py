"""How a command fails. Each class carries its exit code.

CliError
|- BadInput      2  an argument, option or file cannot be used
|- RunFailed     1  the chain, the store or the cluster reported a failure
|  |- NotFound       the object does not exist on the cluster
|  |- Refused        the API server rejected the request
|  |  |- Conflict       the object has changed since it was read
|  |  `- Unauthorized   the API server does not know the credentials
|  |- Unreachable    the API server did not answer, or the connection broke; a retry may help
|  |  `- NoData         nothing arrived for a while: the connection may be dead, or there is nothing to send
|  `- Expired        a watch asked for changes that the API server no longer keeps
`- MissingExtra  1  an optional part of distillchain is not installed
A bad document (distillchain_api.faults.BadDocument) also ends with 2, and prints one line for each fault.
"""

from __future__ import annotations

import importlib.util
from typing import ClassVar

EXIT_SUCCEEDED = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports Ctrl-C


class CliError(Exception):
    """A sentence for stderr, and the exit code of the command."""

    exit_code: ClassVar[int] = EXIT_FAILED


class BadInput(CliError):
    """An argument, option or file cannot be used."""

    exit_code = EXIT_BAD_INPUT


class RunFailed(CliError):
    """The chain, the store or the cluster reported a failure."""


class NotFound(RunFailed):
    """The object does not exist on the cluster."""


class Refused(RunFailed):
    """The API server rejected the request."""


class Conflict(Refused):
    """The object has changed since it was read, or is another one of the same name (409); read it again."""


class Unauthorized(Refused):
    """The API server does not accept the credentials (401). The request itself may be valid."""


class Unreachable(RunFailed):
    """The API server did not answer, or the connection broke; a retry may help."""


class NoData(Unreachable):
    """Nothing arrived for a while: the connection may be dead, or there is nothing to send."""


class Expired(RunFailed):
    """A watch asked for changes that the API server no longer keeps (410 Gone); list the objects again."""


class MissingExtra(CliError):
    """An optional part of distillchain is not installed."""


def require_extra(extra: str, module: str, *, purpose: str) -> None:
    """Raises: MissingExtra when `module`, which belongs to `extra`, is not installed."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"{purpose} needs {module}, which is not installed; in a checkout: pip install '.[{extra}]'")
