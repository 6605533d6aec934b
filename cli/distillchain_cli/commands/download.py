"""`distillchain download`: a committed checkpoint or its ONNX files, verified, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distillchain_api.failures import StageError
from distillchain_api.graph import Plan, build_plan
from distillchain_api.layout import export_prefix
from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.choices import choice_of
from distillchain_cli.arguments.filename_option import takes_filename
from distillchain_cli.arguments.options import Overrides, Stage, Storage, Target, Verbose
from distillchain_cli.arguments.targets import read_target
from distillchain_cli.commands.download_folder import partial_folder
from distillchain_cli.errors import BadInput, RunFailed
from distillchain_cli.output.columns import size
from distillchain_cli.output.printing import print_message, print_result
from distillchain_cli.stores import open_chain_store

if TYPE_CHECKING:
    from distillchain_api.wire.export import ExportRecord
    from distillchain_api.wire.manifest import FileEntry, Manifest
    from distillchain_store.store import Store

app = typer.Typer()


class Kind(StrEnum):
    """What a download has."""

    CHECKPOINT = "checkpoint"
    ONNX = "onnx"


@app.command(epilog="Example: distillchain download chain.yaml --to ./tiny --stage tiny")
@takes_access
@takes_filename
def download(
    access: Access,
    target: Target,
    to: Annotated[str, typer.Option(metavar="FOLDER", help="New folder for the files; an empty one may exist.")],
    stage: Stage = None,
    kind: Annotated[
        Kind,
        typer.Option(
            "--format",
            metavar="|".join(Kind),
            parser=choice_of(Kind),
            help="What to download; onnx: the folder of the stage's ONNX files.",
        ),
    ] = Kind.CHECKPOINT,
    storage: Storage = None,
    overrides: Overrides = None,
    _verbose: Verbose = False,
) -> None:
    """Download a committed checkpoint and compare every file with its manifest; default: the last stage.

    The folder appears when all files are there and verified. transformers loads it as it is. With --format onnx, it has
    the ONNX files that the stage's `export` asked for, and what their tokenizer needs. If the command is stopped,
    nothing is left. If it is killed, FOLDER.part-* is left, and the next download to FOLDER deletes it. S3 credentials
    come from the environment, as for AWS's own tools.
    """
    folder = Path(to).expanduser().absolute()
    # Before the store is read: a checkpoint can have many gigabytes.
    _check_folder(folder)
    chain, _ = read_target(
        target,
        storage=storage,
        overrides=overrides or (),
        fetch_chain=lambda name: connect(access).fetch_chain(name),
        note=print_message,
    )
    from distillchain_store.exports import download_export
    from distillchain_store.verified import download_checkpoint

    plan = build_plan(chain)
    try:
        store = open_chain_store(chain.spec.storage)
        manifest = find_commit(store, plan, stage)
        if kind is Kind.ONNX:
            record = find_export(store, manifest)
            where = f"{store.uri}/{export_prefix(record.digest, record.attempt)}"
            print_message(f"{manifest.stage}: {_total(record.files)} from {where}")
            _write(folder, lambda part: download_export(store, record, part))
        else:
            print_message(f"{manifest.stage}: {_total(manifest.checkpoint_files)} from {manifest.checkpoint}")
            _write(folder, lambda part: download_checkpoint(store, manifest, part))
    except StageError as error:
        raise RunFailed(str(error)) from error
    print_result(str(folder))


def find_commit(store: Store, plan: Plan, name: str | None) -> Manifest:
    """The commit of a stage; without a name, that of the last stage.

    Raises: BadInput for an unknown stage; RunFailed when it is not committed; CheckpointCorrupt; OtherRelease.
    """
    from distillchain_store.commit import read_manifest

    names = [stage.name for stage in plan.students]
    if name is not None and name not in names:
        raise BadInput(f"--stage: got {name}, expected {' or '.join(names)}")
    wanted = plan.stage(name) if name else plan.students[-1]
    assert wanted is not None
    manifest = read_manifest(store, wanted.digest)
    if manifest is None:
        committed = [each.name for each in plan.students if read_manifest(store, each.digest) is not None]
        ready = f"; committed: {', '.join(committed)} (--stage)" if committed else ""
        raise RunFailed(f"stage {wanted.name} is not committed in {store.uri}{ready}")
    return manifest


def _check_folder(folder: Path) -> None:
    # The last step is a rename, which replaces an empty folder and neither of these.
    if folder.is_symlink():
        raise BadInput(f"--to: {folder} is a symbolic link; name a folder")
    if folder.is_mount():
        raise BadInput(f"--to: {folder} is a mount point; name a new folder in it")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"--to: {folder} exists; name a new folder, so that no other files mix with the checkpoint")
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--to: {folder} cannot be used ({error.strerror}); name another folder") from error


def find_export(store: Store, manifest: Manifest) -> ExportRecord:
    """The export of a committed stage with the most formats. Raises: RunFailed if it has none; CheckpointCorrupt."""
    from distillchain_store.exports import read_export

    record = read_export(store, manifest, "onnx-int8") or read_export(store, manifest, "onnx")
    if record is None:
        raise RunFailed(
            f"stage {manifest.stage} has no ONNX files in {store.uri}; add `export: {{onnx: {{}}}}` to it, and run the "
            "chain again or wait for the condition ExportsReady"
        )
    return record


def _total(files: Iterable[FileEntry]) -> str:
    return size(sum(entry.size_bytes for entry in files))


def _write(folder: Path, fetch: Callable[[Path], None]) -> None:
    """Fetches into a new folder beside `folder`, which then takes its name."""
    try:
        with partial_folder(folder) as part:
            fetch(part / folder.name)
            (part / folder.name).rename(folder)
    except OSError as error:
        raise RunFailed(f"--to: {folder} cannot be written ({error.strerror}); name another folder") from error
