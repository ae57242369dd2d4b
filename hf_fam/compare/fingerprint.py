"""A fingerprint of everything that the outcome of a run depends on, besides the run's own settings."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .._version import __version__
from ..frozen.content_hash import content_hash, dataset_hash, weights_hash
from .metric import Metric
from .splits import Splits

# Raise it when the same settings give other records.
FORMAT = 1

# Arguments that do not change what is trained, or that a run sets itself.
_IGNORED = (
    "output_dir", "logging_dir", "run_name", "report_to", "seed", "data_seed", "learning_rate", "disable_tqdm",
    "hub_token", "push_to_hub", "hub_model_id", "resume_from_checkpoint", "do_train", "do_eval", "do_predict",
    "overwrite_output_dir", "log_level", "log_level_replica",
)  # fmt: skip
_IGNORED_STARTS = ("logging_", "save_", "eval_", "dataloader_", "hub_")


def fingerprint(trainer: Any, test: Any, metric: Metric, splits: Splits) -> str:
    """Return the fingerprint.

    Args:
        trainer: the user's Trainer of the first seed, before any training.
        test: the test set, or None.
        metric: the metric.
        splits: the splits.
    """
    arguments = {
        name: value
        for name, value in trainer.args.to_dict().items()
        if name not in _IGNORED and not name.startswith(_IGNORED_STARTS)
    }
    model = trainer.model
    config: Any = getattr(model, "config", None)
    validation = trainer.eval_dataset
    frozen = sorted(name for name, p in model.named_parameters() if not p.requires_grad)
    return content_hash(
        FORMAT,
        [__version__, torch.__version__, transformers.__version__],
        type(model).__name__,
        config.to_diff_dict() if hasattr(config, "to_diff_dict") else None,
        weights_hash([*model.named_parameters(), *model.named_buffers()]),
        frozen,
        str(arguments),
        dataset_hash(trainer.train_dataset),
        None if validation is None else dataset_hash(validation),
        None if test is None else dataset_hash(test),
        [metric.name, metric.higher_is_better, splits.has_test, splits.test_fraction, splits.validation_fraction],
    )
