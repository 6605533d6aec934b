"""Create data and teacher for the chain of `helm test`: sentences, and a BERT that is fine-tuned on them in seconds.

Nothing is downloaded. The teacher has one layer and learns to distinguish good words from bad ones.
"""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

LABELS = ["negative", "positive"]
NOUNS = ["film", "book", "meal", "room", "show", "song", "trip", "game"]
ADVERBS = ["very", "quite", "really", "rather", "simply"]
WORDS = {
    "negative": ["bad", "dull", "poor", "awful", "bland", "weak"],
    "positive": ["good", "fine", "great", "lovely", "bright", "strong"],
}
STEPS = 40


def write_rows(folder: Path) -> list[tuple[str, str]]:
    """Write train.tsv and validation.tsv with different sentences, and return the training rows."""
    rows = [
        (f"the {noun} was {adverb} {word}", label)
        for label, words in WORDS.items()
        for noun, adverb, word in itertools.product(NOUNS, ADVERBS, words)
    ]
    random.Random(0).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[100:]), ("validation", rows[:100])):
        lines = ["sentence\tlabel", *("\t".join(row) for row in part)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return rows[100:]


def write_teacher(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Train a teacher and write its checkpoint in Hugging Face format."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text, _ in rows for word in text.split()})]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizer.from_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config)
    batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    classes = torch.tensor([LABELS.index(label) for _, label in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        loss = model(**batch, labels=classes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"teacher: {model.num_parameters()} parameters, training loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    write_teacher(target / "teacher", write_rows(target / "data"))
