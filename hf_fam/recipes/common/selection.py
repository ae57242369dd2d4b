"""Which rows are trained on, and which are validated on."""

from __future__ import annotations

from datasets import ClassLabel, Dataset, DatasetDict

from ...data.errors import DataError
from ...data.splits import TEST, TRAIN, VALIDATION, split_rows
from .arguments import DataArguments


def select_samples(splits: DatasetDict, data: DataArguments, seed: int, label: str | None = None) -> DatasetDict:
    """Split validation data off if there is none, and keep at most as many samples as allowed.

    Samples for training and validation are chosen at random, because data is often sorted by class. The test split
    keeps its first samples.

    Args:
        splits: the data.
        data: the fraction for validation and the limits; ``has_validation`` and ``was_split`` are set.
        seed: seed of the random choices.
        label: column of the classes, of which the validation data then has equal shares; None for other data.

    Raises:
        DataError: there is not enough training data to split validation data off.
    """
    if VALIDATION not in splits and not data.is_whole:
        data.was_split = True
        splits = DatasetDict({**splits, **split_off(splits[TRAIN], data.train_val_split, seed, label)})
    limits = {TRAIN: data.max_train_samples, VALIDATION: data.max_eval_samples, TEST: data.max_predict_samples}
    selected = {}
    for split in (*limits, *(name for name in data.hub_split_names() if name not in limits)):
        if split in splits:
            limit = limits[split.split("_")[0]]
            samples = splits[split] if limit is None or split.startswith(TEST) else splits[split].shuffle(seed)
            selected[split] = samples if limit is None else samples.select(range(min(limit, len(samples))))
    data.has_validation = VALIDATION in selected
    selected.setdefault(VALIDATION, selected[TRAIN])
    return DatasetDict(selected)


def split_off(rows: Dataset, fraction: float, seed: int, label: str | None) -> dict[str, Dataset]:
    """Return training data without some rows, and these rows as validation data.

    Args:
        rows: the training data.
        fraction: the fraction to validate on.
        seed: seed of the random choice.
        label: column of the classes; None to choose from all rows alike.

    Raises:
        DataError: there is nothing left to train on, or nothing to validate on.
    """
    labels = None
    if label is not None:
        labels = [value.strip() if isinstance(value, str) else value for value in rows[label]]
    kept, taken = split_rows(len(rows), fraction, seed, labels)
    if not len(taken) and isinstance(rows.features[label], ClassLabel):  # all classes are known without their rows
        kept, taken = split_rows(len(rows), fraction, seed)
    if not len(kept) or not len(taken):
        what = "none to train on" if not len(kept) else "none to validate on, since every class keeps one"
        raise DataError(
            f"train_val_split={fraction!r} of {len(rows)} rows leaves {what}: give more rows, or validation data.",
            TRAIN,
        )
    return {TRAIN: rows.select(kept), VALIDATION: rows.select(taken)}
