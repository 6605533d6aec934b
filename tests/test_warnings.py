"""Warnings are errors, but for one that tells nothing of our code."""

from __future__ import annotations

import gc
import socket
import ssl
import warnings

import pytest

CONTEXT = ssl.create_default_context()


def test_what_python_leaves_open_after_a_reset_before_tls_is_no_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
    with pytest.raises(ConnectionResetError):
        CONTEXT.wrap_socket(client, server_hostname="localhost")

    gc.collect()  # where the interpreter leaves it open, pytest tells so at the end of this test


def test_a_connection_that_we_leave_open_is_an_error() -> None:
    gc.collect()  # what others have left is theirs
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        left = CONTEXT.wrap_socket(client, server_hostname="localhost", do_handshake_on_connect=False)
        with warnings.catch_warnings(record=True, action="always", category=ResourceWarning) as told:
            del left
            gc.collect()

    (leak,) = told
    with pytest.raises(ResourceWarning, match=r"SSLSocket.*raddr="):
        warnings.warn(leak.message, stacklevel=1)
