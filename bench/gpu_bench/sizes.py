"""How large models, data and measurements are: in full for a GPU, small for a CPU. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LABELS = ["negative", "positive"]
BATCH = 32  # of the small students
LARGE_LEARNING_RATE = 2e-5
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Sizes:
    """What is built and how long it is measured.

    Attributes:
        vocabulary: entries of the tokenizer.
        rows, validation_rows: of the data of the small students.
        epochs: of the stages of the small students.
        reference_epochs: of the captured reference; the last one is timed.
        eager_steps: timed steps of the eager references, after as many as a tenth of them.
        learning_rate: of the small students.
        teacher_steps, teacher_batch, teacher_rate: training of the teacher. A stage refuses a teacher at chance.
        large_rows: of the data of the large model; every row has `large_tokens` tokens.
        large_batches: batch sizes of the large model.
        large_steps: timed steps of its references.
        large_epochs: planned for its stages, which stop after `large_measure_s` of steady training; None: they end by
            themselves.
        precisions: of the small students' stages.
        causal_vocabulary, causal_top_k: of the language models, and what is stored of the teacher.
        causal_rows, causal_tokens, causal_batch: rows of so many tokens, and rows of one training step.
        causal_steps: timed steps of the reference; causal_measure_s: how long ours is timed at least.
        causal_student, causal_teacher: shapes of Llama-3.2-1B and Llama-3.1-8B.
    """

    vocabulary: int
    rows: int
    validation_rows: int
    epochs: int
    reference_epochs: int
    eager_steps: int
    learning_rate: float
    teacher_steps: int
    teacher_batch: int
    teacher_rate: float
    large_rows: int
    large_validation_rows: int
    large_tokens: int
    large_batches: tuple[int, ...]
    large_steps: int
    large_epochs: int
    large_measure_s: float | None
    precisions: tuple[str, ...]
    tiny: dict[str, Any]
    femto: dict[str, Any]
    teacher: dict[str, Any]
    large: dict[str, Any]
    causal_vocabulary: int
    causal_top_k: int
    causal_rows: int
    causal_tokens: int
    causal_batch: int
    causal_steps: int
    causal_measure_s: float
    causal_student: dict[str, Any]
    causal_teacher: dict[str, Any]


FULL = Sizes(
    vocabulary=30_522,
    rows=67_349,  # as SST-2
    validation_rows=872,
    epochs=6,  # 16 s at 25,000 examples/s
    reference_epochs=2,
    eager_steps=150,
    learning_rate=5e-4,
    # On a CPU, the teacher had learned the words after 60 steps of 32 rows.
    teacher_steps=200,
    teacher_batch=64,
    teacher_rate=3e-4,
    large_rows=12_800,
    large_validation_rows=64,
    large_tokens=125,
    large_batches=(32, 128),
    large_steps=60,
    # A short plan would be a reason not to compile. 25 epochs are 10,000 steps at batch 32, and 2,500 at 128.
    large_epochs=25,
    large_measure_s=12.0,
    precisions=("float32", "bfloat16"),
    tiny={"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    femto={},  # the defaults of bert-hash
    teacher={"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    large={"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    causal_vocabulary=128_256,
    causal_top_k=64,
    causal_rows=128,
    causal_tokens=1024,
    causal_batch=8,
    causal_steps=40,
    causal_measure_s=10.0,
    causal_student={
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "tie_word_embeddings": True,
    },
    causal_teacher={
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14_336, "tie_word_embeddings": False,
    },
)  # fmt: skip

SMALL = Sizes(
    vocabulary=1_000,
    rows=640,
    validation_rows=100,
    epochs=2,
    reference_epochs=2,
    eager_steps=20,
    learning_rate=5e-3,
    teacher_steps=80,
    teacher_batch=32,
    teacher_rate=5e-3,
    large_rows=64,
    large_validation_rows=32,
    large_tokens=16,
    large_batches=(8,),
    large_steps=6,
    large_epochs=1,
    large_measure_s=None,
    precisions=("float32",),
    tiny={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    femto={"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32},
    teacher={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    large={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    causal_vocabulary=200,
    causal_top_k=4,
    causal_rows=16,
    causal_tokens=16,
    causal_batch=4,
    causal_steps=4,
    causal_measure_s=0.05,
    causal_student={
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 32, "tie_word_embeddings": True,
    },
    causal_teacher={
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 64, "tie_word_embeddings": False,
    },
)  # fmt: skip


def sizes_of(*, small: bool) -> Sizes:
    return SMALL if small else FULL
