"""``hf-fam demo``: the same trainings with Trainer and with FAMTrainer, and what came out differently."""

from .fine_tuning import DemoSettings, run_demo
from .frozen import FrozenSettings, run_frozen_demo

__all__ = ["DemoSettings", "FrozenSettings", "run_demo", "run_frozen_demo"]
