"""How much memory the training rows take: reading, checking and encoding of synthetic text, a teacher's pass, batches.

    python bench/memory.py                                   # 100,000, 1 million and 5 million rows; 4 GB of disk
    python bench/memory.py --rows 100000 --classes 1000 --folder /var/tmp

The teacher is a stand-in that computes next to nothing, with as many classes as is asked for.

Prints one line of JSON for each size. Each size has a process of its own. Its memory is RssAnon of Linux: what the
process has allocated. `mapped` is RssFile: the pages of mapped files, which the system can drop at any time, without
those of the start. Add results to bench/LOG.md with date, machine and command.
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
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SIZES = [100_000, 1_000_000, 5_000_000]
WORDS = [f"{first}{last}" for first in ("ba", "de", "fi", "go", "ku", "la") for last in ("mo", "ni", "ru", "se", "ta")]
BATCH_SIZE = 64
SAMPLE_S = 0.005  # between two looks at the memory; the shortest phase takes a tenth of a second
CLASSES = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="sizes to measure (%(default)s)")
    parser.add_argument("--classes", type=int, default=CLASSES, help="outputs of the teacher per row (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the files are written (by default that of temporary files)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            if options.child:
                print(json.dumps(measure(rows, options.classes, Path(folder))), flush=True)
            else:
                command = [sys.executable, __file__, "--child", "--rows", str(rows), "--classes", str(options.classes)]
                subprocess.run([*command, "--folder", folder], check=True)
    return 0


def measure(rows: int, classes: int, folder: Path) -> dict[str, Any]:
    """What the rows of a text classification take. The file is written and read as a user's would be."""
    from distillchain_trainer.engine.encoding.encoding import Encoder
    from distillchain_trainer.engine.training.data_order import epoch_batches
    from distillchain_trainer.engine.training.training_rows import TrainingRows
    from distillchain_trainer.stage_warnings import StageWarnings

    tokenizer = a_tokenizer()
    write_file(folder / "train.tsv", rows, seed=1)
    write_file(folder / "dev.tsv", 1_000, seed=2)
    before = Memory.now()
    seconds: dict[str, float] = {}
    peaks: dict[str, Memory] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        started = time.perf_counter()
        with Peak() as peak:
            yield
        seconds[name], peaks[name] = time.perf_counter() - started, peak.memory

    with phase("read"):
        data, adapter = read(folder)
    with phase("encode"):
        encoded = Encoder(64, warnings=StageWarnings()).encode(data.train, tokenizer, pad_id=0)
    with phase("teach"):
        ask_teacher(folder, data.train, encoded, classes)
    with phase("reuse"):
        taught = ask_teacher(folder, data.train, encoded, classes)
        assert taught.reused
    with phase("batch"):
        training = TrainingRows.of(encoded, adapter.targets(data.train), taught)
        for batch in epoch_batches(training.lengths, BATCH_SIZE, seed=1, epoch=0):
            compared = training.batch(tensor_of(batch), width=int(training.lengths[batch].max()))[1]
            assert compared["teacher"].shape == (len(batch), classes)
    return {
        "rows": rows,
        "classes": classes,
        "tokens": len(encoded.ids),
        "start_mib": round(before.anonymous_mib),
        **{f"{name}_peak_mib": round(peak.anonymous_mib - before.anonymous_mib, 1) for name, peak in peaks.items()},
        **{f"{name}_mapped_mib": round(peak.mapped_mib - before.mapped_mib, 1) for name, peak in peaks.items()},
        "disk_mib": round(sum(path.stat().st_size for path in (folder / "work").rglob("*") if path.is_file()) / 2**20),
        **{f"{name}_rows_per_s": round(rows / elapsed_s) for name, elapsed_s in seconds.items()},
    }


def ask_teacher(folder: Path, split: Any, encoded: Any, classes: int) -> Any:
    """The outputs of a stand-in for a teacher, from the store where it has them."""
    import torch

    from distillchain_api.resource.training import Training
    from distillchain_store.folder import FileStore
    from distillchain_trainer.engine.passes.teacher_outputs import TeacherPass

    class Teacher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(classes, dtype=torch.float32))

        def forward(self, input_ids: Any, **_: Any) -> Any:
            return SimpleNamespace(logits=input_ids[:, 1:2].float() + self.weight)

    work = folder / "work" / "logits"
    work.mkdir(exist_ok=True)
    return TeacherPass(
        store=FileStore(f"file://{folder}/store"),
        digest="d" * 64,
        model=Teacher(),
        outputs_of=lambda answer, _: answer.logits,
        encoded=encoded,
        keys=split.keys,
        training=Training(),
        columns=None,
        check=lambda _: None,
        folder=work,
        save_interval_s=600.0,
        stop=lambda: False,
        on_batch=lambda *_: None,
    ).run()


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


@dataclass(frozen=True)
class Memory:
    """Resident memory of this process: what it has allocated, and pages of mapped files."""

    anonymous_mib: float
    mapped_mib: float

    @classmethod
    def now(cls) -> Memory:
        """RssAnon and RssFile of Linux."""
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name}
        return cls(kib["RssAnon"] / 1024, kib["RssFile"] / 1024)


class Peak:
    """The most memory within a block, of each kind. Looked at from a thread: the kernel keeps no peak of them."""

    def __enter__(self) -> Peak:
        self.memory = Memory.now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_S):
            now = Memory.now()
            self.memory = Memory(
                max(self.memory.anonymous_mib, now.anonymous_mib), max(self.memory.mapped_mib, now.mapped_mib)
            )


if __name__ == "__main__":
    sys.exit(main())
