"""``hf-fam demo``: the same trainings with Trainer and with FAMTrainer, side by side."""
