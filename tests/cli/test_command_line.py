"""What every command has in common: help, exit codes, option values, start-up."""

from __future__ import annotations

import errno
import logging
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from cli.parts import COMMAND, distillchain, distillchain_here, example_in_help, install_stand_in, write_chain
from distillchain_cli.output.printing import LogFormatter

COMMANDS = ["validate", "plan", "run", "report", "list", "status", "logs", "events", "retry", "suspend", "resume"]


@pytest.mark.parametrize("arguments", [["run"], ["nothing"], ["run", "missing.yaml"], ["list", "--nothing"]])
def test_bad_input_ends_with_exit_code_2(tmp_path: Path, arguments: list[str]):
    done = distillchain_here(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, want",
    [
        (
            ["plan", "c.yaml", "-o", "yml"],
            "'-o': got yml, expected one of table, wide, json, yaml, jsonpath=TEMPLATE; did you mean yaml?",
        ),
        (["report", "c.yaml", "-o", "pdf"], "'-o': got pdf, expected one of html, md, json"),
        (
            ["report", "c.yaml", "-o", "c.html"],
            "'-o': got c.html, expected one of html, md, json; to write to a file: -o html --to c.html",
        ),
        (
            ["run", "c.yaml", "-o", "c.json"],
            "'-o': got c.json, expected one of table, wide, json, yaml, jsonpath=TEMPLATE; to write to a file: -o json > "
            "c.json",
        ),
        (["report", "c.yaml", "-o", "HTML"], "'-o': got HTML, expected one of html, md, json; did you mean html?"),
        (["completion", "tcsh"], "'bash|zsh|fish': got tcsh, expected one of bash, zsh, fish"),
        (
            ["list", "-o", "nam"],
            "'-o': got nam, expected one of table, wide, json, yaml, name, jsonpath=TEMPLATE; did you mean name?",
        ),
        (
            ["list", "-o", "jsonpath"],
            "'-o': got jsonpath, expected one of table, wide, json, yaml, name, jsonpath=TEMPLATE",
        ),
        (
            ["list", "-o", "jsonpath=.items"],
            "'-o': got jsonpath=.items, expected a path in braces, such as {.metadata.name}",
        ),
        (
            ["list", "--request-timeout", "soon"],
            "'--request-timeout': got soon, expected a duration such as 30s, 5m or 1h30m",
        ),
        (["logs", "relay", "--tail", "-1"], "'--tail': got -1, expected a whole number, 0 or more"),
        (["logs", "relay", "--tail", "all"], "'--tail': got all, expected a whole number, 0 or more"),
        *(
            (
                ["compare", "a", "b", "--price-per-gpu-hour", text],
                f"got {text}, expected a number, 0 or more, such as 0.5",
            )
            for text in ("2,5", "-1", "nan", "inf")
        ),
        (
            ["advise", "a", "--smallest-gain", "half"],
            "'--smallest-gain': got half, expected a number, 0 or more, such as 0.5",
        ),
    ],
)
def test_a_bad_value_of_an_option_is_explained_with_the_valid_ones(tmp_path: Path, arguments: list[str], want: str):
    done = distillchain_here(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"{want}\n")


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (
            ["apply", "-f", "c.yaml"],
            "No such command 'apply'; kubectl apply -f chain.yaml creates a chain on a cluster",
        ),
        (["get", "-o", "json"], "No such command 'get'; `distillchain list` shows all chains and"),
        (["lisst"], "No such command 'lisst'. Did you mean 'list'?"),
        (["-o", "json", "list"], "No such option: -o; write it after the command: distillchain list -o ..."),
        (["-n", "ns", "lisst"], "No such option: -n\n"),
        (["--storage", "s3://b", "plan", "c.yaml"], "; write it after the command: distillchain plan --storage ..."),
        (["report", "c.yaml", "-o"], "Option '-o' requires an argument: html|md|json"),
        (["download", "c.yaml", "-o", "c"], "No such option: -o; to say where it writes, use --to FOLDER"),
        (["validate", "c.yaml", "-o", "json"], "No such option: -o; this command has no other format"),
        (["list", "--namspace", "ns"], "(Possible options: --all-namespaces, --namespace)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_in_the_wrong_place_gets_a_remedy(tmp_path: Path, arguments: list[str], want: str):
    done = distillchain_here(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert want in done.stderr


def test_a_chain_file_in_place_of_a_format_is_not_named_as_the_file_to_write(tmp_path: Path):
    write_chain(tmp_path)

    done = distillchain_here("report", "-o", "chain.yaml", cwd=tmp_path)

    assert done.stderr.endswith("; a format comes before the file, such as -o json chain.yaml\n")


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)], ids=" ".join)
def test_h_is_help(tmp_path: Path, command: list[str]):
    short = distillchain_here(*command, "-h", cwd=tmp_path)

    assert short.returncode == 0
    assert short.stdout == distillchain_here(*command, "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("command", ["gc", "plan", "download", "validate"])
def test_help_names_no_types_of_python(tmp_path: Path, command: str):
    text = distillchain_here(command, "--help", cwd=tmp_path).stdout

    assert "Arguments:\n  FILE" in text
    assert not re.search(r"<\w+|list\[", text)


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_the_version_is_printed(tmp_path: Path, argument: str):
    assert re.fullmatch(r"distillchain \d+\.\d+\.\d+\n", distillchain_here(argument, cwd=tmp_path).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("command", [[], ["validate"], ["plan"], ["run"], ["version"]], ids=" ".join)
def test_the_example_of_each_help_works(tmp_path: Path, command: list[str]):
    write_chain(tmp_path)
    stand_in = install_stand_in(tmp_path, "commit()") if command == ["run"] else {}

    done = distillchain_here(*example_in_help(*command, cwd=tmp_path), cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("full", "other", "code"),
    [
        ("stdout", "stdout: the result cannot be written (No space left on device); free the disk, or", 1),
        ("stderr", "STAGE ", 0),
    ],
)
def test_a_result_that_does_not_fit_on_the_disk_is_a_failure(tmp_path: Path, full: str, other: str, code: int):
    write_chain(tmp_path)

    with Path("/dev/full").open("w") as stream:
        outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, full: stream}
        done = subprocess.run([*COMMAND, "plan", "chain.yaml"], cwd=tmp_path, text=True, check=False, **outputs)

    assert done.returncode == code
    assert (done.stdout if full == "stderr" else done.stderr).startswith(other)


def test_a_current_folder_that_was_deleted_is_named(tmp_path: Path):
    done = subprocess.run(
        ["sh", "-c", 'mkdir gone; cd gone; rmdir ../gone; exec "$@"', "sh", *COMMAND, "validate", "/chain.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr == "the current folder cannot be used (No such file or directory); change to another one\n"


def test_a_disk_without_room_for_a_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_chain(tmp_path)
    monkeypatch.setattr(tempfile, "mkdtemp", full)

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path)

    assert done.returncode == 1
    assert "no temporary folder can be created (No space left on device); set TMPDIR to a folder" in done.stderr


def test_output_is_utf8_in_any_locale(tmp_path: Path):
    done = distillchain("plan", "café.yaml", "--set", "å=1", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert "café.yaml: there is no such file" in done.stderr

    write_chain(tmp_path).rename(tmp_path / "café.yaml")
    done = distillchain("validate", "café.yaml", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout[:11]) == (0, "café.yaml: ")


@pytest.mark.slow
def test_a_traceback_is_printed_only_with_verbose(tmp_path: Path):
    assert "Traceback" not in distillchain_here("validate", "missing.yaml", cwd=tmp_path).stderr
    assert "Traceback" in distillchain("validate", "missing.yaml", "-v", cwd=tmp_path).stderr


# --- start-up


NO_EXIT = "try: main()\nexcept SystemExit: pass"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "plan"])
def test_start_up_imports_no_large_library(tmp_path: Path, command: str):
    write_chain(tmp_path)
    large = {"torch", "transformers", "boto3", "kopf", "kubernetes", "numpy", "rich.progress"}
    probe = f"import sys; from distillchain_cli.main import main; sys.argv[1:] = [{command!r}, 'chain.yaml']\n{NO_EXIT}"

    done = subprocess.run(
        [COMMAND[0], "-c", f"{probe}\nprint(*({large!r} & set(sys.modules)))"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.stdout.splitlines()[-1:] == [""], done.stdout + done.stderr


@pytest.mark.slow
def test_without_the_cli_extra_a_cluster_command_says_what_to_install(tmp_path: Path):
    hidden = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'kubernetes' else find(name, *more)\n"
    )
    probe = f"{hidden}sys.argv[1:] = ['status', 'relay']\nfrom distillchain_cli.main import main\nsys.exit(main())"

    done = subprocess.run([COMMAND[0], "-c", probe], cwd=tmp_path, check=False, capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr == (
        "talking to a cluster needs kubernetes, which is not installed; in a checkout: pip install '.[cli]'\n"
    )


@pytest.mark.parametrize(("extra", "want"), [({"why": "it is busy"}, "repeating it: it is busy"), ({}, "repeating it")])
def test_a_warning_of_a_library_is_shown_with_its_reason(extra: dict[str, str], want: str):
    record = logging.makeLogRecord({"msg": "repeating it", **extra})

    assert LogFormatter().format(record) == want
