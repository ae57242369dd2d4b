"""The course of a run: train or resume, save, evaluate, predict, write the card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ...processes.checkpoints import newest_whole_checkpoint
from ...train.training_args import FAMTrainingArguments
from .command import repeat_command
from .data import TEST, TRAIN, VALIDATION
from .methods import make_trainer
from .metrics import first_output
from .run import Run
from .stored import with_stored_features

WEIGHT_FILES = ("*.safetensors", "*.bin")


class UnsavedToken(str):
    """An access token that a pickle contains as None.

    The Trainer pickles all its arguments into training_args.bin, and pushes the file with the model.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(None), ()

    def __deepcopy__(self, memo: Any) -> UnsavedToken:
        return self  # a copy within the process is used to push


def prepare_run(args: FAMTrainingArguments) -> None:
    """Check the output folder, find the checkpoint to resume from, and set the seed.

    Call it before anything is loaded: new weights are then a function of the seed.

    Raises:
        ValueError: output_dir contains a trained model, or no checkpoint to resume from.
    """
    if args.hub_token is not None:
        args.hub_token = UnsavedToken(args.hub_token)
    folder = Path(str(args.output_dir))
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    weights = [path for pattern in WEIGHT_FILES if folder.is_dir() for path in folder.glob(pattern)]
    if args.do_train and args.resume_from_checkpoint is None and (checkpoint or weights):
        raise ValueError(
            f"output_dir='{folder}' contains a trained model: choose another folder, or go on from its last checkpoint "
            "with --resume_from_checkpoint last."
        )
    if args.resume_from_checkpoint in ("last", "True", "true"):
        if checkpoint is None:
            raise ValueError(f"resume_from_checkpoint: output_dir='{folder}' contains no checkpoint.")
        args.resume_from_checkpoint = newest_whole_checkpoint(folder)
    set_seed(args.seed)


def finetune(run: Run) -> dict[str, float]:
    """Train, evaluate and predict, as do_train, do_eval and do_predict say.

    Returns:
        All metrics, named ``train_...``, ``eval_...`` and ``predict_...``.

    Raises:
        ValueError: do_predict is set and there is no test data.
    """
    if run.args.do_predict and TEST not in run.splits:
        raise ValueError("do_predict: the data has no test split; give test_file (test_dir for images).")
    set_seed(run.args.seed)
    model = run.make_model()
    if run.model_args.freeze_backbone:
        run, _ = with_stored_features(run, model)
    trainer = make_trainer(
        run.method,
        run.args,
        model=model,
        train_dataset=run.splits[TRAIN],
        eval_dataset=run.splits[VALIDATION],
        processing_class=run.processing_class,
        data_collator=run.collator,
        compute_metrics=run.compute_metrics,
        preprocess_logits_for_metrics=run.preprocess_logits,
        compute_loss_func=run.loss,
    )
    metrics: dict[str, float] = {}
    if run.args.do_train:
        result = trainer.train(resume_from_checkpoint=run.args.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
        metrics |= log_and_save(trainer, "train", result.metrics)
    else:
        # Training finds out whether the model honours num_items_in_batch; if it does not, its evaluation loss would be
        # multiplied by the number of processes (transformers issue 47688).
        trainer.model_accepts_loss_kwargs = False
    for name, split in run.splits.items():
        if run.args.do_eval and name.startswith(VALIDATION):
            prefix = name.replace(VALIDATION, "eval")
            metrics |= log_and_save(trainer, prefix, trainer.evaluate(split, metric_key_prefix=prefix))
        elif run.args.do_predict and name.startswith(TEST):
            prefix = name.replace(TEST, "predict")
            predicted = trainer.predict(split, metric_key_prefix=prefix)
            metrics |= log_and_save(trainer, prefix, predicted.metrics or {})
            if run.to_text is not None and trainer.is_world_process_zero():
                write_predictions(Path(str(run.args.output_dir), f"{prefix}_results.txt"), predicted, run.to_text)
    if run.args.do_train:
        write_card(trainer, run)
    trainer.accelerator.end_training()
    return metrics


def write_predictions(path: Path, predicted: Any, to_text: Callable[[Any], str]) -> None:
    """Write one line for each item, in the format of the transformers examples.

    Args:
        path: the file.
        predicted: what `Trainer.predict` returns.
        to_text: turns the logits of an item into its line.
    """
    lines = [f"{k}\t{to_text(row)}" for k, row in enumerate(first_output(predicted.predictions))]
    path.write_text("\n".join(["index\tprediction", *lines]) + "\n", encoding="utf-8")


def log_and_save(trainer: Trainer, name: str, metrics: dict[str, float]) -> dict[str, float]:
    """Print metrics, write them into output_dir and return them."""
    trainer.log_metrics(name, metrics)
    trainer.save_metrics(name, metrics)
    return metrics


def write_card(trainer: Trainer, run: Run) -> None:
    """Write the model card; with push_to_hub it is pushed together with the model."""
    model_name = run.model_args.model_name_or_path
    fields: dict[str, Any] = {"tasks": run.task, "dataset": run.data_args.title, "dataset_tags": []}
    fields["command"] = repeat_command(trainer.args)
    if run.data_args.dataset_name:
        fields["dataset_tags"] = run.data_args.dataset_name
        fields["dataset_args"] = run.data_args.dataset_config_name or "default"
    if not Path(model_name).is_dir():
        fields["finetuned_from"] = model_name
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**fields)
    else:
        trainer.create_model_card(**fields)
