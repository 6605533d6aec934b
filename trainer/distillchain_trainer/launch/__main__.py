"""A rank as a process: handles SIGTERM before anything slow is imported."""

from __future__ import annotations

from distillchain_trainer.signals import Signals

if __name__ == "__main__":
    signals = Signals()
    signals.install()

    from distillchain_trainer.launch.leaving import leave
    from distillchain_trainer.launch.rank import main

    leave(main(signals))
