"""`distillchain download` when it is stopped or killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.committed import write_store
from cli.parts import WITH_DEFAULT_SIGNALS, clean_environment, distillchain_here, write_chain
from cluster.waiting import wait_until
from distillchain_api.graph import build_plan
from distillchain_cli.arguments.chain_files import read_chain
from distillchain_cli.commands.download_folder import partial_folder

pytestmark = pytest.mark.slow

DEADLINE_S = 30
DOWNLOAD = ["download", "chain.yaml", "--stage", "mini", "--to", "mini"]
STOPS_HALFWAY = f"""
import sys, time
from distillchain_cli.main import main
from distillchain_store.folder import FileStore

def download(self, key, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    time.sleep({2 * DEADLINE_S})

FileStore.download = download
sys.argv[1:] = {DOWNLOAD}
sys.exit(main())
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with chain.yaml, whose first stage is committed."""
    plan = build_plan(read_chain(str(write_chain(tmp_path))))
    write_store(tmp_path / "store", plan, committed=1, monkeypatch=monkeypatch)
    return tmp_path


def start(here: Path) -> subprocess.Popen[bytes]:
    """A download that has written one half of a file."""
    process = subprocess.Popen(
        [*WITH_DEFAULT_SIGNALS, sys.executable, "-c", STOPS_HALFWAY], cwd=here, env=clean_environment(here)
    )
    wait_until("the file", lambda: list(here.glob("mini.part-*/**/config.json")), deadline_s=DEADLINE_S)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_download_that_is_stopped_leaves_nothing(here: Path, number: signal.Signals):
    process = start(here)

    process.send_signal(number)

    assert process.wait(DEADLINE_S) == -number
    assert not list(here.glob("mini*"))


def test_the_next_download_deletes_what_a_killed_one_left(here: Path):
    process = start(here)
    (other,) = here.glob("mini.part-*")
    process.kill()
    process.wait(DEADLINE_S)
    not_a_download = here / "mini.part-01"
    not_a_download.mkdir()
    assert other.exists()

    done = distillchain_here(*DOWNLOAD, cwd=here)

    assert (done.returncode, done.stdout) == (0, f"{here}/mini\n")
    assert sorted(here.glob("mini*")) == [here / "mini", not_a_download]


def test_a_download_leaves_one_alone_that_is_running(here: Path):
    with partial_folder(here / "mini") as part:
        assert distillchain_here(*DOWNLOAD, cwd=here).returncode == 0
        assert part.exists()
    assert not list(here.glob("mini.part-*"))
