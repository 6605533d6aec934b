"""Writes the chain's report into the store, beside the manifest of its last stage. A fault here fails no stage."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import logging
import threading
import time

from distillchain_api.failures import StageError
from distillchain_api.layout import report_key
from distillchain_store.errors import ObjectMissing
from distillchain_store.store import Store
from distillchain_trainer import __version__

log = logging.getLogger(__name__)


def import_ahead() -> None:
    """Imports what the report needs, in a thread: two seconds that the upload of a checkpoint hides."""
    threading.Thread(target=_import, name="imports of the report", daemon=True).start()


def _import() -> None:
    # ensure_report meets the same error again, and logs it.
    with contextlib.suppress(Exception):
        # Otherwise each class of matplotlib writes docstrings when it is created, a fifth of the import.
        vars(importlib.import_module("matplotlib.artist"))["kwdoc"] = lambda _: ""
        for name in ("scipy.special", "distillchain_report.build", "distillchain_report.render"):
            importlib.import_module(name)


def ensure_report(store: Store, chain: str, digest: str, *, adopted: bool, verdict: str = "") -> None:
    """Writes the report of a chain whose last stage is committed. A fault is logged and nothing more.

    Args:
        chain: namespace/name.
        digest: of its last stage.
        adopted: the stage was found committed. A report that was made from the same commits and exports is kept then.
        verdict: digest of the comparison with controls that the report shows; empty: the newest one of the chain.
    """
    key, started = report_key(digest), time.monotonic()
    try:
        if adopted and _is_current(store, digest):
            return
        store.write(key, _build(store, chain, digest, verdict).encode())
    except Exception:  # any fault: the student is committed, and `distillchain report` can make the report later
        log.warning("the chain's report could not be written; see `distillchain report`", exc_info=True)
        return
    log.info(
        "report written", extra={"report": f"{store.uri}/{key}", "elapsed_s": round(time.monotonic() - started, 2)}
    )


def renew_report(store: Store, chain: str, digest: str) -> None:
    """Writes the report again, if there is one and it is not current. Faults as in `ensure_report`.

    Args:
        digest: of the chain's last stage.
    """
    try:
        exists = bool(store.list_objects(report_key(digest)))
    except StageError:
        log.warning("the chain's report could not be found; see `distillchain report`", exc_info=True)
        return
    if exists:
        ensure_report(store, chain, digest, adopted=True)


def _is_current(store: Store, digest: str) -> bool:
    """Whether there is a report of the commits and exports that are there now."""
    from distillchain_report.commits import CommittedFiles, sources_digest, walk_back
    from distillchain_report.load import export_of

    try:
        page = store.read(report_key(digest))
    except ObjectMissing:
        return False
    manifests = walk_back(store, digest)
    exports = [export_of(store, CommittedFiles(store, manifest)) for manifest in manifests]
    # A page contains the digest of what it was made from.
    return sources_digest(manifests, list(filter(None, exports))).encode() in page


def _build(store: Store, chain: str, digest: str, verdict: str) -> str:
    from distillchain_report.build import build_report  # matplotlib takes a second to import
    from distillchain_report.commits import walk_back
    from distillchain_report.evidence_files import load_evidence
    from distillchain_report.load import load_stages, wanted_of
    from distillchain_report.render import render_html

    stages = load_stages(store, wanted_of(walk_back(store, digest)))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    report = build_report(
        chain,
        stages,
        storage=store.uri,
        generated_at=now,
        version=__version__,
        evidence=load_evidence(store, digest, chain=chain, verdict=verdict),
    )
    return render_html(report)
