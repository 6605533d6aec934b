"""Handles SIGTERM before anything slow is imported: process 1 of a pod has no default handler that would end it."""

from __future__ import annotations

import sys

from distillchain_trainer.signals import Signals

if __name__ == "__main__":
    signals = Signals()
    signals.install()

    from distillchain_trainer.launch.leaving import leave
    from distillchain_trainer.launch.process import main

    leave(main(sys.argv[1:], signals))
