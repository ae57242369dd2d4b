"""FAMCallback: the head's relative flatness in any Trainer, compiled or not."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..flatness.attach import AttachedFlatness, attach, has_term
from ..flatness.estimators import ClosedForm, default_lambda
from ..layer.finding import AUTO
from ..processes.decisions import mean_over_processes
from .flat_training import FlatTraining
from .requirements import refuse_split_models
from .training_args import FAMArguments

# What callbacks have attached, and the state of the training: one that was broken off leaves it on the model.
_ATTACHED: weakref.WeakKeyDictionary[AttachedFlatness, weakref.ref[Any]] = weakref.WeakKeyDictionary()


class FAMCallback(TrainerCallback):
    """Flatness-aware training of the head, as a callback of any ``transformers.Trainer``.

    Minimizes ``loss + fam_lambda * kappa`` (Adilova et al. 2023) for the layer into the logits under softmax
    cross-entropy with hard labels; see `hf_fam.attach`. For other losses and layers, and for centered features, use
    `FAMMixin`. Adds ``fam_kappa``, ``fam_term``, ``fam_lambda`` and ``fam_delta`` to the logs of the training loss: in
    ``trainer.state.log_history`` and for the callbacks that come after it. Nothing has to be saved: a resumed training
    continues with the right strength.

    Args:
        fam_lambda: strength lambda, at least 0; None takes the documented default; 0 is plain training, bit for bit.
        fam_layer: the layer into the logits: ``"auto"``, a dotted name, or the module, which may be one of the loss.
        fam_warmup_steps: steps over which lambda rises linearly; below 1 a fraction of the training.

    Raises:
        ValueError: a value is out of range.

    Examples:
        >>> import tempfile
        >>> from hf_fam import FAMCallback
        >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        >>> config = BertConfig(
        ...     vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ... )
        >>> trainer = Trainer(
        ...     model=BertForSequenceClassification(config),
        ...     args=TrainingArguments(
        ...         output_dir=tempfile.mkdtemp(), max_steps=1, logging_steps=1, report_to="none", use_cpu=True
        ...     ),
        ...     train_dataset=[{"input_ids": [k, k + 1, 2], "labels": k % 2} for k in range(8)],
        ...     callbacks=[FAMCallback(fam_lambda=0.003)],
        ... )
        >>> result = trainer.train()  # doctest: +ELLIPSIS
        {'loss': ..., 'fam_kappa': ..., 'fam_term': ..., 'fam_lambda': '0.003', 'fam_delta': ...}
        ...
    """

    def __init__(
        self, fam_lambda: float | None = None, fam_layer: str | nn.Module = AUTO, fam_warmup_steps: float = 0.0
    ) -> None:
        # A module is kept beside the arguments, in which it would be a name.
        self.fam_layer = fam_layer
        self._fam = FlatTraining(FAMArguments(fam_lambda=fam_lambda, fam_warmup_steps=fam_warmup_steps))
        self._attached: AttachedFlatness | None = None
        self._last: Tensor | None = None

    @property
    def fam_lambda(self) -> float | None:
        """The strength that was given; None for the default."""
        return self._fam.arguments.fam_lambda

    @property
    def fam_warmup_steps(self) -> float:
        """Steps over which lambda rises; below 1 a fraction of the training."""
        return self._fam.arguments.fam_warmup_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach the term to the head; what cannot work is refused before anything is trained."""
        self._detach()
        if self.fam_lambda != 0:
            refuse_split_models(args)
            model, layer = kwargs["model"], self.fam_layer
            # A layer of the loss (sentence-transformers' SoftmaxLoss) is no module of the model.
            if isinstance(layer, nn.Module) and all(module is not layer for module in model.modules()):
                model = layer
            detach_left_behind(model, state)
            self._attached = attach(model, 0.0, layer)
            self._fam.default_strength = default_lambda(ClosedForm.name, self._attached.layer.out_features)
            self._attached.strength = self._fam.strength
            _ATTACHED[self._attached] = weakref.ref(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set lambda of the step."""
        if self._attached is not None:
            self._attached.strength = self._fam.strength_at(state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Add kappa of the step to the log."""
        if self._attached is None:
            return
        kappa = self._attached.take_kappa()
        if kappa is None:
            if self._last is None:
                raise RuntimeError(self._attached.explain_inaction())
            # A loss that goes past the head, as of another task, has none. All processes have as many to log.
            kappa = torch.zeros_like(self._last)
        self._last = kappa
        scaler = getattr(optimizer, "scaler", None)
        kappa = kappa if scaler is None else kappa / scaler.get_scale()
        self._fam.log.add(state.global_step, kappa, kappa, 1.0, self._attached.strength, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Put the term beside the training loss."""
        if self._attached is None or not logs or "loss" not in logs:
            return
        mean = functools.partial(mean_over_processes, device=args.device)
        means = self._fam.log.drain(self._attached.layer.in_features, mean, finite_only=True)
        logs.update(means)  # for the callbacks that come after this one
        state.log_history[-1].update(means)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it was."""
        self._detach()

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.detach()
        self._attached, self._last = None, None
        self._fam.forget_training()


def refuse_second_term(trainer: Any, model: nn.Module | None) -> None:
    """See that nothing else adds a flatness term to a model that a trainer is about to add one to.

    Raises:
        ValueError: `FAMCallback` or `attach` does.
    """
    name = type(trainer).__name__
    if any(isinstance(c, FAMCallback) and c.fam_lambda != 0 for c in trainer.callback_handler.callbacks):
        raise ValueError(
            f"{name} trains the flatness term itself, and FAMCallback would add it again: leave the callback out, or "
            "set fam_lambda=0 in one of them."
        )
    if model is None:
        return
    detach_left_behind(model, trainer.state)
    if any(has_term(module) for module in model.modules()):
        raise ValueError(
            f"{name} trains the flatness term itself, and hf_fam.attach has put one on this model: detach() the handle "
            "that it returned, or set fam_lambda=0."
        )


def detach_left_behind(model: nn.Module, state: Any) -> None:
    """Take off what callbacks left on a model in trainings that were broken off."""
    modules = {*model.modules()}
    for attached, training in [*_ATTACHED.items()]:
        if attached.layer.module in modules:
            if training() is state:
                raise ValueError(
                    f"two FAMCallbacks add the flatness term of '{attached.layer.name}' in one training: leave one out."
                )
            attached.detach()
