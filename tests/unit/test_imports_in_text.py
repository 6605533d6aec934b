"""Programs that are text (within tests, and in pages) import from modules that exist; no linter reads them."""

import ast
import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
IMPORT = re.compile(r"from distillchain[\w.]* import (?:\([\w\s,]*\)|[\w ]+(?:, *[\w ]+)*)")


@pytest.mark.parametrize("folder", ["tests", "bench", "docs", "examples"])
def test_each_import_of_the_packages_exists(folder: str):
    missing = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in sorted((ROOT / folder).rglob("*"))
        # The task of tests/extension exists only while its own test runs.
        if path.suffix in {".py", ".md", ".sh", ".yaml"} and "extension" not in path.parts
        for text in IMPORT.findall(path.read_text())
        if not resolves(text)
    ]

    assert not missing


def resolves(text: str) -> bool:
    """Whether the module of this import exists, and all that it imports from it: `from package.module import name`."""
    (found,) = ast.parse(text).body
    assert isinstance(found, ast.ImportFrom)
    assert found.module
    try:
        module = importlib.import_module(found.module)
        for alias in found.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{found.module}.{alias.name}")
    except ModuleNotFoundError:
        return False
    return True
