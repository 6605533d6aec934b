"""`distillchain download` and `distillchain gc`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from cli.committed import write_store
from cli.parts import distillchain_here, example_in_help, write_chain
from distillchain_api.graph import Plan, build_plan
from distillchain_cli.arguments.chain_files import read_chain


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Of chain.yaml with two stages; the first is committed in its store."""
    plan = build_plan(read_chain(str(write_chain(tmp_path))))
    write_store(tmp_path / "store", plan, committed=1, monkeypatch=monkeypatch)
    return plan


def test_a_download_is_the_checkpoint_and_nothing_else(tmp_path: Path, plan: Plan):
    done = distillchain_here("download", "chain.yaml", "--stage", "mini", "--to", "models/mini", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/models/mini\n")
    assert f"mini: 2 B from file://{tmp_path}/store/stages/{plan.stages[0].digest}" in done.stderr
    assert [path.name for path in (tmp_path / "models").rglob("*")] == ["mini", "config.json"]


def put_export(folder: Path, plan: Plan) -> Path:
    """An export of the stage mini; returns its folder."""
    stage = folder / "store/stages" / plan.stages[0].digest
    manifest = json.loads((stage / "manifest.json").read_text())
    files = {"model.onnx": b"graph", "model.onnx.data": b"weights", "tokenizer.json": b"{}"}
    entries = [
        {"path": name, "sizeBytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    record = {
        "digest": plan.stages[0].digest,
        "weights": manifest["student"]["revision"],
        "attempt": "e1",
        "files": entries,
        "formats": [],
        "environment": {},
        "createdAt": "2026-01-01T00:00:00Z",
    }
    made = stage / "exports/e1"
    made.mkdir(parents=True)
    for name, content in files.items():
        (made / name).write_bytes(content)
    (stage / "exports/onnx.json").write_text(json.dumps(record))
    return made


def test_onnx_files_are_downloaded_with_what_their_tokenizer_needs(tmp_path: Path, plan: Plan):
    download = ["download", "chain.yaml", "--stage", "mini", "--format", "onnx", "--to", "onnx"]
    none = distillchain_here(*download, cwd=tmp_path)
    assert (none.returncode, none.stdout) == (1, "")
    assert "stage mini has no ONNX files in file://" in none.stderr
    made = put_export(tmp_path, plan)

    done = distillchain_here(*download, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/onnx\n")
    assert f"mini: 14 B from file://{made}" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "onnx").iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_damaged_onnx_file_is_not_downloaded(tmp_path: Path, plan: Plan, damage: str):
    path = put_export(tmp_path, plan) / "model.onnx.data"
    if damage == "altered":
        path.write_bytes(b"Weights")
    else:
        path.unlink()

    done = distillchain_here(
        "download", "chain.yaml", "--stage", "mini", "--format", "onnx", "--to", "onnx", cwd=tmp_path
    )

    assert done.returncode == 1
    assert f"e1/model.onnx.data {'was altered' if damage == 'altered' else 'is missing'}" in done.stderr
    assert "the next run makes it again" in done.stderr
    assert not list(tmp_path.glob("onnx*"))


def test_an_altered_file_is_not_downloaded(tmp_path: Path, plan: Plan):
    (config,) = (tmp_path / "store").rglob("config.json")
    config.write_text("{ }")

    done = distillchain_here("download", "chain.yaml", "--stage", "mini", "--to", "mini", cwd=tmp_path)

    assert done.returncode == 1
    assert "checkpoint/config.json has 3 bytes, its manifest lists 2" in done.stderr
    assert not list(tmp_path.glob("mini*"))


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--to", "mini"], "stage tiny is not committed in file://{here}/store; committed: mini (--stage)", 1),
        (["--to", "mini", "--stage", "nano"], "--stage: got nano, expected mini or tiny", 2),
        (
            ["--to", "store", "--stage", "mini"],
            "--to: {here}/store exists; name a new folder, so that no other files",
            2,
        ),
        (["--to", "chain.yaml", "--stage", "mini"], "--to: {here}/chain.yaml exists; name a new folder", 2),
        (["--to", "chain.yaml/x", "--stage", "mini"], "--to: {here}/chain.yaml/x cannot be used (", 2),
        (["--to", "link", "--stage", "mini"], "--to: {here}/link is a symbolic link; name a folder", 2),
        (["--to", "/proc", "--stage", "mini"], "--to: /proc is a mount point; name a new folder in it", 2),
        # Nobody can create a folder there, not even root.
        (["--to", "/proc/mini", "--stage", "mini"], "\n--to: /proc/mini cannot be written (", 1),
    ],
)
def test_downloads_that_cannot_be(tmp_path: Path, plan: Plan, arguments: list[str], message: str, code: int):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")

    done = distillchain_here("download", "chain.yaml", *arguments, cwd=tmp_path)

    assert done.returncode == code
    assert message.format(here=tmp_path) in done.stderr
    assert (tmp_path / "store").is_dir()


def test_a_store_that_does_not_exist_is_not_called_clean(tmp_path: Path):
    done = distillchain_here("gc", "--storage", "file://./stroe", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"file://{tmp_path}/stroe does not exist on this machine; ")


def leave_behind(folder: Path, plan: Plan, *, days: float = 3) -> Path:
    """An attempt that was never committed, last written to some days ago."""
    path = folder / "store" / "stages" / plan.stages[1].digest / "attempts" / "killed" / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 5000)
    then = path.stat().st_mtime - 86400 * days
    os.utime(path, (then, then))
    return path


def test_garbage_is_listed_and_deleted_only_on_request(tmp_path: Path, plan: Plan):
    path = leave_behind(tmp_path, plan)

    listed = distillchain_here("gc", "chain.yaml", cwd=tmp_path)

    assert listed.returncode == 0
    assert listed.stdout.splitlines() == [
        "FOLDER                               OBJECTS    SIZE  AGE  WHY",
        f"stages/{plan.stages[1].digest[:12]}/attempts/killed        1  5.0 kB   3d  an attempt that was never committed",
    ]
    assert "nothing needs 1 object, 5.0 kB; to delete them, run the command again with --delete" in listed.stderr
    assert path.exists()

    deleted = distillchain_here("gc", "chain.yaml", "--delete", "-o", "json", cwd=tmp_path)

    document = json.loads(deleted.stdout)
    assert (document["deleted"], document["garbage"][0]["sizeBytes"]) == (True, 5000)
    assert not path.exists()
    again = distillchain_here("gc", "--storage", "file://./store", "--older-than", "0s", cwd=tmp_path)
    assert "everything is needed" in again.stderr
    assert list((tmp_path / "store").rglob("config.json"))


def test_a_duration_protects_what_is_younger(tmp_path: Path, plan: Plan):
    leave_behind(tmp_path, plan)

    done = distillchain_here(*example_in_help("gc", cwd=tmp_path)[:2], "--older-than", "100h", cwd=tmp_path)

    assert done.stdout == ""
    assert (
        f"left alone: stage {plan.stages[1].digest[:12]} was written to recently, so it may be running" in done.stderr
    )
    assert f"in file://{tmp_path}/store, everything that is not left alone is needed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a chain, or --storage with the URI of the store"),
        (["--states", "--storage", "file://./store"], "--states: expected the chains that use the store"),
        (
            ["chain.yaml", "--older-than", "3 days"],
            "--older-than: got 3 days, expected a duration such as 24h or 1h30m",
        ),
        (["chain.yaml", "other.yaml"], "the chains use 2 stores"),
    ],
)
def test_bad_input_of_gc(tmp_path: Path, plan: Plan, arguments: list[str], message: str):
    (tmp_path / "other.yaml").write_text((tmp_path / "chain.yaml").read_text().replace("./store", "./another"))

    done = distillchain_here("gc", *arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert message in done.stderr


def test_chains_of_two_servers_have_two_stores(tmp_path: Path):
    for name in ("a", "b"):
        storage = {"uri": "s3://models/x", "endpointUrl": f"https://{name}.test"}
        write_chain(tmp_path, storage=storage).rename(tmp_path / f"{name}.yaml")

    done = distillchain_here("gc", "a.yaml", "b.yaml", cwd=tmp_path)

    assert done.returncode == 2
    assert "2 stores (s3://models/x at https://a.test, s3://models/x at https://b.test); name chains" in done.stderr
