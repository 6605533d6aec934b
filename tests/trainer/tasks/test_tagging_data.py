"""Words and tags from files as users have them: read as written, or refused with file, line and word."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from distillchain_trainer.errors import DataInvalid
from later import Later
from trainer.tagging_parts import EVERY_KIND, LABELS, as_conll, as_jsonl, read_all

datasets = Later("datasets")

ROWS = [EVERY_KIND, [["no", "O"], ["name", "O"]]]
WORDS = [("Anna", "Berg", "saw", "Porto", "Bank"), ("no", "name")]
TAGS = [[1, 2, 0, 3, 5], [0, 0]]
# One row with an entity of each kind, to which the rows of a test are added.
BASE = as_conll([EVERY_KIND]) + "\n"

GOOD_FILES = [
    pytest.param("a.conll", as_conll(ROWS), id="tabs"),
    pytest.param("a.txt", as_conll(ROWS, mark=" "), id="blanks"),
    pytest.param("a.txt", as_conll(ROWS, mark="   "), id="several blanks"),
    pytest.param("emerging.test.annotated", as_conll(ROWS), id="a name with an ending of its own"),
    pytest.param("train", as_conll(ROWS), id="a name without an ending"),
    pytest.param("a.tsv", as_conll(ROWS), id="tsv without a header"),
    pytest.param("a.conll", as_conll(ROWS).replace("\n\n", "\n\t\n"), id="a tab between sentences"),
    pytest.param("a.conll", "\n\n" + as_conll(ROWS).replace("\n\n", "\n\n\n") + "\n\n", id="several blank lines"),
    pytest.param("a.conll", as_conll(ROWS).replace("\n", "\r\n"), id="CRLF"),
    pytest.param("a.conll", "\ufeff" + as_conll(ROWS), id="byte order mark"),
    pytest.param("a.conll", as_conll(ROWS).removesuffix("\n"), id="no last line break"),
    pytest.param("a.conll", "# text = Anna Berg\n" + as_conll(ROWS), id="comments, as CoNLL-U has them"),
    pytest.param(
        "a.conll",
        "\n# id 5-a\tdomain=en\n" + as_conll(ROWS, mark=" _ _ ").replace("\n\n", "\n\n# id 6-b\tdomain=en\n", 1),
        id="comments with tabs, as MultiCoNER has them",
    ),
    pytest.param(
        "a.txt",
        "-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\nBerg NNP I-NP I-PER\nsaw VBD B-VP O\nPorto NNP B-NP B-LOC\n"
        "Bank NNP I-NP B-ORG\n\n-DOCSTART-\n\nno DT B-NP O\nname NN I-NP O\n",
        id="four columns and -DOCSTART-, as CoNLL-2003 has them",
    ),
    pytest.param("a.jsonl", as_jsonl(ROWS), id="jsonl"),
    pytest.param(
        "a.jsonl",
        '{"words": ["Anna", "Berg", "saw", "Porto", "Bank"], "tags": [1, 2, 0, 3, 5]}\n'
        '{"id": 7, "tags": [0, "O"], "words": ["no", "name"]}\n',
        id="jsonl with numbers and other columns",
    ),
]


@pytest.mark.parametrize("name, content", GOOD_FILES)
def test_words_and_tags_are_read_as_written(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_bytes(content.encode())

    data, warnings = read_all(tmp_path, name)

    assert data.train.texts == WORDS
    assert data.train.targets == TAGS
    assert not [warning for warning in warnings if "never has the tag" not in warning]


@pytest.mark.parametrize("name, content", [("a.conll.gz", as_conll(ROWS)), ("a.jsonl.gz", as_jsonl(ROWS))])
def test_compressed_files(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))

    assert read_all(tmp_path, name)[0].train.texts == WORDS


def test_parquet(tmp_path: Path):
    table = pyarrow.table({"tags": TAGS, "id": [1, 2], "words": [list(words) for words in WORDS]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")

    train = read_all(tmp_path, "a.parquet")[0].train

    assert (train.texts, train.targets) == (WORDS, TAGS)
    assert train.place(1).endswith("a.parquet, row 2")


@pytest.mark.parametrize("mark", ["\t", " "])
def test_odd_words_stay_words(tmp_path: Path, mark: str):
    words = ["#", "\u00a0", "\u200b", "-", "\u2028", "don't", "\U0001f600", '"', "10\u00a0000", "1", "2"]
    (tmp_path / "a.conll").write_text(as_conll([EVERY_KIND, [[word, "O"] for word in words]], mark=mark))

    assert read_all(tmp_path, "a.conll")[0].train.texts[1] == tuple(words)


def test_a_sentence_is_named_by_its_first_line(tmp_path: Path):
    (tmp_path / "a.conll").write_text("\n" + BASE + "\n" + as_conll([[["a", "O"], ["b", "O"]]]))

    train = read_all(tmp_path, "a.conll")[0].train

    assert [train.place(row).rsplit(":")[-1] for row in range(2)] == ["2", "9"]


@pytest.mark.parametrize("columns, tags", [({"tags": "2"}, TAGS[0]), ({"tags": "3"}, [0] * 5), ({}, [0] * 5)])
def test_the_column_of_the_tags_is_chosen_by_number_or_is_the_last(
    tmp_path: Path, columns: dict[str, str], tags: list[int]
):
    """An annotated test set may have the tags of several people."""
    rows = [[[word, tag, "O"] for word, tag in EVERY_KIND]]
    (tmp_path / "test.annotated").write_text(as_conll([[["x", "B-PER", "B-PER"]], *rows]))
    (tmp_path / "a.conll").write_text(BASE)

    test = read_all(tmp_path, "a.conll", splits={"test": "test.annotated"}, dataset={})[0].test
    (tmp_path / "a.conll").write_text(as_conll([[["x", *[tag] * 2] for _, tag in EVERY_KIND]]))
    (tmp_path / "validation.conll").write_text(as_conll([[["y", *[tag] * 2] for _, tag in EVERY_KIND]]))
    chosen = read_all(tmp_path, "a.conll", splits={"test": "test.annotated"}, dataset=columns)[0].test

    assert test is not None
    assert test.targets[1] == [0] * 5
    assert chosen is not None
    assert chosen.targets[1] == tags


def test_tags_match_in_another_case_with_a_warning(tmp_path: Path):
    (tmp_path / "a.conll").write_text(as_conll([[[word, tag.lower()] for word, tag in EVERY_KIND]]))

    data, warnings = read_all(tmp_path, "a.conll")

    assert data.train.targets == TAGS[:1]
    assert any("differ from spec.task.labels in case: b-per for B-PER, i-per for I-PER, o for O" in w for w in warnings)


BAD_FILES = [
    pytest.param(
        "a.conll", "word\n", {}, "a.conll:1: 1 column, expected a word and its tag with a tab or space between them",
        id="one column",
    ),
    pytest.param(
        "a.conll", "a\tO\nb\n", {},
        "a.conll:2: 1 column, the lines before have 2; a sentence ends with a blank line, and columns are separated by "
        "tabs, or by spaces in a file without tabs",
        id="a line without its tag",
    ),
    pytest.param(
        "a.txt", "# text = Anna saw Porto\nAnna B-PER\n", {},
        "a.txt:2: 2 columns, the lines before have 6; line 1 begins with #: remove it if it is a comment, and all others",
        id="a comment with blanks before the first word",
    ),
    pytest.param(
        "a.txt", "Anna B-PER\n\n# text = no name\nno O\n", {},
        "a.txt:3: 5 columns, the lines before have 2; line 3 begins with #: remove it if it is a comment",
        id="a comment with blanks",
    ),
    pytest.param(
        "a.txt", "#rome O\nNew York B-LOC\n", {},
        "a.txt:2: 3 columns, the lines before have 2; a sentence ends with a blank line",
        id="a word with a blank, after a word that begins with #",
    ),
    pytest.param(
        "a.conll", BASE + "x\tB-ANIMAL\n", {},
        "a.conll:7, word 1 (x): got \"B-ANIMAL\", expected one of O, B-PER, I-PER, B-LOC, I-LOC, B-ORG, ..., or a number "
        "from 0 to 6 in that order; correct the tag or spec.task.labels",
        id="unknown tag",
    ),
    pytest.param("a.tsv", "token\ttag\na\tO\n", {}, 'a.tsv:1, word 1 (token): got "tag", expected one of O', id="a header"),
    pytest.param(
        "a.conll", BASE + "x\tI-PER\ny\tI-PER\n\nz\tI-LOC\n", {},
        "a.conll: 2 of 5 entities begin with I- instead of B-, first at {file}:7, word 1; the tags are not IOB2 "
        "(perhaps IOB1): let the first word of every entity have the tag B-",
        id="IOB1",
    ),
    pytest.param("a.conll", "", {}, "a.conll: the file is empty; expected a line with a word and its tag for each word", id="empty"),
    pytest.param("a.conll", "-DOCSTART-\tO\n\n", {}, "a.conll has no rows; expected at least one", id="no sentence"),
    pytest.param(
        "a.conll", "Anna\tB-PER\nBank\tB-ORG\n", {},
        "a.conll has no entity of the kind LOC; add such rows or remove B-LOC and I-LOC from spec.task.labels",
        id="a kind that train lacks",
    ),
    pytest.param("a.conll", "a\tO\rb\tO\r", {}, "its lines end in CR alone", id="lines that end in CR"),
    pytest.param("a.conll", "a\x00\tO\n", {}, "a.conll:1: the line has a NUL character", id="NUL"),
    pytest.param(
        "a.conll", BASE, {"tags": "3"}, "a.conll:1: 2 columns, but spec.task.dataset.tags is 3; correct one",
        id="no such column",
    ),
    pytest.param(
        "a.conll", BASE, {"words": "2"},
        "a.conll:1: words and tags are both in column 2; give their numbers in spec.task.dataset.words and "
        "spec.task.dataset.tags",
        id="the same column",
    ),
    pytest.param(
        "a.conll", BASE, {"words": "tokens"},
        'spec.task.dataset.words: got "tokens", expected the number of a column, counted from 1: {file} is read as CoNLL, '
        "whose columns have no names; a file with named columns ends in .jsonl or .parquet",
        id="the name of a column",
    ),
    pytest.param(
        "a.conll", as_conll([[[str(number), *cells] for number, cells in enumerate(EVERY_KIND, 1)]]), {},
        "a.conll:1: the first column numbers the words of a sentence; write into spec.task.dataset.words the number of the "
        'column that has the words, such as words: "2"',
        id="numbers of words, as CoNLL-U has them",
    ),
    pytest.param("a.conll", as_jsonl(ROWS), {}, "the name ends in .conll, but the content is JSON; let its name end in .jsonl", id="JSON"),
    pytest.param("rows", as_jsonl(ROWS), {}, "rows: the content is JSON; let its name end in .jsonl", id="JSON without an ending"),
    pytest.param("a.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n', {}, 'a.jsonl:1: no column "words" (spec.task.dataset.words); expected one of tags, tokens', id="jsonl: other names"),
    pytest.param(
        "a.jsonl", '{"words": "Anna Berg", "tags": ["O"]}\n', {},
        'a.jsonl:1, column "words": got "Anna Berg", expected a list of words', id="jsonl: a text",
    ),
    pytest.param(
        "a.jsonl", '{"words": ["a"], "tags": "O"}\n', {},
        'a.jsonl:1, column "tags": got "O", expected a list of tags', id="jsonl: a tag for a list",
    ),
    pytest.param(
        "a.jsonl", '{"words": ["a", "b"], "tags": ["O"]}\n', {}, "a.jsonl:1: 2 words, but 1 tags; give each word one tag",
        id="jsonl: another number of tags",
    ),
    pytest.param(
        "a.jsonl", '{"words": [], "tags": []}\n', {},
        'a.jsonl:1, column "words": the list of words is empty; remove the row', id="jsonl: no words",
    ),
    pytest.param(
        "a.jsonl", '{"words": ["a", 3], "tags": ["O", "O"]}\n', {},
        'a.jsonl:1, column "words", word 2: got 3, expected text; convert it to text, or name another column', id="jsonl: a number for a word",
    ),
    pytest.param(
        "a.jsonl", '{"words": ["a", null], "tags": ["O", "O"]}\n', {}, 'a.jsonl:1, column "words", word 2: ', id="jsonl: null",
    ),
    pytest.param(
        "a.jsonl", '{"words": ["a\\ud83d"], "tags": ["O"]}\n', {},
        'a.jsonl:1, column "words", word 1: character 2 is \\ud83d, half of a surrogate pair', id="jsonl: half a character",
    ),
    pytest.param(
        "a.jsonl", '{"words": ["a"], "tags": [["O"]]}\n', {},
        'a.jsonl:1, word 1 (a): got ["O"], expected the name or number of a tag', id="jsonl: a list for a tag",
    ),
    pytest.param("a.jsonl", '{"words": ["a"], "tags": [7]}\n', {}, "a.jsonl:1, word 1 (a): got 7, expected one of O", id="jsonl: no such number"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, dataset, message", BAD_FILES)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, content: str, dataset: dict[str, str], message: str):
    (tmp_path / name).write_bytes(content.encode())

    with pytest.raises(DataInvalid) as error:
        read_all(tmp_path, name, dataset=dataset)

    assert message.replace("{file}", f"file://{tmp_path}/{name}") in str(error.value)


def test_a_few_entities_that_begin_with_i_are_a_warning(tmp_path: Path):
    (tmp_path / "a.conll").write_text(as_conll([EVERY_KIND] * 10 + [[["x", "O"], ["Porto", "I-LOC"]]]))

    data, warnings = read_all(tmp_path, "a.conll")

    assert data.train.targets[-1] == [0, 4]
    place = f"file://{tmp_path}/a.conll"
    assert (
        f"{place}: 1 of 31 entities begin with I- instead of B-, first at {place}:61, word 2; they count as "
        "entities, as in seqeval"
    ) in warnings


def test_validation_without_entities_is_refused(tmp_path: Path):
    (tmp_path / "a.conll").write_text(BASE)
    (tmp_path / "validation.conll").write_text("a\tO\n")

    with pytest.raises(DataInvalid, match=r"no word of .*validation\.conll is in an entity"):
        read_all(tmp_path, "a.conll")


def test_a_kind_that_validation_lacks_and_a_tag_that_train_lacks_are_warnings(tmp_path: Path):
    (tmp_path / "a.conll").write_text(BASE)
    (tmp_path / "validation.conll").write_text("Porto\tB-LOC\n")

    warnings = read_all(tmp_path, "a.conll")[1]

    assert any("validation.conll has no entity of the kind PER, ORG, so no metric covers it" in w for w in warnings)
    assert any("a.conll never has the tag I-LOC, I-ORG, so no student learns it" in w for w in warnings)


def test_class_labels_are_matched_by_name(tmp_path: Path):
    tag, word = datasets.ClassLabel(names=[*LABELS[3:], *LABELS[:3]]), datasets.Value("string")
    features = datasets.Features({"words": datasets.List(word), "tags": datasets.List(tag)})
    numbers = [[(LABELS.index(name) - 3) % len(LABELS) for _, name in EVERY_KIND]]
    table = datasets.Dataset.from_dict({"words": [[word for word, _ in EVERY_KIND]], "tags": numbers}, features)
    table.to_parquet(tmp_path / "a.parquet")

    train = read_all(tmp_path, "a.parquet")[0].train

    assert train.targets == [[LABELS.index(name) for _, name in EVERY_KIND]]


def test_sentences_of_train_in_validation_are_counted(tmp_path: Path):
    (tmp_path / "a.conll").write_text(BASE)
    (tmp_path / "validation.conll").write_text(BASE + "\n" + as_conll([[["Porto", "B-LOC"]]]))

    warnings = read_all(tmp_path, "a.conll")[1]

    assert any("1 of 2 validation texts are also in train" in warning for warning in warnings)
