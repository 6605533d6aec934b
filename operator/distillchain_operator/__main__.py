"""`python -m distillchain_operator`: handles SIGTERM before anything slow is imported.

Process 1 of a container receives only signals that it handles. An operator that missed SIGTERM at its start could still
take the Lease, and would be killed without releasing it.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def _exit(*_: object) -> NoReturn:
    """Exits at once: an operator that still waits for the API server has nothing to finish."""
    raise SystemExit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _exit)  # later, the event loop handles it

    from distillchain_operator.main import main

    sys.exit(main())
