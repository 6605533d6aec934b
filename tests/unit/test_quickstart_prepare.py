"""The preparation of the quick start, without a network: selection of sentences, archives, folders and messages."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
sys.path.insert(0, str(QUICKSTART))  # a folder of scripts, not a package

import checkpoints  # noqa: E402
import packages  # noqa: E402
import prepare  # noqa: E402
import sentences  # noqa: E402
from errors import CheckpointError, PackageError, PrepareError, SourceError  # noqa: E402
from packages import Package  # noqa: E402
from sentences import Example, Rated  # noqa: E402

A_WHEEL = Package(
    name="a-model", version="1.2", file_name="a_model-1.2-py3-none-any.whl", sha256="a" * 64, size_bytes=9
)
AN_SDIST = Package(name="rated", version="0.5", file_name="rated-0.5.zip", sha256="b" * 64, size_bytes=9)


def some_sentences(count: int) -> list[str]:
    return [f"sentence number {number} of this test" for number in range(count)]


# --- which sentences, with which label, in which split


def test_the_split_of_a_sentence_does_not_depend_on_case_spacing_and_punctuation() -> None:
    variants = ["A fine film.", "a FINE film", '"A fine  film!"', "A fine film..."]
    assert {sentences.split_of(variant) for variant in variants} == {sentences.split_of("A fine film.")}


@pytest.mark.parametrize(
    ("sentence", "want_split"),
    [
        pytest.param("sentence number 0 of this test", "train", id="train"),
        pytest.param("sentence number 8 of this test", "validation", id="validation"),
        pytest.param("sentence number 22 of this test", "test", id="test"),
    ],
)
def test_the_split_of_a_sentence_is_the_same_on_every_machine(sentence: str, want_split: str) -> None:
    assert sentences.split_of(sentence) == want_split


def test_splits_are_disjoint_and_near_their_shares() -> None:
    rated = [Rated(sentence, 3.0) for sentence in some_sentences(5000)]
    splits = sentences.select([*rated, *rated]).splits
    counts = {split: len(examples) for split, examples in splits.items()}
    assert sum(counts.values()) == len({example.sentence for kept in splits.values() for example in kept}) == 5000
    # 10 % of 5000 is 500; four standard deviations (sqrt(5000 * 0.1 * 0.9) = 21) either way.
    assert abs(counts["validation"] - 500) < 85
    assert abs(counts["test"] - 500) < 85


def test_adding_sentences_does_not_change_the_split_of_others() -> None:
    few = sentences.select(Rated(sentence, 2.0) for sentence in some_sentences(50)).splits
    many = sentences.select(Rated(sentence, 2.0) for sentence in some_sentences(500)).splits
    assert all(example in many[split] for split, examples in few.items() for example in examples)


@pytest.mark.parametrize(
    ("mean_rating", "want_label"),
    [
        pytest.param(-4.0, "negative", id="worst"),
        pytest.param(-1.0, "negative", id="at the limit, below"),
        pytest.param(-0.999, None, id="near-neutral, below"),
        pytest.param(0.0, None, id="neutral"),
        pytest.param(0.999, None, id="near-neutral, above"),
        pytest.param(1.0, "positive", id="at the limit, above"),
        pytest.param(4.0, "positive", id="best"),
    ],
)
def test_the_label_is_the_sign_of_the_rating_and_near_neutral_ratings_have_none(
    mean_rating: float, want_label: str | None
) -> None:
    assert sentences.label_of(mean_rating) == want_label


def test_repeated_sentences_are_kept_once_and_contradicted_ones_are_dropped() -> None:
    rated = [Rated("Good.", 2.0), Rated("good", 3.0), Rated("So so.", 0.2), Rated("Sick!", 2.0), Rated("sick", -2.0)]
    selection = sentences.select(rated)
    kept = [example for examples in selection.splits.values() for example in examples]
    assert kept == [Example("Good.", "positive")]
    assert (selection.near_neutral, selection.repeated, selection.contradicted) == (1, 1, 2)


def test_sentences_without_letters_are_distinguished() -> None:
    assert sentences.identity(":-)") != sentences.identity(":-(")


# --- formats


def test_the_source_is_utf8_with_crlf_and_may_lack_the_last_line_break() -> None:
    data = "\ufeff1\t2.5\tTouché \u2013 Amélie!\r\n1_2\t-0.6\tlone \x85 control\r\n3\t-3\tend".encode()
    want_rated = [Rated("Touché \u2013 Amélie!", 2.5), Rated("lone control", -0.6), Rated("end", -3.0)]
    assert sentences.parse_ground_truth(data, "movie.txt") == want_rated


@pytest.mark.parametrize(
    ("data", "want_message"),
    [
        pytest.param(
            b"1\t1.0\tgood\n2\t2.0\tTouch\xe9\n",
            "m.txt line 2: byte 0xe9 is not UTF-8; expected UTF-8 text",
            id="latin-1",
        ),
        pytest.param(
            b"1\t1.0\tgood\tbad\n",
            "m.txt line 1: got 4 cells, expected 3 separated by tabs (id, mean rating, text)",
            id="a tab in the text",
        ),
        pytest.param(
            b"1\t1.0\tgood\n\n",
            "m.txt line 2: got 1 cells, expected 3 separated by tabs (id, mean rating, text)",
            id="empty line",
        ),
        pytest.param(
            b"1\tmany\tgood\n",
            "m.txt line 1: mean rating is 'many', expected a number from -4 to 4",
            id="text instead of a number",
        ),
        pytest.param(
            b"1\tnan\tgood\n", "m.txt line 1: mean rating is 'nan', expected a number from -4 to 4", id="not a number"
        ),
        pytest.param(
            b"1\t4.1\tgood\n", "m.txt line 1: mean rating is '4.1', expected a number from -4 to 4", id="out of range"
        ),
        pytest.param(b"1\t2.0\t \r\n", "m.txt line 1: the text is empty, expected a sentence", id="empty text"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(data: bytes, want_message: str) -> None:
    with pytest.raises(SourceError) as raised:
        sentences.parse_ground_truth(data, "m.txt")
    assert str(raised.value) == want_message


@pytest.mark.parametrize(
    ("text", "want_text"),
    [
        pytest.param("Lovely &amp; Amazing", "Lovely & Amazing", id="entity"),
        pytest.param("at &amp;#38; t's", "at & t's", id="entity escaped twice"),
        pytest.param("a\tb\r\nc\u00a0 d\u2028e", "a b c d e", id="white space of all kinds"),
        pytest.param("\"lone and ''two''", "\"lone and ''two''", id="quotation marks"),
        pytest.param("Touché \u2013 5 < 6", "Touché \u2013 5 < 6", id="nothing to clean"),
    ],
)
def test_cleaning_changes_only_entities_and_white_space(text: str, want_text: str) -> None:
    assert sentences.clean(text) == want_text


def test_quotation_marks_are_unchanged_in_the_tsv() -> None:
    examples = [Example('"lone at the start', "negative"), Example('a 5" screen, ""twice""', "positive")]
    want_bytes = b'sentence\tlabel\n"lone at the start\tnegative\na 5" screen, ""twice""\tpositive\n'
    assert sentences.to_tsv(examples) == want_bytes


def test_a_sentence_that_tsv_cannot_represent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sentence 'two\\tcells': has white space that TSV cannot represent"):
        sentences.to_tsv([Example("two\tcells", "positive")])


def test_the_balance_counts_a_missing_class_as_zero() -> None:
    assert sentences.balance([Example("fine", "positive")]) == {"negative": 0, "positive": 1}


# --- archives


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


# --- packages


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


# --- checkpoints


def test_old_tensor_names_become_current_ones_and_the_position_constant_is_dropped() -> None:
    old: dict[str, np.ndarray[Any, Any]] = {
        "bert.embeddings.LayerNorm.gamma": np.ones(2, np.float32),
        "cls.predictions.transform.LayerNorm.beta": np.zeros(2, np.float32),
        "embeddings.position_ids": np.arange(4),
        "bert.encoder.layer.0.output.dense.weight": np.eye(2, dtype=np.float32),
    }
    want_names = {
        "bert.embeddings.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
        "bert.encoder.layer.0.output.dense.weight",
    }
    assert checkpoints.modern_weights(old).keys() == want_names


def test_only_truncation_and_padding_of_the_tokenizer_are_removed() -> None:
    saved = {
        "version": "1.0",
        "truncation": {"max_length": 512},
        "padding": {"pad_id": 0},
        "model": {"vocab": {"a": 0}},
    }
    assert checkpoints.plain_tokenizer(saved) == {**saved, "truncation": None, "padding": None}


class PartlyLoaded:
    """Replaces a transformers class that found its file incomplete, because the real files are complete."""

    @classmethod
    def from_pretrained(cls, folder: Path, *, output_loading_info: bool) -> tuple[PartlyLoaded, dict[str, set[str]]]:
        missing = {"classifier.weight", "encoder.layer.3.output.dense.bias"}
        return cls(), {"missing_keys": missing, "unexpected_keys": {"heads.0"}, "mismatched_keys": set()}


def test_a_checkpoint_that_does_not_load_completely_names_the_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load_completely(PartlyLoaded, tmp_path / "tiny", may_be_new=("classifier.",), may_be_left=())
    assert str(raised.value) == (
        "tiny: does not load completely as PartlyLoaded: "
        "missing_keys encoder.layer.3.output.dense.bias, unexpected_keys heads.0"
    )


# --- the folder


def a_finished_folder(into: Path, *, recipe: str = "r1") -> Path:
    (into / "data").mkdir(parents=True)
    (into / "data" / "train.tsv").write_text("sentence\tlabel\n")
    (into / "README.txt").write_text("read me")
    (into / prepare.LOCK).touch()
    stamp = {"recipe": recipe, "files": prepare.describe_files(into)}
    (into / prepare.STAMP).write_text(json.dumps(stamp))
    return into


def test_a_finished_folder_is_complete_even_with_a_file_of_the_user_in_it(tmp_path: Path) -> None:
    into = a_finished_folder(tmp_path / "q")
    (into / "data" / "notes.txt").write_text("mine")
    assert prepare.why_incomplete(into, "r1") is None


@pytest.mark.parametrize(
    ("path", "content", "want_reason"),
    [
        pytest.param("data/train.tsv", "sentence\tlabex\n", "data/train.tsv is changed", id="same size, other bytes"),
        pytest.param("data/train.tsv", None, "data/train.tsv is missing", id="missing"),
        pytest.param("prepared.json", None, "it has not been finished before", id="no stamp: stopped too early"),
        pytest.param("prepared.json", "{", "prepared.json is damaged", id="incomplete stamp"),
        pytest.param("prepared.json", "[]", "prepared.json is damaged", id="stamp of another shape"),
        pytest.param(
            "prepared.json",
            '{"recipe": "r0", "files": {}}',
            "it was created by another version of these scripts",
            id="other scripts",
        ),
    ],
)
def test_an_incomplete_folder_gives_the_reason(
    tmp_path: Path, path: str, content: str | None, want_reason: str
) -> None:
    into = a_finished_folder(tmp_path / "q")
    (into / path).unlink() if content is None else (into / path).write_text(content)
    assert prepare.why_incomplete(into, "r1") == want_reason


def test_a_failure_leaves_no_stamp_and_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into = a_finished_folder(tmp_path / "q")
    (into / f"{prepare.UNFINISHED}killed").mkdir()

    def fail(*_: object) -> None:  # a registry that stops answering
        raise PackageError("no network")

    monkeypatch.setattr(prepare, "build_checkpoint", fail)
    with pytest.raises(PackageError, match="no network"):
        prepare.prepare(into, "r1")
    assert sorted(path.name for path in into.iterdir()) == [prepare.LOCK, "README.txt", "data"]
    assert prepare.why_incomplete(into, "r1") == "it has not been finished before"


def test_a_folder_with_files_of_the_user_is_refused_and_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    assert prepare.main(["--into", str(tmp_path)]) == 1
    want_message = f"prepare.py: --into {tmp_path}: is not empty and was not created by this script; name a new or an empty folder\n"
    assert capsys.readouterr() == ("", want_message)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_second_call_says_that_there_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into = a_finished_folder(tmp_path / "q", recipe=prepare.recipe_digest())
    assert prepare.main(["--into", str(into)]) == 0
    want_line = f"{into} is complete: 2 files, 0.0 MB, agree with prepared.json; nothing to do\n"
    assert capsys.readouterr() == (want_line, "")


def test_without_the_tools_the_message_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "TOOLS", ("json", "no_such_tool"))
    with pytest.raises(
        PrepareError, match=r": has no no_such_tool, needed to convert and try the checkpoints; run this in"
    ):
        prepare.check_tools()


def test_the_recipe_covers_every_script_of_the_folder() -> None:
    assert set(prepare.SCRIPTS) <= {path.name for path in QUICKSTART.glob("*.py")}
    imported = {"checkpoints.py", "errors.py", "packages.py", "pip_without_builds.py", "prepare.py", "sentences.py"}
    assert set(prepare.SCRIPTS) == imported
