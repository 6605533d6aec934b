"""One connection between two launchers: messages both ways, and notice when the other side is gone."""

from __future__ import annotations

import asyncio
import contextlib

from distillchain_trainer.launch.messages import MAX_LINE_BYTES, Alive, BadMessage, Ended, Message, parse_message

HEARTBEAT_S = 5.0
# A node that is paused or overloaded may miss some. A machine that disappears is noticed after this time.
SILENCE_S = 30.0
CLOSE_S = 5.0


class Gone(Exception):
    """The other side is gone, with the reason."""


class Connection:
    """Messages over a stream. Sends a heartbeat until it is closed.

    Attributes:
        is_leaving: one side has said farewell, so the end of the connection is no loss.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._heartbeat = asyncio.create_task(self._beat())
        self.is_leaving = False
        self._has_left = False

    @property
    def peer(self) -> str:
        """The other side's address, for logs."""
        address = self._writer.get_extra_info("peername") or ("?",)
        return str(address[0])

    def send(self, message: Message) -> None:
        """Does not wait, and does nothing if the other side is gone: `receive` finds that out."""
        if not (self._writer.is_closing() or self._has_left):
            self._writer.write(message.to_json().encode(errors="replace") + b"\n")

    async def receive(self, *, patience_s: float | None = None) -> Message:
        """The next message that is not a heartbeat.

        Args:
            patience_s: longest silence; None: SILENCE_S.
        Raises: Gone; BadMessage.
        """
        while True:
            try:
                line = await asyncio.wait_for(self._reader.readline(), patience_s or SILENCE_S)
            except TimeoutError as error:
                raise Gone(f"nothing was heard from it for {patience_s or SILENCE_S:.0f} s") from error
            except ValueError as error:  # longer than MAX_LINE_BYTES
                raise BadMessage(f"got a line of more than {MAX_LINE_BYTES} bytes") from error
            except OSError as error:
                raise Gone(f"its connection broke ({error.strerror or error})") from error
            if not line.endswith(b"\n"):
                raise Gone("its connection was closed")
            message = parse_message(line)
            if isinstance(message, Ended):
                self.is_leaving = True
            elif not isinstance(message, Alive):
                return message

    async def close(self) -> None:
        """Closes; what was sent is still delivered, unless the other side does not read for CLOSE_S."""
        self._heartbeat.cancel()
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()
        except OSError:
            return

    def leave(self) -> None:
        """Says farewell and sends nothing more. Whoever reads from this connection closes it when the other side has.

        A socket that is closed while unread bytes wait in it resets the connection, and the other side may lose what it
        has not read yet.
        """
        self.send(Ended())
        self.is_leaving = self._has_left = True
        self._heartbeat.cancel()
        with contextlib.suppress(OSError, RuntimeError):  # closed already
            self._writer.write_eof()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self.send(Alive())
