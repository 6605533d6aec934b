"""Runs pip, but lets it start no process, and ends it when it wants to run a package's code, with the archive saved.

    python -P pip_without_builds.py ARCHIVE_NAME SAVE_AS download ...

Why: for a source distribution `pip download` always runs the package's build backend (setup.py) to learn its
metadata, with --no-deps too, and no option stops it. We want the archive only. pip builds in child processes alone,
and CPython announces each to audit hooks before it starts (PEP 578; a hook can't be removed again). The same hook
sees which files are opened, so it knows where the archive lies: in pip's temporary folder, or where the person keeps
it. By then pip has compared it with the --hash of the requirement; the caller compares the copy again. Rejected:
reading the index ourselves (its address, mirrors, proxies, certificates, credentials would have to be taken from
pip's configuration); pip's internal modules (no promise that they stay); trusting the pinned setup.py (it is
harmless, but "never runs their code" is easier to believe when nothing can). The price: no credentials from an
external `keyring` program. Tried with pip 23.2.1 and 26.3.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path

STARTS_A_PROCESS = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn"}
)


def refuse_processes(archive_name: str, save_as: Path) -> None:
    """From now on no child process starts: before the archive was opened the attempt fails (pip asks `lsb_release` who
    we are, and does without), after that it saves the archive and ends this process with 0."""
    opened: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and Path(arguments[0]).name == archive_name:
            opened.append(arguments[0])
        elif event in STARTS_A_PROCESS and opened:
            shutil.copyfile(opened[0], save_as)
            os._exit(0)
        elif event in STARTS_A_PROCESS:
            raise PermissionError(f"{event}: this pip starts no process")

    sys.addaudithook(hook)


if __name__ == "__main__":
    _, wanted, destination, *pip_arguments = sys.argv
    refuse_processes(wanted, Path(destination))
    sys.argv = ["pip", *pip_arguments]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
