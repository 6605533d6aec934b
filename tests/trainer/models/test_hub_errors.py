"""Errors of the hub's client and of `datasets`, translated at one boundary. Whole stages from a hub: test_hub.py."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from datasets.exceptions import DatasetGenerationError

from cluster.certificates import Authority
from distillchain_store.errors import DiskFull, StorageDenied, StorageUnavailable
from distillchain_trainer.models import hub
from store.gateway import Answer, Gateway

pytestmark = pytest.mark.models  # their libraries take seconds to import


@pytest.fixture(autouse=True)
def _fresh_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The client keeps its connections, with certificates and proxies, until it is closed."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


def test_an_untrusted_certificate_of_a_hub_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pair = Authority(tmp_path / "authority").issue("hub", common_name="hub", hosts=["127.0.0.1"])
    with Gateway("http://127.0.0.1:9", lambda *_: Answer(404), certificate=pair) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        with pytest.raises(StorageDenied) as failure:
            hub.fetch_snapshot("hf://org/teacher", field="spec.teacher.model", choose=list)

    assert str(failure.value) == (
        "spec.teacher.model: hf://org/teacher cannot be fetched from the hub: its TLS certificate is not trusted (unable "
        "to get local issuer certificate); mount the certificate of the authority that signed it and set SSL_CERT_FILE "
        "to that file"
    )


@pytest.mark.parametrize(
    "token, fault",
    [
        ("hf_\u00e4bc", "contains a character that is not ASCII"),
        ('"hf_abc"', "is in quotation marks"),
        ("hf_a\tbc", "contains a line break or another invisible character"),
        ("\ufeffhf_abc", "contains a line break or another invisible character"),
    ],
)
def test_a_malformed_token_is_refused_at_once_and_not_shown(monkeypatch: pytest.MonkeyPatch, token: str, fault: str):
    monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(StorageDenied) as failure:
        hub.fetch_snapshot("hf://org/teacher", field="spec.teacher.model", choose=list)

    assert str(failure.value) == (
        f"spec.teacher.model: HF_TOKEN {fault}, expected the token alone; correct the Secret that it is from"
    )


def test_a_ca_bundle_of_the_hub_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nope/ca.pem")

    with pytest.raises(StorageDenied, match=r"^spec\.teacher\.model: SSL_CERT_FILE: /nope/ca\.pem is no file"):
        hub.fetch_snapshot("hf://org/teacher", field="spec.teacher.model", choose=list)


def test_a_proxy_on_the_way_to_the_hub_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.test")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    with pytest.raises(
        StorageUnavailable, match=r"the hub did not answer .* \(ConnectError, through the proxy in HTTPS_"
    ):
        hub.fetch_snapshot("hf://org/teacher", field="spec.teacher.model", choose=list)


def test_a_disk_that_is_full_while_a_data_set_is_prepared_is_no_fault_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`datasets` wraps the kernel's error."""

    def full(*_: object, **__: object) -> None:
        raise DatasetGenerationError("An error occurred") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", full)

    with pytest.raises(DiskFull, match="no space left on the disk"):
        hub.fetch_dataset("hf://org/reviews", None, {"train": "train"}, folder=tmp_path)


def test_a_download_that_breaks_without_an_error_class_is_an_outage(monkeypatch: pytest.MonkeyPatch):
    """hf_xet, which downloads large files, raises RuntimeError for everything."""

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("Data processing error: Connection reset by peer")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", breaks)

    with pytest.raises(StorageUnavailable, match=r"spec\.teacher\.model: the hub did not answer for hf://org/teacher"):
        hub.fetch_snapshot("hf://org/teacher", field="spec.teacher.model", choose=list)
