"""What hf:// names: snapshots of checkpoints and data sets. The one place that knows the hub's errors."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distillchain_api.failures import StageError
from distillchain_store.errors import StorageDenied, StorageUnavailable
from distillchain_trainer.errors import CheckpointInvalid, DataInvalid, first_line

log = logging.getLogger(__name__)

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]


def split_name(uri: str) -> tuple[str, str | None]:
    """hf://repo@revision -> (repo, revision)."""
    name, _, revision = uri.removeprefix("hf://").partition("@")
    return name, revision or None


def fetch_snapshot(uri: str, *, field: str) -> tuple[Path, str, list[str]]:
    """A checkpoint's folder, its commit, and the names of all files in the repository's top folder.

    Raises: CheckpointInvalid, StorageDenied, StorageUnavailable.
    """
    import huggingface_hub

    name, revision = split_name(uri)
    with _errors(uri, field, CheckpointInvalid):
        info = huggingface_hub.HfApi().model_info(name, revision=revision)
        # Only the top folder: onnx/, openvino/ and the like hold other forms of the same weights.
        files = [item.rfilename for item in info.siblings or [] if "/" not in item.rfilename]
        wanted = [file for file in files if any(Path(file).match(pattern) for pattern in WANTED)]
        folder = huggingface_hub.snapshot_download(name, revision=info.sha, allow_patterns=wanted or WANTED)
    return Path(folder), str(info.sha), files


def fetch_dataset(
    uri: str, config: str | None, splits: Mapping[str, str], *, folder: Path
) -> tuple[dict[str, Any], str]:
    """`datasets.Dataset` of each split, and the commit they are of.

    Raises: DataInvalid, StorageDenied, StorageUnavailable.
    """
    import datasets
    import huggingface_hub

    name, revision = split_name(uri)
    datasets.disable_progress_bars()
    with _errors(uri, "spec.task.dataset.uri", DataInvalid):
        commit = str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
        known = datasets.get_dataset_config_names(name, revision=commit)
        if config is not None and config not in known:
            raise DataInvalid(f"spec.task.dataset.config: {uri} has no {config}; expected one of {', '.join(known)}")
        there = datasets.get_dataset_split_names(name, config, revision=commit)
        for role, split in splits.items():
            if split not in there:
                raise DataInvalid(
                    f"spec.task.dataset.splits.{role}: {uri} has no split {split}; expected one of {', '.join(there)}"
                )
        tables = {
            role: datasets.load_dataset(name, config, split=split, revision=commit, cache_dir=str(folder / "hub"))
            for role, split in splits.items()
        }
    return tables, commit


def _http_error() -> type[Exception]:
    """What the hub's HTTP client raises when there is no connection."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__mro__[1]
    return base


@contextlib.contextmanager
def _errors(uri: str, field: str, invalid: type[StageError]) -> Iterator[None]:
    from huggingface_hub import errors as hf

    try:
        yield
    except StageError:
        raise
    except hf.GatedRepoError as error:
        raise StorageDenied(f"{field}: {uri} is gated; accept its terms and give the pod HF_TOKEN") from error
    except (hf.RepositoryNotFoundError, hf.HFValidationError) as error:
        raise invalid(f"{field}: the hub has no {uri} (or HF_TOKEN may not see it); correct the name") from error
    except hf.RevisionNotFoundError as error:
        raise invalid(f"{field}: the hub has no revision of that name for {uri}; correct it") from error
    except hf.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            raise StorageDenied(f"{field}: the hub refused {uri} ({status}); correct HF_TOKEN") from error
        raise StorageUnavailable(f"{field}: the hub answered {status} to {uri}; it is tried again") from error
    except (hf.OfflineModeIsEnabled, hf.LocalEntryNotFoundError, _http_error(), ConnectionError, TimeoutError) as error:
        raise StorageUnavailable(
            f"{field}: the hub did not answer for {uri} ({type(error).__name__}); check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE, or copy it to s3:// and name it there"
        ) from error
    except _unreadable() as error:
        root: BaseException = error
        while root.__cause__ is not None:  # not what it only came upon on the way, such as a cache that has nothing yet
            root = root.__cause__
        if isinstance(root, _http_error() | ConnectionError | TimeoutError):
            raise StorageUnavailable(
                f"{field}: the hub broke off while {uri} was read ({type(root).__name__}); check the network, or copy "
                "it to s3:// and name it there"
            ) from error
        raise invalid(f"{field}: {uri} cannot be read: {first_line(root)}") from error


def _unreadable() -> tuple[type[Exception], ...]:
    """What `datasets` raises for a data set it cannot read, and whatever a file of it was the reason."""
    from datasets.exceptions import DatasetsError

    return ValueError, FileNotFoundError, DatasetsError
