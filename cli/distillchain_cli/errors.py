"""How a command can end other than well; each class carries its exit code.

CliError
|- BadInput      2  what was typed cannot be used
|- RunFailed     1  the chain, the store or the cluster said no
|  |- NotThere       what was asked for is not on the cluster
|  |- Refused        the API server answered and will not
|  |- Unreachable    it did not answer, or broke off; asking again may help
|  |  `- Silent         nothing came for a while: the connection may be dead, or there is nothing to say
|  `- Expired        a watch asked for changes the API server has forgotten
`- MissingExtra  1  a part of distillchain is not installed
Bad documents (distillchain_api.faults.BadDocument) end with 2 as well, one line a fault.
"""

from __future__ import annotations

import importlib.util
from typing import ClassVar

EXIT_SUCCEEDED = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports Ctrl-C


class CliError(Exception):
    """A sentence for stderr, and how the command ends."""

    exit_code: ClassVar[int] = EXIT_FAILED


class BadInput(CliError):
    """What was typed cannot be used."""

    exit_code = EXIT_BAD_INPUT


class RunFailed(CliError):
    """The chain, the store or the cluster said no."""


class NotThere(RunFailed):
    """What was asked for is not on the cluster."""


class Refused(RunFailed):
    """The API server answered and will not."""


class Unreachable(RunFailed):
    """It did not answer, or broke off; asking again may help."""


class Silent(Unreachable):
    """Nothing came for a while: the connection may be dead, or there is nothing to say."""


class Expired(RunFailed):
    """A watch asked for changes the API server has forgotten (410 Gone); what holds now must be listed again."""


class MissingExtra(CliError):
    """A part of distillchain is not installed."""


def require_extra(extra: str, module: str, *, purpose: str) -> None:
    """Raises: MissingExtra when `module`, which `extra` brings, is not installed."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"{purpose} needs {module}, which is not installed; in a checkout: pip install '.[{extra}]'")
