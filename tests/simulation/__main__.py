"""`python -m simulation`: runs random histories and prints the seeds of those that break an invariant."""

from __future__ import annotations

import argparse
import logging
import sys

from simulation.history import run
from simulation.plans import remembered_plans


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first; 0 repeats what `make test` runs")
    parser.add_argument("--exports", action="store_true", help="chains are exported, and checkpoints may be damaged")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # thousands of refused requests are part of it
    count = 0
    with remembered_plans():
        for seed in range(options.first, options.first + options.histories):
            if broken := run(seed, has_exports=options.exports):
                count += 1
                print(f"seed {seed}: {broken}", flush=True)
    print(f"{options.histories} histories, {count} broken")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
