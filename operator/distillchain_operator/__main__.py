"""`python -m distillchain_operator`: handles SIGTERM before anything slow is imported.

Process 1 of a container receives only signals that it handles. An operator that missed SIGTERM at its start could still
take the Lease, and would be killed without releasing it.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # Not SystemExit, which is lost if it is raised in code that ignores errors. Later, the event loop handles SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    from distillchain_operator.main import main

    sys.exit(main())
