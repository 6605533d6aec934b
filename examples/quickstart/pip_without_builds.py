"""Runs pip without letting it start processes, and ends it, with the archive saved, when it would run a package's code.

    python -P pip_without_builds.py ARCHIVE_NAME SAVE_AS download ...

Why: for a source distribution `pip download` always runs the package's build backend (setup.py) to learn its metadata,
even with --no-deps, and no option prevents it. Only the archive is needed here. pip builds in child processes, and
CPython reports each of them to audit hooks before it starts (PEP 578); a hook cannot be removed again. The same hook
sees which files pip opens, so it knows where the archive is: in pip's temporary folder, or in a folder of the user. By
then pip has compared the archive with the --hash of the requirement, and the caller compares the copy again.

Rejected: to read the index ourselves, because mirrors, proxies, certificates and credentials would have to come from
pip's configuration; to use pip's internal modules, which may change; to trust the pinned setup.py, which is harmless,
but "never runs their code" is easier to believe when it is enforced. The price: credentials from an external `keyring`
program do not work. Tried with pip 23.2.1 and 26.3.
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
    """From now on, starting a child process fails, or ends this process.

    Before the archive is opened, it fails: pip wants to run `lsb_release`, and works without it. After that, the
    archive is saved and this process exits with 0.
    """
    opened: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and Path(arguments[0]).name == archive_name:
            opened.append(arguments[0])
        elif event in STARTS_A_PROCESS and opened:
            shutil.copyfile(opened[0], save_as)
            os._exit(0)
        elif event in STARTS_A_PROCESS:
            raise PermissionError(f"{event}: this pip may not start a process")

    sys.addaudithook(hook)


if __name__ == "__main__":
    _, wanted, destination, *pip_arguments = sys.argv
    refuse_processes(wanted, Path(destination))
    sys.argv = ["pip", *pip_arguments]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
