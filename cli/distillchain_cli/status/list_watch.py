"""`list -w`: prints a line for each chain, and another one whenever what it shows has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from distillchain_cli.api_server.chains import full_name, resource_name
from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.api_server.watching import Disconnected, follow
from distillchain_cli.output.output import Output
from distillchain_cli.output.printing import document_line, is_document
from distillchain_cli.status.view import list_table

Chains = Mapping[str, dict[str, Any]]
"""Chains by UID."""


def watch_list(
    cluster: Cluster,
    *,
    everywhere: bool,
    selector: str | None,
    output: Output,
    line: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Prints the chains and then every change, until the command is ended.

    Raises: RunFailed when the API server cannot be asked, or not again for too long.
    """
    # Programs read the other formats, and this line has none of them.
    deleted = line if output in (Output.TABLE, Output.WIDE) else note
    printer = _Printer(everywhere=everywhere, output=output, line=line, deleted=deleted)
    for news in follow(cluster, cluster.chains(everywhere=everywhere, selector=selector)):
        if isinstance(news, Disconnected):
            note(f"reconnecting: {news.reason}")
        else:
            printer.show(news)


class _Printer:
    """Prints what has changed since the last call."""

    def __init__(
        self, *, everywhere: bool, output: Output, line: Callable[[str], None], deleted: Callable[[str], None]
    ) -> None:
        self._everywhere, self._output, self._line, self._deleted = everywhere, output, line, deleted
        self._shown: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._has_header = False

    def show(self, chains: Chains) -> None:
        for uid in self._names.keys() - chains.keys():
            self._deleted(f"{self._names.pop(uid)} deleted")
            del self._shown[uid]
        changed = {uid: chain for uid, chain in chains.items() if self._shown.get(uid) != self._content(chain)}
        self._shown |= {uid: self._content(chain) for uid, chain in changed.items()}
        self._names |= {uid: full_name(chain) for uid, chain in changed.items()}
        if changed:
            self._print(changed, chains)

    def _content(self, chain: dict[str, Any]) -> Any:
        """What a line shows, without the age, which changes all the time."""
        if is_document(self._output):
            return chain["metadata"]["resourceVersion"]
        if self._output == Output.NAME:
            return chain["metadata"]["name"]
        created_at = datetime.fromisoformat(chain["metadata"]["creationTimestamp"])
        return list_table([chain], now=created_at, everywhere=self._everywhere, wide=True)

    def _print(self, changed: Chains, chains: Chains) -> None:
        if is_document(self._output):
            for chain in _sorted(changed):
                self._line(document_line(chain, self._output))
        elif self._output == Output.NAME:
            for chain in _sorted(changed):
                self._line(resource_name(chain))
        else:
            self._print_rows(changed, chains)

    def _print_rows(self, changed: Chains, chains: Chains) -> None:
        # All rows are formatted, because columns are as wide as their longest cell.
        every = _sorted(chains)
        is_wide = self._output == Output.WIDE
        text = list_table(every, now=datetime.now(UTC), everywhere=self._everywhere, wide=is_wide)
        header, *rows = text.splitlines()
        if not self._has_header:
            self._line(header)
            self._has_header = True
        for chain, row in zip(every, rows, strict=True):
            if chain["metadata"]["uid"] in changed:
                self._line(row)


def _sorted(chains: Chains) -> list[dict[str, Any]]:
    return sorted(chains.values(), key=lambda chain: (chain["metadata"]["namespace"], chain["metadata"]["name"]))
