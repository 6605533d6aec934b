"""A control plane, its node and an S3 server that pods reach: everything that a chain needs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.controlplane import ControlPlane
from cluster.lifetime import sigterm_unwinds
from cluster.node import Node
from cluster.prerequisites import ensure_tools
from cluster.s3 import S3Server


class WholeCluster:
    """A cluster with its files in `directory`, stopped when the `with` block ends.

    Args:
        gpus, outlive_caller: see `Node` and `ControlPlane`.
    """

    def __init__(self, directory: Path, *, gpus: int = 2, outlive_caller: bool = False) -> None:
        self.directory = directory.absolute()
        self.gpus = gpus
        self._outlive_caller = outlive_caller
        self._exits = ExitStack()
        self.control_plane = ControlPlane(self.directory / "control-plane", outlive_caller=outlive_caller)
        self.node = Node(self.control_plane, gpus=gpus, outlive_caller=outlive_caller)
        self.s3 = S3Server(self.directory / "s3", outlive_caller=outlive_caller)

    def __enter__(self) -> Self:
        self._exits.enter_context(sigterm_unwinds())
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._exits.close()

    def start(self) -> None:
        """Start a new cluster. Only the objects that S3 kept in this directory remain from an earlier one."""
        ensure_tools()  # fail before anything is started
        self.stop()
        self.control_plane.start()
        self.node.start()
        self.s3 = S3Server(self.s3.directory, address=self.node.gateway, outlive_caller=self._outlive_caller)
        self.s3.start()

    def stop(self) -> None:
        """Stop the node first, then the servers that it uses. May be called again, also by another process."""
        with ExitStack() as stops:  # if one part fails to stop, the others are stopped all the same
            stops.callback(self.s3.stop)
            stops.callback(self.control_plane.stop)
            stops.callback(self.node.stop)

    def is_running(self) -> bool:
        return all(part.is_running() for part in (self.control_plane, self.node, self.s3))
