"""A recipe's run on the stored features of a frozen backbone."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...data.splits import TRAIN
from ...frozen.frozen_backbone import FrozenBackbone
from ...frozen.stored_features import collate_features, feature_folder, stored_features
from .run import Run

# Items of the batch that is compared with the whole model.
CHECKED_ITEMS = 4


def with_stored_features(run: Run, model: Any) -> tuple[Run, FrozenBackbone]:
    """Return a run whose data are features, with the backbone, and make the model train on them.

    Args:
        run: the run.
        model: its model, after `freeze_backbone`; its ``forward`` then takes features.

    Raises:
        ValueError: the head of this model cannot be trained on stored features.
    """
    first = run.splits[TRAIN]
    backbone = FrozenBackbone(model, run.collator([first[0]]))
    backbone.attach(model)
    backbone.check(model, run.collator([first[k] for k in range(min(CHECKED_ITEMS, len(first)))]))
    processor = run.processing_class
    settings = None if hasattr(processor, "vocab_size") else str(getattr(processor, "to_dict", lambda: processor)())
    model.to(run.args.device)
    with run.args.main_process_first():
        splits = {
            name: stored_features(
                backbone,
                model,
                split,
                run.collator,
                settings=settings,
                folder=feature_folder(run.model_args.cache_dir),
                batch_size=run.args.per_device_eval_batch_size,
            )
            for name, split in run.splits.items()
        }
    return dataclasses.replace(run, splits=splits, collator=collate_features), backbone
