"""Numbers with names (ClassLabel of the library datasets), of the hub and in the Parquet files that it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from distillchain_trainer.data.tables import Table, read_table
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.label_names import with_names
from distillchain_trainer.tasks.sources import hub_table
from later import Later

datasets, pyarrow, parquet_files = Later("datasets"), Later("pyarrow"), Later("pyarrow.parquet")

COLUMNS = ["sentence", "label"]
Read: TypeAlias = Callable[[Any], Table]


@pytest.fixture(params=["hub", "parquet"])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Read:
    """Reads a data set of the hub, or one that was written to Parquet."""

    def parquet(table: Any) -> Table:
        table.to_parquet(tmp_path / "a.parquet")
        return read_table(tmp_path / "a.parquet", COLUMNS, name="a.parquet", warnings=StageWarnings())

    return parquet if request.param == "parquet" else lambda table: hub_table(table, COLUMNS, "hf://x, split train")


def a_table(label: Any, cells: list[Any]) -> Any:
    features = datasets.Features({"id": datasets.Value("string"), "sentence": datasets.Value("string"), "label": label})
    columns = {"id": ["0"] * len(cells), "sentence": ["x"] * len(cells), "label": cells}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize(
    "names, want",
    [
        pytest.param(["good", "bad"], ["good", "bad", -1], id="names in another order"),
        pytest.param(["BAD", "GOOD"], ["BAD", "GOOD", -1], id="another case"),
        pytest.param(["0", "1"], [0, 1, -1], id="names that are numbers are ignored"),
        pytest.param(None, [0, 1, -1], id="plain numbers"),
    ],
)
def test_class_numbers_are_read_by_their_names(read: Read, names: list[str] | None, want: list[object]):
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")

    table = with_names(read(a_table(label, [0, 1, -1])), ["bad", "good"], shown="")

    assert [row.cells for row in table.rows] == [("x", cell) for cell in want]


@pytest.mark.parametrize("written", ["null", "[]", "{", '{"info": null}', '{"info": {"features": [1]}}'])
def test_what_another_program_writes_in_the_same_place_of_a_parquet_file_is_ignored(tmp_path: Path, written: str):
    rows = pyarrow.table({"sentence": ["x"], "label": [1]}).replace_schema_metadata({"huggingface": written})
    parquet_files.write_table(rows, tmp_path / "a.parquet")

    table = read_table(tmp_path / "a.parquet", COLUMNS, name="a.parquet", warnings=StageWarnings())

    assert [row.cells for row in with_names(table, ["bad", "good"], shown="").rows] == [("x", 1)]


def test_labels_that_are_numbers_are_the_numbers_of_the_column(read: Read):
    table = with_names(read(a_table(datasets.ClassLabel(names=["bad", "good"]), [0, 1])), ["1", "0"], shown="")

    assert [row.cells[-1] for row in table.rows] == [0, 1]


@pytest.mark.parametrize("kind", ["List", "Sequence"])
def test_numbers_in_lists_are_read_by_their_names(read: Read, kind: str):
    label = getattr(datasets, kind)(datasets.ClassLabel(names=["price", "food", "service"]))

    table = with_names(read(a_table(label, [[0, 1], []])), ["food", "service", "price"], shown="")

    assert [row.cells[-1] for row in table.rows] == [["price", "food"], []]


def test_other_class_names_are_refused(read: Read):
    with pytest.raises(DataInvalid) as failure:
        with_names(
            read(a_table(datasets.ClassLabel(names=["neg", "pos"]), [0, 1])),
            ["positive", "negative"],
            shown="hf://imdb",
        )

    assert str(failure.value) == (
        "hf://imdb: its classes are neg, pos, spec.task.labels are positive, negative; "
        "name the labels as the data set does, in any order"
    )
