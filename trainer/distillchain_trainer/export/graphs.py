"""How a model becomes an ONNX graph: one pass over a text, or for a language model with a cache. Knows no stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.errors import ExportInvalid
from distillchain_trainer.export.compare import TOLERANCE
from distillchain_trainer.export.decoder import OnnxDecoder, difference_with_cache, quantize_decoder, write_decoder
from distillchain_trainer.export.onnx_file import OnnxModel, quantize_int8, write_onnx
from distillchain_trainer.models.loaded import Loaded

NUMBERS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # as configurations call it
CACHED_ROWS, CACHED_TOKENS = 4, 64  # of the texts on which the cache of a language model is checked


@dataclass(frozen=True)
class Graphs:
    """Graphs of a model that reads each text in one pass.

    Attributes:
        encoded: some rows of validation.
        who: begins every message.
    """

    loaded: Loaded
    encoded: Encoded
    who: str

    def write(self, path: Path) -> None:
        """In float32. Raises: as `write_graph`."""
        # Two rows of two tokens at least, because the exporter takes a size of 1 for a constant.
        width = max(2, *self.encoded.lengths[:2])
        inputs = self.encoded.batch([0, len(self.encoded) - 1], width=max(width, self.encoded.lengths[-1]))
        write_onnx(self.loaded.model, inputs, path, who=self.who)

    def quantize(self, source: Path, path: Path) -> None:
        """With 8-bit weights. Raises: ExportInvalid."""
        quantize_int8(source, path, who=self.who)

    def load(self, path: Path) -> OnnxModel:
        """A graph of either form, ready to run. Raises: ExportInvalid."""
        return OnnxModel(path, who=self.who)


class GraphsWithCache(Graphs):
    """Graphs of a language model."""

    def write(self, path: Path) -> None:
        """See Graphs. Raises: ExportInvalid also for a graph whose cache computes something else."""
        write_decoder(self.loaded.model, path, who=self.who)
        self.check(path)

    def quantize(self, source: Path, path: Path) -> None:
        """See Graphs."""
        quantize_decoder(source, path, who=self.who)

    def load(self, path: Path) -> OnnxDecoder:
        """See Graphs."""
        return OnnxDecoder(path, who=self.who)

    def check(self, path: Path) -> None:
        """That texts which are read piece after piece have the same logits, which validation does not show.

        Raises: ExportInvalid.
        """
        rows = self.encoded.longest_first()[:: math.ceil(len(self.encoded) / CACHED_ROWS)].tolist()
        texts = [self.encoded.batch([row])["input_ids"][0, :CACHED_TOKENS] for row in rows]
        model, pad_id = self.loaded.model, self.encoded.pad_id
        difference, largest = difference_with_cache(self.load(path), model, texts, pad_id=pad_id)
        # A NaN compares as False with everything, so it is not within the tolerance.
        if not difference <= TOLERANCE * max(1.0, largest):
            raise ExportInvalid(
                f"{self.who}: with its cache of keys and values, the exported graph computes something else: logits "
                f"differ by up to {difference:.2g}, and the largest is {largest:.2g}. The checkpoint itself is good "
                "and stays committed; remove export.onnx of this stage"
            )


def graphs_for(task_type: str, loaded: Loaded, encoded: Encoded, *, who: str) -> Graphs:
    """The graphs that suit the models of a task. Raises: ExportInvalid for a mixture of experts."""
    config = loaded.model.config.get_text_config()
    if any((getattr(config, name, None) or 0) > 1 for name in NUMBERS_OF_EXPERTS):
        raise ExportInvalid(
            f"{who}: a {config.model_type} is a mixture of experts, and in ONNX each token would get a copy of its "
            "experts, which is gigabytes for a text; remove export.onnx of this stage"
        )
    kind = GraphsWithCache if task_type == "CausalLM" else Graphs
    return kind(loaded, encoded, who)
