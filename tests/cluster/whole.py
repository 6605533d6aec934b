"""A control plane, its node and an S3 server that pods reach: all that a chain needs, with one lifetime."""

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
    """Everything in `directory`, stopped when the `with` block ends.

    Args:
        gpus, outlive_caller: as of `Node` and `ControlPlane`.
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
        """Fresh, but for the objects that S3 kept in this directory."""
        ensure_tools()  # before anything is started in vain
        self.stop()
        self.control_plane.start()
        self.node.start()
        self.s3 = S3Server(self.s3.directory, address=self.node.gateway, outlive_caller=self._outlive_caller)
        self.s3.start()

    def stop(self) -> None:
        """The node's parts first, then what they talk to; may be repeated, also by another process."""
        with ExitStack() as stops:  # a part that will not stop keeps none of the others running
            stops.callback(self.s3.stop)
            stops.callback(self.control_plane.stop)
            stops.callback(self.node.stop)

    def is_running(self) -> bool:
        return all(part.is_running() for part in (self.control_plane, self.node, self.s3))
