"""The course of a run: train or resume, save, evaluate, predict, write the card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_fam import FAMTrainingArguments

from .arguments import DataArguments, MethodArguments, ModelArguments
from .command import repeat_command
from .data import TEST, TRAIN, VALIDATION
from .methods import make_trainer
from .metrics import first

WEIGHTS = ("*.safetensors", "*.bin")


class Unsaved(str):
    """A secret that is None in a pickle: training_args.bin, which is pushed with the model, has all arguments."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(None), ()

    def __deepcopy__(self, memo: Any) -> Unsaved:
        return self  # a copy within the process may push


@dataclass
class Run:
    """Everything that a recipe hands to `finetune`.

    Attributes:
        model_args: which model.
        data_args: which data.
        method: fam, baseline or sam.
        args: the Trainer's.
        model: what is trained.
        parts: prepared data.
        processing_class: tokenizer or image processor, saved with the model.
        collator: makes batches.
        compute_metrics: of logits and labels.
        task: of the card, such as "text-classification".
        preprocess_logits: makes logits small before they are gathered.
        loss: of outputs and labels, in place of the model's own.
        to_text: what is written for the logits of an item, if anything is.
    """

    model_args: ModelArguments
    data_args: DataArguments
    method: MethodArguments
    args: FAMTrainingArguments
    model: PreTrainedModel
    parts: DatasetDict
    processing_class: Any
    collator: Any
    compute_metrics: Callable[[Any], dict[str, float]] | None
    task: str
    preprocess_logits: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None
    to_text: Callable[[Any], str] | None = None


def begin(args: FAMTrainingArguments) -> None:
    """Before anything is loaded: nothing trained is overwritten, and new weights are a function of the seed.

    Raises:
        ValueError: output_dir contains a trained model, or no checkpoint to resume from.
    """
    if args.hub_token is not None:
        args.hub_token = Unsaved(args.hub_token)
    folder = Path(args.output_dir)
    trained = get_last_checkpoint(folder) if folder.is_dir() else None
    saved = [path for pattern in WEIGHTS if folder.is_dir() for path in folder.glob(pattern)]
    if args.do_train and args.resume_from_checkpoint is None and (trained or saved):
        raise ValueError(
            f"output_dir='{folder}' contains a trained model: choose another folder, or go on from its last checkpoint "
            "with --resume_from_checkpoint last."
        )
    if args.resume_from_checkpoint in ("last", "True", "true"):
        if trained is None:
            raise ValueError(f"resume_from_checkpoint: output_dir='{folder}' contains no checkpoint.")
        args.resume_from_checkpoint = trained
    set_seed(args.seed)


def finetune(run: Run) -> dict[str, float]:
    """Do what do_train, do_eval and do_predict ask for.

    Returns:
        All metrics, named ``train_...``, ``eval_...`` and ``predict_...``.

    Raises:
        ValueError: do_predict without test data.
    """
    if run.args.do_predict and TEST not in run.parts:
        raise ValueError("do_predict: the data has no test part; give test_file (test_dir for images).")
    trainer = make_trainer(
        run.method,
        run.args,
        model=run.model,
        train_dataset=run.parts[TRAIN],
        eval_dataset=run.parts[VALIDATION],
        processing_class=run.processing_class,
        data_collator=run.collator,
        compute_metrics=run.compute_metrics,
        preprocess_logits_for_metrics=run.preprocess_logits,
        compute_loss_func=run.loss,
    )
    found: dict[str, float] = {}
    if run.args.do_train:
        result = trainer.train(resume_from_checkpoint=run.args.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
        found |= note(trainer, "train", result.metrics)
    else:
        # Training finds out whether the model honours num_items_in_batch; if it does not, its evaluation loss would be
        # multiplied by the number of processes (transformers issue 47688).
        trainer.model_accepts_loss_kwargs = False
    for name, part in run.parts.items():
        if run.args.do_eval and name.startswith(VALIDATION):
            prefix = name.replace(VALIDATION, "eval")
            found |= note(trainer, prefix, trainer.evaluate(part, metric_key_prefix=prefix))
        elif run.args.do_predict and name.startswith(TEST):
            prefix = name.replace(TEST, "predict")
            predicted = trainer.predict(part, metric_key_prefix=prefix)
            found |= note(trainer, prefix, predicted.metrics or {})
            if run.to_text is not None and trainer.is_world_process_zero():
                write_predictions(Path(run.args.output_dir, f"{prefix}_results.txt"), predicted, run.to_text)
    if run.args.do_train:
        write_card(trainer, run)
    trainer.accelerator.end_training()
    return found


def write_predictions(path: Path, predicted: Any, to_text: Callable[[Any], str]) -> None:
    """One line an item, as the examples of transformers write them."""
    lines = [f"{k}\t{to_text(row)}" for k, row in enumerate(first(predicted.predictions))]
    path.write_text("\n".join(["index\tprediction", *lines]) + "\n", encoding="utf-8")


def note(trainer: Trainer, part: str, metrics: dict[str, float]) -> dict[str, float]:
    """Print the metrics and write them into output_dir."""
    trainer.log_metrics(part, metrics)
    trainer.save_metrics(part, metrics)
    return metrics


def write_card(trainer: Trainer, run: Run) -> None:
    """The model card, pushed with the model if that is asked for."""
    name = run.model_args.model_name_or_path
    said: dict[str, Any] = {"tasks": run.task, "dataset": run.data_args.title, "dataset_tags": []}
    said["command"] = repeat_command(trainer.args)
    if run.data_args.dataset_name:
        said["dataset_tags"] = run.data_args.dataset_name
        said["dataset_args"] = run.data_args.dataset_config_name or "default"
    if not Path(name).is_dir():
        said["finetuned_from"] = name
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**said)
    else:
        trainer.create_model_card(**said)
