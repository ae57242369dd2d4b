"""The Trainers of a recipe, for `hf_fam.compare`."""

from __future__ import annotations

import copy
import functools
import importlib
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import Trainer, set_seed

from ...data.checks import IGNORED
from ...data.splits import TEST, TRAIN, VALIDATION
from ...frozen.frozen_backbone import detach
from ...methods import Method
from .arguments import make_method
from .methods import make_plain_trainer
from .metrics import regression_metrics
from .run import Run
from .stored import with_stored_features


@dataclass(frozen=True)
class RecipeTrainers:
    """Makes the Trainer of a recipe for a seed; another process can import it.

    Args:
        task: name of the recipe.
        argv: arguments of the recipe.
        methods: names of the methods that are compared.
    """

    task: str
    argv: tuple[str, ...]
    methods: tuple[str, ...]

    def __call__(self, seed: int) -> Trainer:
        """Return a fresh Trainer."""
        prepared = _prepared(self)
        run = prepared.run
        args = copy.deepcopy(run.args)
        args.seed = seed
        return make_plain_trainer(
            run.method,
            args,
            model=prepared.model(seed),
            train_dataset=run.splits[TRAIN],
            eval_dataset=run.splits[VALIDATION] if run.data_args.has_validation else None,
            processing_class=run.processing_class,
            data_collator=run.collator,
            compute_metrics=run.compute_metrics,
            preprocess_logits_for_metrics=run.preprocess_logits,
            compute_loss_func=run.loss,
        )

    @property
    def run(self) -> Run:
        """Return the prepared run."""
        return _prepared(self).run

    @property
    def has_test(self) -> bool:
        """Return True if there is a test set with labels."""
        return _is_labeled(self.run.splits.get(TEST))

    @property
    def default_metric(self) -> str:
        """Return the correlation for predicted numbers, and the accuracy for classes."""
        return "pearson" if self.run.compute_metrics is regression_metrics else "accuracy"

    def test_dataset(self) -> Any:
        """Return the test set."""
        return self.run.splits[TEST]

    def scoring_dataset(self) -> Any:
        """Return the training rows as they are scored, without augmentation; None if validation data is given."""
        run = self.run
        return None if run.data_args.has_validation else run.splits[VALIDATION]

    def chosen(self) -> list[Method]:
        """Return the methods with the strengths that the arguments set."""
        return [make_method(name, self.run.method, self.run.args) for name in self.methods]


class _Prepared:
    """A run whose data are loaded, and whose models are made quickly."""

    def __init__(self, trainers: RecipeTrainers) -> None:
        datasets.disable_progress_bars()
        recipe = importlib.import_module(f"hf_fam.recipes.{trainers.task}")
        self.run: Run = recipe.make_run(trainers.argv, trainers.methods)
        self._frozen: Any = None
        if self.run.model_args.freeze_backbone:
            self._heads: dict[int, dict[str, Any]] = {}
            self._frozen = self.run.model
            self.run, self._backbone = with_stored_features(self.run, self._frozen)
            detach(self._frozen)

    def model(self, seed: int) -> Any:
        """Return the model of a seed; those on a frozen backbone share it."""
        if self._frozen is None:
            set_seed(seed)
            return self.run.make_model()
        if seed not in self._heads:
            set_seed(seed)
            fresh = self.run.make_model()
            self._heads[seed] = {name: p.detach() for name, p in fresh.named_parameters() if p.requires_grad}
        shared = {id(p): p for p in self._frozen.parameters() if not p.requires_grad}
        model = copy.deepcopy(self._frozen, memo=shared)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(self._heads[seed][name])
        self._backbone.attach(model)
        return model


@functools.cache
def _prepared(trainers: RecipeTrainers) -> _Prepared:
    return _Prepared(trainers)


def _is_labeled(split: Any) -> bool:
    """Return True if every item of a split has a label."""
    if split is None or not len(split):
        return False
    labels = getattr(split, "labels", None)
    if isinstance(labels, torch.Tensor):
        return bool((labels != IGNORED).any())
    item = split[0]
    return any(name in item for name in ("labels", "label"))
