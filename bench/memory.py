"""How much memory the training rows take: reading, checking, encoding and batching of synthetic text, no model.

    python bench/memory.py                                   # 100,000, 1 million and 5 million rows; 2 GB of disk
    python bench/memory.py --rows 100000 --folder /var/tmp

Prints one line of JSON for each size. Each size has a process of its own, and its memory is RssAnon of Linux: what the
process has allocated, without the pages of mapped files, which the system can drop at any time. Add results to
bench/LOG.md with date, machine and command.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZES = [100_000, 1_000_000, 5_000_000]
WORDS = [f"{first}{last}" for first in ("ba", "de", "fi", "go", "ku", "la") for last in ("mo", "ni", "ru", "se", "ta")]
BATCH_SIZE = 64
SAMPLE_S = 0.05  # between two looks at the memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="sizes to measure (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the files are written (by default that of temporary files)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            if options.child:
                print(json.dumps(measure(rows, Path(folder))), flush=True)
            else:
                command = [sys.executable, __file__, "--child", "--rows", str(rows), "--folder", folder]
                subprocess.run(command, check=True)
    return 0


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """What the rows of a text classification take. The file is written and read as a user's would be."""
    from distillchain_trainer.engine.data_order import epoch_batches
    from distillchain_trainer.engine.encoding import Encoder
    from distillchain_trainer.engine.training_rows import TrainingRows
    from distillchain_trainer.stage_warnings import StageWarnings

    tokenizer = a_tokenizer()
    write_file(folder / "train.tsv", rows, seed=1)
    write_file(folder / "dev.tsv", 1_000, seed=2)
    before = anonymous_mib()
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        started = time.perf_counter()
        with Peak() as peak:
            yield
        seconds[name], peaks[name] = time.perf_counter() - started, peak.mib - before

    with phase("read"):
        data, adapter = read(folder)
    with phase("encode"):
        encoded = Encoder(64, warnings=StageWarnings()).encode(data.train, tokenizer, pad_id=0)
    with phase("batch"):
        training = TrainingRows.of(encoded, adapter.targets(data.train), None)
        for batch in epoch_batches(training.lengths, BATCH_SIZE, seed=1, epoch=0):
            compared = training.batch(tensor_of(batch), width=int(training.lengths[batch].max()))[1]
            assert len(compared["targets"]) == len(batch)
    return {
        "rows": rows,
        "tokens": len(encoded.ids),
        "start_mib": round(before),
        **{f"{name}_peak_mib": round(mib, 1) for name, mib in peaks.items()},
        "disk_mib": round(sum(path.stat().st_size for path in (folder / "work").rglob("*") if path.is_file()) / 2**20),
        **{f"{name}_rows_per_s": round(rows / elapsed_s) for name, elapsed_s in seconds.items()},
    }


def read(folder: Path) -> tuple[Any, Any]:
    """All splits, read and checked by the task type, and its adapter."""
    from distillchain_api.tasks.text_classification import TextClassification
    from distillchain_trainer.stage_warnings import StageWarnings
    from distillchain_trainer.tasks import adapter_for

    dataset = {
        "uri": f"file://{folder}",
        "splits": {"train": "train.tsv", "validation": "dev.tsv"},
        "text": ["sentence"],
        "label": "label",
    }
    task = TextClassification.parse({"type": "TextClassification", "dataset": dataset, "labels": ["no", "yes"]})
    adapter = adapter_for(task, StageWarnings())
    work = folder / "work"
    return adapter.read_data(endpoint_url=None, region=None, folder=work), adapter


def tensor_of(batch: list[int]) -> Any:
    import torch

    return torch.tensor(batch)


def write_file(path: Path, rows: int, *, seed: int) -> None:
    """Sentences of 4 to 24 words that hardly ever repeat, with a label."""
    dice = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        file.write("sentence\tlabel\n")
        for row in range(rows):
            file.write(f"{' '.join(dice.choices(WORDS, k=dice.randint(4, 24)))}\t{row % 2}\n")


def a_tokenizer() -> Any:
    """A BERT tokenizer of the words of the sentences."""
    from transformers import BertTokenizer

    return BertTokenizer(
        vocab={word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    )


def anonymous_mib() -> float:
    """RssAnon of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(kib) / 1024


class Peak:
    """The largest RssAnon within a block. Looked at from a thread: the kernel keeps no peak of it."""

    def __enter__(self) -> Peak:
        self.mib = anonymous_mib()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.mib = max(self.mib, anonymous_mib())


if __name__ == "__main__":
    sys.exit(main())
