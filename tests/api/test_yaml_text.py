"""YAML and JSON are read as kubectl reads them, or refused in a plain sentence with line and column."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.build import ensure_binaries
from distillchain_api.faults import BadDocument
from distillchain_api.yaml_text import load_documents, load_yaml

SCALARS: dict[str, Any] = {
    # numbers
    "1_000": 1000,
    "1__0": 10,
    "0.1_": 0.1,
    "+12": 12,
    "-0": 0,
    "0o17": 15,
    "0O17": 15,
    "017": 15,
    "018": 18,
    "0o8": "0o8",
    "0x10": 16,
    "-0x10": -16,
    "0xZ": "0xZ",
    "0x1p-2": "0x1p-2",
    "0b11": 3,
    "0b12": "0b12",
    "1e3": 1000,
    "1e-4": 0.0001,
    "12e03": 12000,
    "1.5E+3": 1500,
    "1e5_0": 1e50,
    ".5": 0.5,
    "-.5": -0.5,
    ".5_0": 0.5,
    "._5": "._5",
    "5.": 5,
    "5.0": 5,
    "-0.0": 0,
    ".": ".",
    "1.2.3": "1.2.3",
    "9007199254740993": 9007199254740993,
    "9223372036854775807": 9223372036854775807,
    "9223372036854775808": 9223372036854775808.0,
    "100000000000000000000": 1e20,
    "0777777777777777777777777": 777777777777777777777777.0,
    "1e22": 1e22,
    "1e400": "1e400",
    "1e-400": 0,
    "1:30": "1:30",
    "190:20:30.15": "190:20:30.15",
    "1,000": "1,000",
    # true, false and null
    **dict.fromkeys(("y", "Y", "yes", "Yes", "on", "ON", "true", "TRUE"), True),
    **dict.fromkeys(("n", "N", "no", "No", "off", "OFF", "false", "False"), False),
    **dict.fromkeys(("~", "null", "NULL"), None),
    "tRUE": "tRUE",
    "nUll": "nUll",
    # text
    "2024-01-01": "2024-01-01",
    "2001-12-14t21:59:43.10-05:00": "2001-12-14t21:59:43.10-05:00",
    "=": "=",
    "<<": "<<",
    ".Nan": ".Nan",
    "nan": "nan",
    "infinity": "infinity",
    "'5'": "5",
    '"5e-3"': "5e-3",
    "!!str 5": "5",
    "! 5": "5",
    "!!str": "",
    '"\\x41"': "A",
}


def read(text: str) -> Any:
    return load_yaml(f"value: {text}\n", source="")["value"]


def refusal(text: str) -> str:
    with pytest.raises(BadDocument) as refused:
        load_documents(text, source="chain.yaml")
    return str(refused.value)


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_has_the_value_that_kubectl_gives_it(text: str):
    value = read(text)

    assert value == SCALARS[text]
    assert isinstance(value, bool) == isinstance(SCALARS[text], bool)


@pytest.mark.cluster
def test_the_table_of_scalars_is_what_a_real_kubectl_reads(tmp_path: Path):
    """`--local` needs no API server."""
    head = "apiVersion: example.org/v1\nkind: Any\nmetadata: {name: any}\nvalues:\n"
    (tmp_path / "any.yaml").write_text(head + "".join(f"- {text}\n" for text in SCALARS))
    command = ["label", "--local", "-f", "any.yaml", "a=b", "-o", "json", "--kubeconfig", "/dev/null"]

    done = subprocess.run(
        [ensure_binaries() / "kubectl", *command], cwd=tmp_path, check=True, capture_output=True, text=True
    )

    # Go prints a float beyond 64 bits without an exponent.
    printed = json.loads(done.stdout, parse_int=lambda digits: int(digits) if int(digits) < 2**63 else float(digits))
    assert dict(zip(SCALARS, printed["values"], strict=True)) == SCALARS


def test_numbers_that_are_whole_are_integers_as_in_the_json_that_kubectl_sends():
    assert json.dumps([read("5.0"), read("1e3"), read("0.5")]) == "[5, 1000, 0.5]"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("base: &base {a: 1, b: 2}\nnew: {<<: *base, b: 3}\n", {"a": 1, "b": 3}, id="own keys win"),
        pytest.param(
            "base: &base {a: 1, b: 2}\nnew: {<<: [{a: 9}, *base]}\n", {"a": 9, "b": 2}, id="the first of several wins"
        ),
        pytest.param('new: {"<<": 5}\n', {"<<": 5}, id="a quoted << is a key"),
    ],
)
def test_merge_keys_merge(text: str, want: dict[str, Any]):
    assert load_yaml(text, source="")["new"] == want


def test_empty_documents_are_left_out():
    assert load_documents("# a comment\n---\na: 1\n---\n...\n---\nb: 2\n", source="") == [{"a": 1}, {"b": 2}]


def test_json_may_be_indented_with_tabs_and_hold_surrogate_pairs():
    text = '{\n\t"emoji": "\\ud83d\\ude00",\n\t"rate": 5.0, "big": 100000000000000000000\n}\n{"b": 2}'

    first, second = load_documents(text, source="")

    assert (first, second) == ({"emoji": "😀", "rate": 5, "big": 1e20}, {"b": 2})
    assert isinstance(first["rate"], int)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("a: 1\nspec:\n\tb: 1\n", "line 3: a tab is used for indentation; use spaces", id="tab"),
        pytest.param("a:\n  \tb: 1\n", "line 2: a tab is used for indentation; use spaces", id="space and tab"),
        pytest.param("a:\t1\n", "line 1, column 3: a tab is used as a space; write a space", id="tab after a colon"),
        pytest.param("a: 1\na: 2\n", "line 2, column 1: the key 'a' appears twice; remove one", id="a key twice"),
        pytest.param('{"a": 1, "a": 2}', "the key 'a' appears twice; remove one", id="a key twice in JSON"),
        pytest.param(
            "a: 1\n---\n- a\n",
            "line 3, column 1: expected a mapping with apiVersion, kind, metadata and spec",
            id="a list",
        ),
        pytest.param(
            "1: a\n", "line 1, column 1: got the key 1, which YAML reads as 1; quote it", id="a number as key"
        ),
        pytest.param(
            "a: {b: 0,01}\n",
            "line 1, column 10: got the key 01, which YAML reads as 1; quote it; if it is the end of a number, write a "
            "point: .01",
            id="a decimal comma",
        ),
        pytest.param("y: a\n", "line 1, column 1: got the key y, which YAML reads as true; quote it", id="y as key"),
        pytest.param(
            "a: {{ .Values.a }}\n",
            "line 1, column 5: got a mapping or a list as a key, expected text; quote it",
            id="a template",
        ),
        pytest.param("a: .inf\n", "line 1, column 4: got .inf, expected a number that JSON can hold", id="infinity"),
        pytest.param('{"a": NaN}', "got nan, expected a number that JSON can hold", id="NaN in JSON"),
        pytest.param(
            "a: !!python/object:os.system x\n",
            "line 1, column 4: the tag !!python/object:os.system is not supported; write the value without it",
            id="python tag",
        ),
        pytest.param(
            "a: !!int '5'\n", "line 1, column 4: the tag !!int is not supported; write the value without it", id="!!int"
        ),
        pytest.param(
            "a: &a {b: 1}\nc: {b: 2, <<: *a}\n",
            "line 1, column 4: it also holds 'b', a key before <<; put << first",
            id="a key before <<",
        ),
        pytest.param("a: &a [*a]\n", "line 1, column 4: the value contains itself through an alias", id="a loop"),
        pytest.param(
            "a: *b\n",
            "line 1, column 4: the alias *b has no anchor &b before it; quote it if it is text",
            id="no such anchor",
        ),
        pytest.param("a: [1\nb: 2\n", "line 2, column 2: expected ',' or ']' for the bracket opened on line 1", id="["),
        pytest.param('a: "x\nb: 2\n', "line 3, column 1: the quotation mark opened on line 1 is not closed", id='"'),
        pytest.param("a: b: c\n", "line 1, column 5: a plain value cannot contain ': '; quote it, or", id="two colons"),
        pytest.param(
            "a:\n    b: 1\n  c: 2\n", "line 3, column 3: the indentation does not match the lines above", id="indent"
        ),
        pytest.param("a: @b\n", "line 1, column 4: a value cannot start with @; quote it", id="@"),
        pytest.param("a: 1\nfoo\nb: 2\n", "line 2, column 1: expected 'key: value'", id="no colon"),
        pytest.param("a: - x\n", "line 1, column 4: a list item '- ' must start on its own line", id="a list item"),
        pytest.param(
            'a: "C:\\data"\n',
            r"line 1, column 8: \d is not an escape of double quotes; use single quotes",
            id="an escape",
        ),
        pytest.param("a: 1\n...\nb: 2\n", "line 3, column 1: a second document must start with '---'", id="no ---"),
        pytest.param("a: 1\nb: \x01\n", "line 2, column 4: character 0x1 is not allowed", id="a control character"),
        pytest.param("[" * 3000, "is nested too deeply", id="too deep"),
    ],
)
def test_what_cannot_be_read_is_explained(text: str, want: str):
    assert refusal(text).startswith(want)


CHAIN = json.dumps({"kind": "Any", "spec": {"rate": 1.5, "list": ["a: b", {"c": None}]}}, indent=2)


def test_json_that_is_cut_off_anywhere_is_explained_as_json():
    for length in range(1, len(CHAIN)):
        cut = CHAIN[:length]

        message = refusal(cut)

        assert message.startswith(f"line {len(cut.rstrip().splitlines())}, "), cut
        assert "is cut off, or lacks" in message or "not JSON: expected " in message, cut


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param(
            '{\n"a": {\n"b": 1\n\n',
            "line 3, column 7: the JSON ends before every bracket is closed; the file is cut off, or lacks brackets",
            id="cut off after a value",
        ),
        pytest.param(
            '{\n"a": "b',
            "line 2, column 6: the text that starts here is not closed; the file is cut off, or lacks a quotation mark",
            id="cut off in a text",
        ),
        pytest.param(
            '{"a": 1\n"b": 2}', "line 2, column 1: not JSON: expected ',' or the closing bracket", id="no comma"
        ),
        pytest.param('{"a" 1}', "line 1, column 6: not JSON: expected ':' after the name", id="no colon"),
        pytest.param(
            '{"a": 1}}', "line 1, column 9: not JSON: unexpected text after the closing bracket", id="} twice"
        ),
        pytest.param('{"a": ]}', "line 1, column 7: not JSON: expected a value", id="no value"),
        pytest.param('{"a": "\\q"}', "line 1, column 8: not JSON: Invalid \\escape", id="an escape"),
        pytest.param("{a: [}", "line 1, column 6: expected a value before }; write one, or quote } if", id="YAML"),
    ],
)
def test_what_is_no_json_is_explained(text: str, want: str):
    assert refusal(text).startswith(want)


def test_yaml_in_braces_may_have_names_in_quotation_marks():
    assert load_yaml('{"a": 1, "b": [u, v],}', source="") == {"a": 1, "b": ["u", "v"]}


def test_aliases_that_expand_to_billions_of_values_are_refused():
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]

    assert "the aliases expand to more than 1000000 values" in refusal("\n".join(levels))


def test_one_mapping_is_expected_where_only_one_can_be_used():
    with pytest.raises(BadDocument, match=r"^got 2 documents, expected one$"):
        load_yaml("a: 1\n---\nb: 2\n", source="")
