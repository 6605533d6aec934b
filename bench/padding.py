"""Which share of the tokens of training and of a teacher's pass is padding, with the batches that the trainer makes.

    python bench/padding.py --tokenizer models/bert-tiny --texts sst2=train.tsv imdb=reviews.txt.gz

Each file has one text per line; of a .tsv, the first column without its header. Files may end in .gz. With `--conll`, a
file has a word per line and an empty line between texts. Prints one line of JSON for each set, and one for all of them
together: texts of very different length. No model is needed: only the lengths decide.

`padded` is padding to the longest text of a batch, as the eager mode does. `bucketed` is padding to the widths of the
compiled and captured modes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENCODED_ROWS = 10_000  # of one call of the tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE", help="sets to measure")
    parser.add_argument("--conll", nargs="*", default=[], metavar="NAME", help="sets whose files have a word per line")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a text at most (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a training step (%(default)s)")
    parser.add_argument("--rows", type=int, default=100_000, help="of each set at most (%(default)s)")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    found: dict[str, NDArray[np.int32]] = {}
    for named in options.texts:
        name, _, path = named.partition("=")
        texts = list(read_texts(Path(path), is_conll=name in options.conll))[: options.rows]
        found[name] = lengths_of(tokenizer, texts, options.max_length)
    found["all"] = np.random.default_rng(0).permutation(np.concatenate(list(found.values())))
    for name, lengths in found.items():
        print(json.dumps({"set": name, **measure(lengths, options.batch_size)}), flush=True)
    return 0


def measure(lengths: NDArray[np.int32], batch_size: int) -> dict[str, Any]:
    """Shares of padding among all tokens of one epoch, and of a teacher's pass on a CPU and on a GPU."""
    from distillchain_trainer.engine.passes import forward
    from distillchain_trainer.engine.training.data_order import epoch_batches
    from distillchain_trainer.engine.training.widths import width_for, widths_up_to

    widths = widths_up_to(int(lengths.max()))
    batches = [np.asarray(batch) for batch in epoch_batches(lengths, batch_size, seed=1, epoch=0)]
    longest = np.array([lengths[batch].max() for batch in batches])
    rows = np.array([len(batch) for batch in batches])
    bucketed = np.array([width_for(int(width), widths) for width in longest])
    return {
        "rows": len(lengths),
        "mean_tokens": round(float(lengths.mean()), 1),
        "longest": int(lengths.max()),
        "padded": padding_share(lengths, int((longest * rows).sum())),
        "bucketed": padding_share(lengths, int((bucketed * rows).sum())),
        "teacher_cpu": teacher_share(lengths, forward.CPU_TOKENS, forward.CPU_ROWS),
        "teacher_gpu": teacher_share(lengths, forward.GPU_TOKENS, forward.GPU_ROWS),
    }


def padding_share(lengths: NDArray[np.int32], computed: int) -> float:
    """Share of padding among so many computed tokens."""
    return round(1 - int(lengths.sum(dtype=np.int64)) / computed, 4)


def teacher_share(lengths: NDArray[np.int32], most_tokens: int, most_rows: int) -> float:
    """As `padding_share`, for passes over the rows sorted by length, bounded by tokens and rows."""
    waiting, start, computed = -np.sort(-lengths), 0, 0
    while start < len(waiting):
        longest = int(waiting[start])
        size = min(max(1, min(most_tokens // longest, most_rows)), len(waiting) - start)
        computed += size * longest
        start += size
    return padding_share(lengths, computed)


def lengths_of(tokenizer: Any, texts: list[str], max_length: int) -> NDArray[np.int32]:
    """Tokens of each text, with those that the tokenizer adds."""
    found: list[int] = []
    for start in range(0, len(texts), ENCODED_ROWS):
        encoded = tokenizer(texts[start : start + ENCODED_ROWS], truncation=True, max_length=max_length)
        found += [len(row) for row in encoded["input_ids"]]
    return np.array(found, dtype=np.int32)


def read_texts(path: Path, *, is_conll: bool) -> Iterator[str]:
    """The texts of a file."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        lines = (line.decode() for line in file)
        if is_conll:
            yield from conll_texts(lines)
            return
        is_table = ".tsv" in path.suffixes
        for number, line in enumerate(lines):
            if number or not is_table:
                yield line.split("\t")[0] if is_table else line.rstrip("\n")


def conll_texts(lines: Iterator[str]) -> Iterator[str]:
    """Words joined by a space, up to an empty line."""
    words: list[str] = []
    for line in lines:
        if line.strip():
            words.append(line.split()[0])
        elif words:
            yield " ".join(words)
            words = []
    if words:
        yield " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
