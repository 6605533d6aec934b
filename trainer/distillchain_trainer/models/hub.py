"""Fetches what hf:// names: checkpoints and data sets. The one place that knows the hub's errors."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distillchain_api.failures import StageError
from distillchain_store.connection_faults import proxy_variable, tls_fault
from distillchain_store.credential_faults import describe_fault
from distillchain_store.errors import DiskFull, StorageDenied, StorageUnavailable
from distillchain_trainer.errors import CheckpointInvalid, DataInvalid, first_line, translate_unforeseen
from distillchain_trainer.input_cache import hub_folder, input_cache, is_altered

log = logging.getLogger(__name__)


def split_name(uri: str) -> tuple[str, str | None]:
    """hf://repo@revision -> (repo, revision)."""
    name, _, revision = uri.removeprefix("hf://").partition("@")
    return name, revision or None


def fetch_snapshot(uri: str, *, field: str, choose: Callable[[list[str]], list[str]]) -> tuple[Path, str, list[str]]:
    """Downloads a checkpoint. Returns: its folder, its commit, and the names of all files in its top folder.

    Args:
        choose: picks the files to download by the names of all of them. It may raise CheckpointInvalid, and then
            nothing is downloaded.
    Raises: CheckpointInvalid, StorageDenied, StorageUnavailable.
    """
    import huggingface_hub

    name, revision = split_name(uri)
    with _errors(uri, field, CheckpointInvalid):
        # All names are needed, also of files that are not downloaded: they show why a checkpoint cannot be used.
        info = huggingface_hub.HfApi().model_info(name, revision=revision)
        # Only the top folder: onnx/, openvino/ and the like hold the same weights in other formats.
        files = [item.rfilename for item in info.siblings or [] if "/" not in item.rfilename]
        chosen = choose(files)
        # By commit, because the branch may move between the two requests.
        fetch = partial(huggingface_hub.snapshot_download, name, revision=info.sha, allow_patterns=chosen)
        folder = _from_cache(fetch, chosen) or Path(fetch())
    return folder, str(info.sha), files


def _from_cache(fetch: Callable[..., str], names: Sequence[str]) -> Path | None:
    """A snapshot in the cache that pods share; None: there is none, or it cannot be used."""
    shared, cache = hub_folder(), input_cache()
    if cache is None:
        return None
    if shared is None:
        cache.add_fault("written", "the folder hub cannot be created", is_full=False)
        return None
    try:
        folder = Path(fetch(cache_dir=shared))
        return _fetch_altered(folder, names, lambda: Path(fetch(cache_dir=shared)))
    except Exception as error:  # the client's downloader has no class of its own for a full disk
        known = translate_unforeseen(error)
        if not isinstance(known, DiskFull):
            raise
        cache.add_fault("written", "No space left on device", is_full=True)
        return None


def _fetch_altered(folder: Path, names: Sequence[str], fetch: Callable[[], Path]) -> Path:
    """Deletes files that are not what their names say, and fetches them again."""
    altered = [folder / name for name in names if is_altered(folder / name)]
    if not altered:
        return folder
    log.warning("altered files of the cache are fetched again", extra={"files": [str(path) for path in altered]})
    for path in altered:
        # The file itself and the link to it, or the client would take it for fetched.
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    return fetch()


def fetch_dataset(
    uri: str,
    config: str | None,
    splits: Mapping[str, str],
    *,
    folder: Path,
    field: str = "spec.task.dataset",
    names_field: str = "splits.{}",
) -> tuple[dict[str, Any], str]:
    """Downloads a data set. Returns: `datasets.Dataset` of each split, and their commit.

    Args:
        splits: names on the hub, by what the caller calls them.
        field: of the spec, for messages.
        names_field: of a split within `field`; `{}` stands for what the caller calls it.
    Raises: DataInvalid, StorageDenied, StorageUnavailable.
    """
    import datasets
    import huggingface_hub

    name, revision = split_name(uri)
    datasets.disable_progress_bars()
    with _errors(uri, f"{field}.uri", DataInvalid):
        # Everything below is read from this commit, also if the branch moves meanwhile.
        commit = str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
        known = datasets.get_dataset_config_names(name, revision=commit)
        # Checked here and not left to `datasets`, so that the message names the field.
        if config is not None and config not in known:
            raise DataInvalid(f"{field}.config: {uri} has no {config}; expected one of {', '.join(known)}")
        available = datasets.get_dataset_split_names(name, config, revision=commit)
        for role, split in splits.items():
            if split not in available:
                raise DataInvalid(
                    f"{field}.{names_field.format(role)}: {uri} has no split {split}; expected one of "
                    f"{', '.join(available)}"
                )
        tables = {
            role: datasets.load_dataset(name, config, split=split, revision=commit, cache_dir=str(folder / "hub"))
            for role, split in splits.items()
        }
    return tables, commit


@contextlib.contextmanager
def _errors(uri: str, field: str, invalid: type[StageError]) -> Iterator[None]:
    """Translates errors of the hub's client and of `datasets`. `invalid`: what a wrong name or content is."""
    _check_environment(field)
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        # First, because the hub's client reports a certificate that is not trusted as a lost connection.
        fault = tls_fault(error, bundle_variable="SSL_CERT_FILE")
        if fault:
            raise StorageDenied(f"{field}: {uri} cannot be fetched from the hub: {fault}") from error
        translated = (
            translate_unforeseen(error)  # a full disk, which `datasets` wraps like everything else
            or _of_hub(error, uri, field, invalid)
            or _of_dataset(error, uri, field, invalid)
        )
        if translated is None:
            raise
        raise translated from error


def _check_environment(field: str) -> None:
    """What would fail later with a message about the checkpoint. Raises: StorageDenied."""
    import huggingface_hub

    # As the client uses it, without line breaks around it; from HF_TOKEN or from its own file.
    fault = describe_fault(huggingface_hub.get_token() or "", is_header=True)
    if fault:
        raise StorageDenied(f"{field}: HF_TOKEN {fault}, expected the token alone; correct the Secret that it is from")
    bundle = os.environ.get("SSL_CERT_FILE")
    if bundle and not Path(bundle).is_file():
        raise StorageDenied(
            f"{field}: SSL_CERT_FILE: {bundle} is no file; mount PEM certificates there, or remove the variable"
        )


def _of_hub(error: Exception, uri: str, field: str, invalid: type[StageError]) -> StageError | None:
    """What an error of the hub's client means; None: it is of another library."""
    from huggingface_hub import errors as hf

    # Before RepositoryNotFoundError, its base class: the name is right, but the terms must be accepted.
    if isinstance(error, hf.GatedRepoError):
        return StorageDenied(f"{field}: {uri} is gated; accept its terms and give the pod HF_TOKEN")
    if isinstance(error, hf.RepositoryNotFoundError | hf.HFValidationError):
        return invalid(f"{field}: the hub has no {uri} (or HF_TOKEN may not see it); correct the name")
    if isinstance(error, hf.RevisionNotFoundError):
        return invalid(f"{field}: the hub has no revision of that name for {uri}; correct it")
    # After the classes above, which are derived from it.
    if isinstance(error, hf.HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            return StorageDenied(f"{field}: the hub refused {uri} ({status}); correct HF_TOKEN")
        return StorageUnavailable(f"{field}: the hub answered {status} for {uri}; check its status and HF_ENDPOINT")
    # RuntimeError itself: hf_xet, which downloads large files, has no classes for its errors.
    offline = isinstance(error, hf.OfflineModeIsEnabled | hf.LocalEntryNotFoundError) or type(error) is RuntimeError
    if offline or _is_of_connection(error):
        return StorageUnavailable(
            f"{field}: the hub did not answer for {uri} ({type(error).__name__}{_through_proxy()}); check the network, "
            "HF_ENDPOINT and HF_HUB_OFFLINE, or copy it to s3:// and name it there"
        )
    return None


def _of_dataset(error: Exception, uri: str, field: str, invalid: type[StageError]) -> StageError | None:
    """What an error of `datasets` means, which wraps every cause, also a lost connection. None: a mistake of ours."""
    from datasets.exceptions import DatasetsError

    if not isinstance(error, ValueError | FileNotFoundError | DatasetsError):
        return None
    root: BaseException = error
    # Explicit causes only: the implicit context may be an attempt that failed before, such as an empty cache.
    while root.__cause__ is not None:
        root = root.__cause__
    if _is_of_connection(root):
        return StorageUnavailable(
            f"{field}: the connection to the hub broke while {uri} was read ({type(root).__name__}{_through_proxy()}); "
            "check the network, or copy it to s3:// and name it there"
        )
    return invalid(f"{field}: {uri} cannot be read: {first_line(root)}")


def _is_of_connection(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    # The base class of its HTTP client, whose package has changed its name between releases of the hub's client.
    http_error = HfHubHTTPError.__mro__[1]
    return isinstance(error, (http_error, ConnectionError, TimeoutError))


def _through_proxy() -> str:
    from huggingface_hub.constants import ENDPOINT

    variable = proxy_variable(ENDPOINT)
    return f", through the proxy in {variable}" if variable else ""
