"""Fine-tune twice, from the same seed and with the same budget, and compare."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ...measure.classification_metrics import accuracy
from ...measure.plotting import plot_runs
from ...train.model_card import last_logged
from ...train.trainer import FAMTrainer
from .environment import check_seeds, versions
from .report import PANELS, compare, format_table, interpret
from .task import Task, encoder_folder
from .timing import interleaved_step_seconds


@dataclass(frozen=True)
class DemoSettings:
    """The settings that both runs of the demo share.

    Attributes:
        output_dir: folder for figure, results and model.
        seed: seed of the head's initial weights, the order of the data and dropout.
        model: folder of an encoder with its tokenizer; None for all-MiniLM-L6-v2 from its package.
        intents: number of intents, 30 at most, with 10 training examples each.
        epochs: number of epochs, enough for a training loss close to zero.
        learning_rate: the highest one, after a warm-up over a tenth of the training. It then falls linearly.
        batch_size: training examples in a step.
        max_length: tokens after which a text is cut.
        test_every: epochs from one evaluation on the test set to the next.
        timed_pairs: number of timed pairs of steps.
    """

    output_dir: Path = Path("out/demo")
    seed: int = 0
    model: Path | None = None
    intents: int = 30
    epochs: int = 20
    learning_rate: float = 3e-4
    batch_size: int = 16
    max_length: int = 64
    test_every: int = 4
    timed_pairs: int = 30

    @classmethod
    def quick(cls, **changes: Any) -> DemoSettings:
        """Return settings for a quick check that everything works."""
        return cls(**{"intents": 5, "epochs": 3, "timed_pairs": 4, **changes})


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Train with both trainers, print the table, and save all results.

    The results are a figure, the numbers, and the FAM model with its card.

    Args:
        settings: settings of both runs.

    Returns:
        The contents of results.json.

    Raises:
        ValueError: the model, its package, the data or matplotlib is missing, the weights have another checksum, or the
            seed is out of range.
    """
    check_seeds(settings.seed, settings.seed)
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the figure needs matplotlib: pip install 'hf-fam[demo]'")
    folder = encoder_folder(settings.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = Task.load(tokenizer, settings.intents, settings.max_length)
    print(f"{task.description}\n")
    print(f"Timing {settings.timed_pairs} pairs of steps, on two models of their own")
    timed = {kind.__name__: make_trainer(kind, folder, settings, task) for kind in (Trainer, FAMTrainer)}
    seconds = interleaved_step_seconds(timed, task.train, settings.timed_pairs)
    del timed
    runs: dict[str, dict[str, Any]] = {}
    for kind in (Trainer, FAMTrainer):
        print(f"\n{kind.__name__}: {settings.epochs} epochs")
        trainer = make_trainer(kind, folder, settings, task)
        recorder = EpochRecorder(task, settings.test_every)
        trainer.add_callback(recorder)
        trainer.train()
        runs[kind.__name__] = {**task.test_scores(trainer.model), "history": recorder.records}
    result = {
        "task": {"description": task.description, "test_items": len(task.test)},
        "fam": describe_fam(trainer),
        "runs": runs,
        "at_equal_loss": compare({name: run["history"] for name, run in runs.items()}),
        "step_seconds": seconds,
        "settings": {name: getattr(settings, name) for name in ("seed", "epochs", "learning_rate", "batch_size")},
        "versions": versions(),
    }
    print(f"\n{format_table(result)}\n\n{interpret(result)}\n")
    save(result, trainer, settings)
    return result


def make_trainer(trainer_class: type[Trainer], folder: Path, settings: DemoSettings, task: Task) -> Any:
    """Return a trainer on a fresh model.

    Seed, data and budget do not depend on its class.
    """
    set_seed(settings.seed)
    names = dict(enumerate(task.names))
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(names), id2label=names, label2id={name: k for k, name in names.items()}
    )
    args = TrainingArguments(
        output_dir=str(settings.output_dir),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        warmup_steps=0.1,
        per_device_train_batch_size=settings.batch_size,
        seed=settings.seed,
        logging_steps=0.2,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=False,  # by default it follows the verbosity of the logs
    )
    return trainer_class(
        model=model,
        args=args,
        train_dataset=task.train,
        data_collator=task.collator,
        processing_class=task.tokenizer,
    )


class EpochRecorder(TrainerCallback):
    """Records loss and kappa before the training and after every epoch, and sometimes accuracy.

    Args:
        task: the data.
        test_every: epochs from one accuracy to the next.
    """

    def __init__(self, task: Task, test_every: int) -> None:
        self.records: list[dict[str, float]] = []
        self._task, self._test_every = task, test_every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add a record before the first epoch."""
        self.on_epoch_end(args, state, control, **kwargs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add a record."""
        loss, kappa = self._task.train_loss_and_kappa(kwargs["model"])
        record = {"step": state.global_step, "train_loss": loss, "kappa": kappa}
        if len(self.records) % self._test_every == 0 or state.global_step == state.max_steps:
            record["accuracy"] = accuracy(*self._task.test_logits(kwargs["model"]))
        self.records.append(record)


def describe_fam(trainer: Any) -> dict[str, Any]:
    """Return the layer, estimator and lambda that FAM's defaults chose."""
    flatness, logs = trainer.relative_flatness, trainer.state.log_history
    return {
        "layer": flatness.layer.name,
        "shape": [flatness.layer.out_features, flatness.layer.in_features],
        "estimator": flatness.estimator,
        "lambda": last_logged(logs, "fam_lambda"),
        "delta": last_logged(logs, "fam_delta"),
    }


def save(result: dict[str, Any], trainer: Any, settings: DemoSettings) -> None:
    """Write figure, results and the trained model with its card.

    It prints where they are.
    """
    folder = settings.output_dir
    trainer.save_model(str(folder))
    # With these entries, the Trainer does not look up the license on the Hub.
    card_entries = {"license": "apache-2.0", "finetuned_from": "sentence-transformers/all-MiniLM-L6-v2"}
    trainer.create_model_card(
        model_name=f"Intents of bank customers, fine-tuned with {type(trainer).__name__}",
        language="en",
        tasks="text-classification",
        dataset=f"Banking77 ({len(trainer.model.config.id2label)} intents, 10 examples each)",
        dataset_tags="PolyAI/banking77",
        **({} if settings.model else card_entries),
    )
    (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot_runs({name: run["history"] for name, run in result["runs"].items()}, PANELS, folder / "runs.png")
    print(f"Both runs as a figure:           {folder / 'runs.png'}")
    print(f"All numbers:                     {folder / 'results.json'}")
    print(f"The FAM model and its card:      {folder}/ and {folder / 'README.md'}")
