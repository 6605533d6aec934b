"""A second process that uses the test cluster, and the output that a test reads from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def run_python(code: str) -> subprocess.Popen[str]:
    """Run `code` in another Python that can import the cluster. Read what it prints from `stdout`."""
    return subprocess.Popen([sys.executable, "-c", code], cwd=TESTS, stdout=subprocess.PIPE, text=True)
