"""The license that a checkpoint's model card states. Cards are written by others: a faulty one states nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CARD_FILE = "README.md"
MAX_CARD_BYTES = 1 << 20  # of which only the front matter is read; the largest cards of the hub have some 100 KB
MAX_LICENSE_CHARS = 100


def stated_license(folder: Path) -> str:
    """The license in the front matter of the card in `folder`, such as `apache-2.0`; empty if none is stated."""
    try:
        content = (folder / CARD_FILE).read_bytes()[:MAX_CARD_BYTES].decode(errors="replace")
    except OSError:  # usually there is no card; an unreadable one is no reason to refuse a checkpoint
        return ""
    found = _front_matter(content)
    # `other` is the hub's way to say that license_name has a name of its own.
    for key in ("license_name", "license") if found.get("license") == "other" else ("license",):
        value = found.get(key)
        names = value if isinstance(value, list) else [value]
        text = " ".join(", ".join(name for name in names if isinstance(name, str)).split())
        if text:
            return text[:MAX_LICENSE_CHARS]
    return ""


def _front_matter(content: str) -> dict[str, Any]:
    if not content.startswith("---"):
        return {}
    try:
        value = yaml.safe_load(content.split("\n---", 1)[0].removeprefix("---"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
