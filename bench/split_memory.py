"""How much memory of the host each process takes for a student that is divided among them (`sharding: Full`).

    python bench/split_memory.py                        # two processes, 51 million weights; less than a minute
    python bench/split_memory.py --processes 3 --layers 24

Prints one line of JSON for each process: MiB that it has allocated (RssAnon of Linux) above those at its start, when it
has loaded the student, when its part is split off, and at most in two steps and while the weights are gathered. On a
CPU the parts are in this memory too, with their gradients and moments. Add results to bench/LOG.md with date, machine
and command.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

MIB = 1024  # in kB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="that divide the student (%(default)s)")
    parser.add_argument("--layers", type=int, default=16, help="of 3.2 million weights each (%(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.layers)
        return 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    size = str(options.processes)
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--child", "--layers", str(options.layers)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(options.processes)
    ]
    return max(rank.wait() for rank in ranks)


def measure(layers: int) -> None:
    """One process: loads, splits, trains and gathers a student with new weights."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from distillchain_trainer.engine.device.sharding import gather_weights, sharded_copy
    from distillchain_trainer.engine.ranks.world import join_world
    from distillchain_trainer.models.loaded import Loaded
    from distillchain_trainer.models.outline import load_on_main

    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    tokenizer = SimpleNamespace(padding_side="right", init_kwargs={})
    world, found = join_world(), {}
    with world.membership():
        torch.zeros(8).sum().item()
        start = allocated_mib()
        student = load_on_main(
            lambda: Loaded(LlamaForSequenceClassification(config), tokenizer, "new", pretrained=False), world
        ).model
        found["loaded"] = allocated_mib() - start
        split = sharded_copy(student, world, device=torch.device("cpu"))
        found["split"] = allocated_mib() - start
        optimizer = torch.optim.AdamW(split.parameters(), fused=True)
        peaks = []
        for _ in range(2):
            split(input_ids=torch.ones(2, 8, dtype=torch.long)).logits.sum().backward()
            peaks.append(allocated_mib())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        found["steps"] = max(peaks) - start
        gather_weights(split, student, world)
        found["gathered"] = allocated_mib() - start
    weights = round(4 * student.num_parameters() / MIB / 1024)
    print(json.dumps({"rank": world.rank, "weights": weights, **found}), flush=True)


def allocated_mib() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) // MIB


if __name__ == "__main__":
    sys.exit(main())
