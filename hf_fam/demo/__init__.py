"""``hf-fam demo``: one fine-tuning with Trainer, the same with FAMTrainer, and what came out differently."""

from .run import DemoSettings, run_demo

__all__ = ["DemoSettings", "run_demo"]
