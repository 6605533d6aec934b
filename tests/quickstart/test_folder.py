"""The folder of the quick start: complete or refused, and the files of a user stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import prepare
import pytest
from errors import PackageError, PrepareError

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


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
    assert set(prepare.SCRIPTS) == {path.name for path in QUICKSTART.glob("*.py")}
