"""A model in memory with its tokenizer: what every task type needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer.

    Attributes:
        start: where its weights come from: URI and revision, or the architecture.
        pretrained: False for new weights.
        columns: `columns[i]` is the model's output that stands for output i of the task; None: they are in order.
        reads_with: a hash of the tokenizer if it is not the model's own; empty: it is.
    """

    model: Any
    tokenizer: Any
    start: str
    pretrained: bool
    columns: tuple[int, ...] | None = None
    reads_with: str = ""

    @property
    def parameters(self) -> int:
        """Number of parameters, shared ones counted once."""
        # parameters() gives a tensor that two modules share, such as tied embeddings, only once.
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def is_weightless(self) -> bool:
        """Whether its weights have shapes and no memory, as on the ranks of a split model that do not load it."""
        return any(parameter.is_meta for parameter in self.model.parameters())

    def free(self) -> None:
        """Drops the weights, also those on the host; configuration and tokenizer stay."""
        for parameter in self.model.parameters():
            part = parameter.detach()
            # FSDP keeps its own references to the parts of a model that is split.
            if isinstance(part, DTensor):
                part.to_local().untyped_storage().resize_(0)
        self.model.to("meta")

    @property
    def pad_id(self) -> int:
        """The id that pads a batch: the one in the model's own config.

        A decoder classifies by its last token that is not padding and finds it by this id, so another id would be
        taken for text.
        """
        return int(self.model.config.get_text_config().pad_token_id)

    def in_task_order(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs [rows, columns] of this model in the order of the task."""
        return outputs if self.columns is None else outputs[:, list(self.columns)]
