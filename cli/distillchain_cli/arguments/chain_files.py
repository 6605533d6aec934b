"""Chains in files, folders and stdin, as kubectl reads them: several documents in a file, other kinds beside a chain.

Relative URIs (`file://./data`, `file://../models`) in a file start at the folder of that file, those of options at the
current folder. The result has absolute URIs only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillchain_api import GROUP, KIND
from distillchain_api.faults import BadDocument, Fault
from distillchain_api.graph import Plan, build_plan
from distillchain_api.plan_check import check_plan
from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_api.yaml_text import load_documents
from distillchain_cli.arguments.overrides import apply_overrides, apply_storage, attribute
from distillchain_cli.arguments.relative_uris import resolve_uris

STDIN = "-"
EXTENSIONS = (".json", ".yaml", ".yml")
Note = Callable[[str], None]
"""Prints a message for the user."""


@dataclass(frozen=True)
class ChainDocument:
    """A DistillationChain as it stands in a file; not checked yet."""

    source: str
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the chain, for messages."""
        return _name(self.content) or "without a name"

    @property
    def has_name(self) -> bool:
        """Whether it has a name, as `kubectl create` does not require."""
        return bool(_name(self.content))


@dataclass(frozen=True)
class FileContent:
    """What a file holds.

    Attributes:
        source: the file, as messages name it.
        others: `kind/name` of the other documents.
    """

    source: str
    chains: list[ChainDocument] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def list_files(path: str, *, recursive: bool = False) -> list[str]:
    """The files that an argument stands for: itself, or the YAML and JSON files of a folder.

    Args:
        recursive: also those of its subfolders; as with kubectl, links to folders are not followed.
    Raises: BadDocument when the folder has no such file.
    """
    # A path that does not exist is returned as a file: reading it gives the right error.
    if path == STDIN or not Path(path).is_dir():
        return [path]
    found = Path(path).rglob("*") if recursive else Path(path).iterdir()
    files = sorted(str(file) for file in found if file.suffix in EXTENSIONS and file.is_file())
    if not files:
        raise BadDocument(path, [Fault("", f"the folder has no {', '.join(EXTENSIONS)} file")])
    return files


def read_file(file: str) -> FileContent:
    """The documents of a file (`-`: stdin). Raises: BadDocument when it cannot be read."""
    source = "stdin" if file == STDIN else file
    here = Path.cwd()
    # Not resolve(): a link to a chain file keeps the folder of the link, as for a shell.
    folder = here if file == STDIN else (here / file).parent
    content = FileContent(source)
    for document in _objects(load_documents(_read(file, source), source=source)):
        if _is_chain(document):
            document["spec"] = resolve_uris(document.get("spec"), folder)
            content.chains.append(ChainDocument(source, document))
        else:
            content.others.append("/".join(filter(None, (str(document.get("kind") or "a document"), _name(document)))))
    return content


def note_skipped(content: FileContent, note: Note) -> None:
    """Says which documents of a file are not used."""
    for other in content.others:
        note(f"{content.source}: skipped {other}, because it is not a {KIND}")


def no_chain(sources: Sequence[str]) -> BadDocument:
    """The error for files without any chain."""
    return BadDocument(", ".join(sources), [Fault("", f"found no {KIND}, expected at least one")])


def read_chain(
    path: str, *, overrides: Sequence[str] = (), storage: str | None = None, note: Note = lambda _: None
) -> DistillationChain:
    """The one chain in a file, in a folder or on stdin.

    Args:
        overrides, storage: see `parse`.
        note: receives a line for each document of another kind.
    Raises: BadDocument with every fault of file and options, or when there is not exactly one chain.
    """
    contents = [read_file(file) for file in list_files(path)]
    for content in contents:
        note_skipped(content, note)
    chains = [chain for content in contents for chain in content.chains]
    if not chains:
        raise no_chain([content.source for content in contents])
    # To pick one of several silently, such as the first, would train the wrong chain.
    if len(chains) > 1:
        source = contents[0].source if len(contents) == 1 else path
        names = ", ".join(chain.name for chain in chains)
        problem = f"found {len(chains)} chains ({names}), expected one; put each into its own file and name one"
        raise BadDocument(source, [Fault("", problem)])
    return parse(chains[0], overrides=overrides, storage=storage)


def parse(
    document: ChainDocument, *, overrides: Sequence[str] = (), storage: str | None = None, source: str = ""
) -> DistillationChain:
    """The chain of a document, checked.

    Args:
        overrides: `path=value`, the value in YAML; later ones win.
        storage: URI of the store to use instead of spec.storage.
        source: where faults say that the document is; by default its file.
    Raises: BadDocument with every fault of document and options.
    """
    content, here, source = document.content, Path.cwd(), source or document.source
    applied, faults = apply_overrides(content, overrides, here)
    if storage is not None:
        applied.append(apply_storage(content, storage, here))
    # Without this, `spec:` with nothing below it would be reported as "got null" instead of "missing".
    if content["spec"] is None:
        del content["spec"]
    try:
        chain = parse_chain(content, source=source)
    except BadDocument as error:
        raise BadDocument(source, [*faults, *(attribute(fault, applied) for fault in error.faults)]) from error
    # The chain is valid without the options that could not be applied, but it is not the chain the user meant.
    if faults:
        raise BadDocument(source, faults)
    return chain


def plan_of(chain: DistillationChain, *, source: str) -> Plan:
    """The plan of a chain that the trainer can carry out. Raises: BadDocument."""
    plan = build_plan(chain)
    check_plan(plan, source=source)
    return plan


def _read(file: str, source: str) -> str:
    if file == STDIN and sys.stdin is None:  # `<&-` in a shell
        raise BadDocument(source, [Fault("", "is closed; expected a chain")])
    try:
        content = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
        # utf-8-sig: editors on Windows put a byte order mark in front.
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise BadDocument(source, [Fault("", "there is no such file; expected a chain, or - for stdin")]) from error
    except UnicodeDecodeError as error:
        raise BadDocument(
            source, [Fault("", f"byte {error.start + 1} is not UTF-8; save the file as UTF-8")]
        ) from error
    except OSError as error:
        raise BadDocument(source, [Fault("", f"cannot be read: {error.strerror}")]) from error


def _objects(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The documents, with every List replaced by its items, which inherit kind and version as in kubectl."""
    objects: list[dict[str, Any]] = []
    for document in documents:
        kind, items = str(document.get("kind")), document.get("items")
        if not (kind.endswith("List") and isinstance(items, list)):
            objects.append(document)
            continue
        # `kubectl get -o yaml` prints a List whose items name their kind; the API server's own lists omit it.
        inherited = {"apiVersion": document.get("apiVersion"), "kind": kind.removesuffix("List")}
        objects += [{**inherited, **item} if kind != "List" else item for item in items if isinstance(item, dict)]
    return objects


def _is_chain(document: dict[str, Any]) -> bool:
    """Also a document that is only meant to be one, without `kind` or with a misspelt one, so that it is reported."""
    group = str(document.get("apiVersion")).partition("/")[0]
    return document.get("kind") == KIND or group == GROUP or ("kind" not in document and "spec" in document)


def _name(document: dict[str, Any]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("name") or "") if isinstance(metadata, dict) else ""
