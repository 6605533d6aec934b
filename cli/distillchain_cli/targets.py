"""FILE|NAME: what is a file is a chain file, anything else is the name of a chain on the cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distillchain_api.resource.spec import DistillationChain, Storage, parse_chain
from distillchain_api.resource.status import ChainStatus
from distillchain_cli.documents import STDIN, read_chain
from distillchain_cli.errors import BadInput

FetchChain = Callable[[str], dict[str, Any]]
"""Gives the chain of a name as the cluster holds it."""


def read_target(
    target: str, *, storage: str | None, overrides: Sequence[str], fetch_chain: FetchChain
) -> tuple[DistillationChain, ChainStatus]:
    """A chain and its status, which is empty for a file.

    Args:
        storage: URI of another store than the chain's.
    Raises: BadDocument, BadInput, and what `fetch_chain` raises.
    """
    if target == STDIN or Path(target).is_file():
        return read_chain(target, overrides=overrides, storage=storage), ChainStatus()
    if "/" in target or target.endswith((".yaml", ".yml", ".json")):
        raise BadInput(f"{target}: there is no such file; expected a chain file, or the name of a chain on the cluster")
    if overrides:
        raise BadInput("--set: expected with a chain file only; a chain on the cluster is taken as it is there")
    from distillchain_cli.chains import status_of

    document = fetch_chain(target)
    chain = parse_chain(document, source=target)
    if storage is not None:
        spec = chain.spec.model_copy(update={"storage": Storage.parse({"uri": storage}, source="--storage")})
        chain = chain.model_copy(update={"spec": spec})
    return chain, status_of(document)
