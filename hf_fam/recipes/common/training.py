"""The course of a run: train or resume, save, evaluate, predict, write the card."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ...data.splits import TEST, TRAIN, VALIDATION
from ...frozen.stored_features import feature_folder
from ...inputs.paths import no_new_folder_if_refused, require_writable_folder
from ...inputs.text import LONGEST_PATH, quote
from ...processes.checkpoints import newest_whole_checkpoint
from ...train.training_args import FAMTrainingArguments
from .announcing import print_summary
from .arguments import ModelArguments
from .card import procedure, write_card
from .interruption import train_until_stopped
from .launching import refuse_lost_processes
from .methods import make_trainer
from .metrics import first_output
from .run import Run
from .stored import with_stored_features

WEIGHT_FILES = ("*.safetensors", "*.bin")
# Files of a saved model that other folders may have, too.
OVERWRITTEN_FILES = ("README.md", "config.json")


def prepare_run(args: FAMTrainingArguments, model_args: ModelArguments) -> None:
    """Check the output folder, find the checkpoint to resume from, and set the seed.

    Call it before anything is loaded: new weights are then a function of the seed.

    Raises:
        ValueError: output_dir contains a trained model or other files that would be overwritten, no checkpoint to
            resume from, or cannot be written.
    """
    refuse_lost_processes()
    folder = str(args.output_dir)
    shown = f"output_dir={quote(folder, LONGEST_PATH)}"
    if not folder:
        raise ValueError("output_dir='': give the name of a folder.")
    require_writable_folder("output_dir", folder)
    cache = feature_folder(model_args.cache_dir) if model_args.freeze_backbone else model_args.cache_dir
    if cache is not None:
        require_writable_folder("cache_dir", str(cache))
    checkpoint = get_last_checkpoint(folder) if os.path.isdir(folder) else None
    if args.do_train and args.resume_from_checkpoint is None and os.path.isdir(folder):
        if checkpoint or any(weights for pattern in WEIGHT_FILES for weights in Path(folder).glob(pattern)):
            remedy = "choose another folder, or delete this one."
            if checkpoint:
                remedy = "choose another folder, or go on from its last checkpoint with --resume_from_checkpoint last."
            raise ValueError(f"{shown} contains a trained model: {remedy}")
        file = next((name for name in OVERWRITTEN_FILES if os.path.exists(os.path.join(folder, name))), None)
        if file is not None:
            raise ValueError(
                f"{shown} contains {file}, which the model's would overwrite: choose another folder, or delete it."
            )
    if args.resume_from_checkpoint in ("last", "True", "true"):
        if checkpoint is None:
            raise ValueError(f"resume_from_checkpoint: {shown} contains no checkpoint: leave out the flag.")
        args.resume_from_checkpoint = newest_whole_checkpoint(folder)
    elif args.resume_from_checkpoint is not None and not os.path.isdir(args.resume_from_checkpoint):
        given = quote(args.resume_from_checkpoint, LONGEST_PATH)
        raise ValueError(
            f"resume_from_checkpoint={given}: there is no such folder; `last` is the last one in output_dir."
        )
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # which torch would warn of
        if args.fp16:  # accelerate leaves it out without a word
            warnings.warn(
                "fp16 has no effect on a CPU, which trains in float32: leave it out, or give --bf16.", stacklevel=2
            )
    set_seed(args.seed)


def finetune(run: Run) -> dict[str, float]:
    """Train, evaluate and predict, as do_train, do_eval and do_predict say.

    Returns:
        All metrics, named ``train_...``, ``eval_...`` and ``predict_...``.

    Raises:
        ValueError: do_predict is set and there is no test data, or the Trainer cannot be made.
    """
    if run.args.do_predict and TEST not in run.splits:
        raise ValueError("do_predict: the data has no test split; give test_file (test_dir for images).")
    check_metric(run.args, run.metric_names)
    if run.model_args.freeze_backbone:
        run, _ = with_stored_features(run, run.model)
    with no_new_folder_if_refused(str(run.args.output_dir)):
        trainer = make_trainer(
            run.method,
            run.args,
            model=run.model,
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
        print_summary(run, trainer)
        result = train_until_stopped(
            trainer, lambda: trainer.train(resume_from_checkpoint=run.args.resume_from_checkpoint)
        )
        trainer.save_model()
        trainer.save_state()
        metrics |= log_and_save(trainer, "train", result.metrics)
    else:
        # Training finds out whether the model uses num_items_in_batch. If it does not, its evaluation loss would be
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
        trainer.procedure = procedure(run, trainer)  # type: ignore[attr-defined]  # of RecipeTrainer
        write_card(trainer, run)
        if trainer.is_world_process_zero():
            print(where_the_model_is(str(run.args.output_dir), run.task))
    trainer.accelerator.wait_for_everyone()  # the main process may still write
    trainer.accelerator.end_training()
    return metrics


# Inputs of the lines that use the model, by task.
EXAMPLES = {
    "text-classification": ("new.csv", "My card has not arrived."),
    "token-classification": ("new.jsonl", "Angela moved to Paris."),
    "image-classification": ("photos", "photo.png"),
    "text-generation": (None, "Once upon a time"),
}


def where_the_model_is(folder: str, task: str) -> str:
    """Return where the trained model is, with two lines that use it.

    Args:
        folder: output_dir.
        task: task of the model card.
    """
    file, example = EXAMPLES[task]
    name = quote(folder, LONGEST_PATH)
    program = f"from transformers import pipeline; print(pipeline({task!r}, {name})({example!r}))"
    lines = [f"The model is in {folder}. To use it:"]
    if file is not None:
        lines.append(f"  hf-fam predict {shlex.quote(folder)} {file} --output predictions.csv")
    is_plain = not set(program) & set('"$`\\!')
    lines.append(f"  python -c {f'{chr(34)}{program}{chr(34)}' if is_plain else shlex.quote(program)}")
    return "\n".join(lines)


def check_metric(args: FAMTrainingArguments, names: Sequence[str]) -> None:
    """Refuse a metric_for_best_model that no evaluation computes.

    Args:
        args: the Trainer's arguments.
        names: names of the metrics.

    Raises:
        ValueError: names the metric and those that there are.
    """
    metric = args.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in ("loss", *names):
        raise ValueError(f"metric_for_best_model={quote(metric)}: choose one of loss, {', '.join(names)}.")


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
    without = [f"{name}_model_preparation_time", *([] if trainer.state.max_steps else ["epoch"])]  # of a fitted head
    metrics = {key: value for key, value in metrics.items() if key not in without}
    trainer.log_metrics(name, metrics)
    trainer.save_metrics(name, metrics)
    return metrics
