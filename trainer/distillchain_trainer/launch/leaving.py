"""The last step of a process."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Ends the process at once: everything is written, and an orderly exit of torch takes another second."""
    # os._exit flushes nothing.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
