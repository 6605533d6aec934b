"""Models and data of the study: one folder that can travel to a machine without a network, and its unpacked form.

Three tasks, none of which needs more than the folder `shared`:

- sst2: sentiment of film reviews (Socher et al. 2013), `rows` training rows; measured on dev and test together.
- topic: where a sentence about films comes from: a plot (objective; Pang and Lee 2004), a critic's quote (subjective;
  the same), a critic's review (movie reviews; the same authors) or a user's (IMDB; Maas et al. 2011). Train and
  validation have sentences of different reviews.
- names: entities in tweets and comments (WNUT 2017; Derczynski et al. 2017); measured on dev and test together.

The root teacher is MiniLM with three of its six layers, which the chain fine-tunes. Weights are stored as float16, to
half the size, and unpacked to float32.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import itertools
import json
import os
import random
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from safetensors.numpy import load_file, save_file

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DISTILLCHAIN_SHARED") or CHECKOUT.parent / "shared")
MOST_ROWS, MOST_TRANSFER_ROWS = 20_000, 40_000
SOURCES = ("plot", "quote", "critic", "user")
TOPIC_VALIDATION_ROWS = 3_000
SEED = 0
ROOT_LAYERS = (1, 3, 5)  # of MiniLM's six
ROOT, TINY, FEMTO = "root", "tiny", "femto"
DATA = {"sst2": "tsv", "topic": "tsv", "names": "conll"}

Row = tuple[str, str]


def prepare(folder: Path) -> None:
    """Writes the folder from `shared`."""
    sentences = _sentences_module()
    models, data = folder / "models", folder / "data"
    _write_model(SHARED / "models/minilm-l6-sst2-lr1e-4-2ep", models / ROOT, keep=ROOT_LAYERS)
    _write_model(SHARED / "models/bert-tiny-splade-sst2-3ep", models / TINY, keep=None)
    _write_model(SHARED / "models/bert-hash-femto-imdb-mlm", models / FEMTO, keep=None)
    data.mkdir(parents=True, exist_ok=True)
    dice = random.Random(SEED)
    _prepare_sst2(data, dice, sentences)
    _prepare_topic(data, dice, sentences)
    _prepare_names(data)
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size_bytes / 1e6:.1f} MB")


def unpack(folder: Path, into: Path, *, rows: int, transfer_rows: int, validation_rows: int | None) -> None:
    """Writes models in float32, and as many rows as asked for. Does nothing for what is there already."""
    for name in (ROOT, TINY, FEMTO):
        if not (into / "models" / name / "model.safetensors").exists():
            _unpack_model(folder / "models" / name, into / "models" / name)
    data = into / "data"
    data.mkdir(exist_ok=True)
    limits = {"train": rows, "validation": validation_rows, "transfer": transfer_rows}
    for packed in sorted((folder / "data").glob("*.gz")):
        name = packed.name.removesuffix(".gz")
        limit = limits[name.partition(".")[0].partition("-")[2]]
        text = gzip.decompress(packed.read_bytes()).decode()
        (data / name).write_text(_cut(text, limit, blocks=name.endswith(".conll"), header=name.endswith(".tsv")))


def _cut(text: str, limit: int | None, *, blocks: bool, header: bool) -> str:
    """The first rows: lines, or sentences that end with an empty line."""
    if limit is None:
        return text
    if blocks:
        return "\n\n".join(text.strip("\n").split("\n\n")[:limit]) + "\n"
    return "\n".join(text.splitlines()[: limit + header]) + "\n"


def _write_model(source: Path, target: Path, *, keep: Sequence[int] | None) -> None:
    """A checkpoint in float16, with some of its layers and without its head, which is of another task than most."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
            (target / path.name).chmod(0o644)
    weights = {
        name: values
        for name, values in load_file(source / "model.safetensors").items()
        if not name.startswith("classifier.")
    }
    # An encoder without a head, or the trainer would compare its two classes with those of the task.
    config = json.loads((target / "config.json").read_text())
    if config["model_type"] == "bert":
        config["architectures"] = ["BertModel"]
    if keep is not None:
        weights = dict(_renumbered(weights, keep))
        config["num_hidden_layers"] = len(keep)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    halves = {name: values.astype(np.float16) for name, values in weights.items()}
    save_file(halves, target / "model.safetensors", metadata={"format": "pt"})


def _renumbered(weights: dict[str, np.ndarray], keep: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in weights.items():
        before, layer, rest = name.partition(".layer.")
        if not layer:
            yield name, values
            continue
        number, _, rest = rest.partition(".")
        if int(number) in keep:
            yield f"{before}.layer.{keep.index(int(number))}.{rest}", values


def _unpack_model(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
    weights = load_file(source / "model.safetensors")
    # Under another name first: an interrupted copy must not count as there.
    partial = target / "model.partial"
    save_file({name: values.astype(np.float32) for name, values in weights.items()}, partial, metadata={"format": "pt"})
    partial.replace(target / "model.safetensors")


def _prepare_sst2(data: Path, dice: random.Random, sentences: ModuleType) -> None:
    source = SHARED / "data/sst2-glue"
    train = _read_table(source / "train.tsv")
    dice.shuffle(train)
    _write_table(data / "sst2-train.tsv", train[:MOST_ROWS])
    _write_table(data / "sst2-validation.tsv", _read_table(source / "dev.tsv") + _read_table(source / "test.tsv"))
    with gzip.open(SHARED / "data/imdb/unsup.txt.gz", "rt", encoding="utf-8") as reviews:
        # A few sentences of a review are enough, and more reviews are better.
        found = [sentence for review in itertools.islice(reviews, 8_000)
                 for sentence in itertools.islice(sentences.sentences_of(review), 8)]  # fmt: skip
    _write_texts(data / "sst2-transfer.txt", found, dice, sentences)


def _prepare_topic(data: Path, dice: random.Random, sentences: ModuleType) -> None:
    train: list[Row] = []
    validation: list[Row] = []
    transfer: list[str] = []
    each, held_out = MOST_ROWS // len(SOURCES), TOPIC_VALIDATION_ROWS // len(SOURCES)
    for source in SOURCES:
        documents = _documents(source)
        dice.shuffle(documents)
        # By document, so that no review has sentences in both splits.
        quarter = len(documents) // 4
        found = [_sentences(part, sentences) for part in (documents[:quarter], documents[quarter:])]
        for part in found:
            dice.shuffle(part)
        validation += [(sentence, source) for sentence in found[0][:held_out]]
        train += [(sentence, source) for sentence in found[1][:each]]
        # Only reviews have so many sentences: plots and quotes are used up.
        transfer += found[1][each : 3 * each]
    for rows in (train, validation):
        dice.shuffle(rows)
    _write_table(data / "topic-train.tsv", train)
    _write_table(data / "topic-validation.tsv", validation)
    _write_texts(data / "topic-transfer.txt", transfer, dice, sentences)


def _sentences(documents: Iterable[str], module: ModuleType) -> list[str]:
    """The sentences of some texts, each once."""
    found: list[str] = module.distinct(itertools.chain.from_iterable(map(module.sentences_of, documents)))
    return found


def _documents(source: str) -> list[str]:
    """The texts of one source of `topic`; sentences of the subjectivity data stand alone."""
    nltk = SHARED / "data/nltk"
    if source == "user":
        with gzip.open(SHARED / "data/imdb/train.tsv.gz", "rt", encoding="utf-8") as reviews:
            return [line.partition("\t")[0] for line in itertools.islice(reviews, 1, 6_001)]
    archive = nltk / ("movie_reviews.zip" if source == "critic" else "subjectivity.zip")
    with zipfile.ZipFile(archive) as files:
        names = [name for name in sorted(files.namelist()) if name.endswith(".txt") and "README" not in name]
        if source == "critic":
            # These archives are older than UTF-8. A line of a review is a sentence.
            return [files.read(name).decode("latin-1") for name in names]
        (name,) = (name for name in files.namelist() if f"/{source}." in name)
        return files.read(name).decode("latin-1").splitlines()


def _prepare_names(data: Path) -> None:
    source = SHARED / "data/wnut17"
    splits = {"train": ["wnut17train.conll"], "validation": ["emerging.dev.conll", "emerging.test.annotated"]}
    for split, names in splits.items():
        blocks = [(source / name).read_text(encoding="utf-8").strip("\n") for name in names]
        _write(data / f"names-{split}.conll", "\n\n".join(blocks) + "\n")


def _read_table(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(lines)
        return [(text.strip(), label) for text, label in lines]


def _write_table(path: Path, rows: Iterable[Row]) -> None:
    _write(path, "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))


def _write_texts(path: Path, texts: Iterable[str], dice: random.Random, sentences: ModuleType) -> None:
    found = sentences.distinct(texts)
    dice.shuffle(found)
    _write(path, "".join(f"{text}\n" for text in found[:MOST_TRANSFER_ROWS]))


def _write(path: Path, text: str) -> None:
    # Without a time in the file: the same inputs give the same bytes.
    Path(f"{path}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def _sentences_module() -> ModuleType:
    """examples/sst2/sentences.py, which cuts reviews into sentences."""
    path = CHECKOUT / "examples/sst2/sentences.py"
    spec = importlib.util.spec_from_file_location("sentences", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
