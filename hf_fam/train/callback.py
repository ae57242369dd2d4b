"""FAMCallback: flatness-aware training of the head in any Trainer, compiled or not."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..flatness.attach import AttachedFlatness, attach, has_flatness_term
from ..flatness.estimators import ClosedForm, default_lambda
from ..flatness.smoothing import check_smoothing
from ..inputs.text import quote
from ..layer.finding import AUTO
from ..processes.checkpoints import resume_hint
from ..processes.decisions import NonFiniteFlatnessError, StoppedWithTheOthersError, mean_over_processes
from .flat_training import FlatTraining
from .not_finite import problem_of_weights
from .requirements import refuse_split_models
from .training_args import FAMArguments

# The terms that callbacks attached, with the state of their training. An interrupted training leaves its term behind.
_ATTACHED: weakref.WeakKeyDictionary[AttachedFlatness, weakref.ref[Any]] = weakref.WeakKeyDictionary()


class FAMCallback(TrainerCallback):
    """Flatness-aware training of the classification head in any ``Trainer``.

    The callback minimizes ``loss + fam_lambda * kappa`` (Adilova et al. 2023) for softmax cross-entropy with hard
    labels; see `hf_fam.attach`. Use `FAMMixin` for other losses, hidden layers or centered features.

    The callback adds ``fam_kappa``, ``fam_term``, ``fam_lambda`` and ``fam_delta`` to the logs of the training loss, in
    ``trainer.state.log_history`` and for later callbacks. A resumed training continues with the right strength.

    Args:
        fam_lambda: strength of the flatness term, at least 0. Defaults to the strength of the closed form
            (docs/choosing.md). 0 is plain training, bit for bit.
        fam_layer: the layer that computes the logits: ``"auto"``, a dotted name, or a module of the model or of the
            loss.
        fam_warmup_steps: number of steps over which lambda rises linearly. A number below 1 is a fraction of the
            training.
        fam_smoothing: eps of the smoothed kappa, at least 0 and below 1; see `RelativeFlatness`.

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
        self,
        fam_lambda: float | None = None,
        fam_layer: str | nn.Module = AUTO,
        fam_warmup_steps: float = 0.0,
        fam_smoothing: float = 0.0,
    ) -> None:
        if not isinstance(fam_layer, (str, nn.Module)):
            raise TypeError(f'fam_layer={quote(fam_layer)}: give "auto", a dotted module name or a module.')
        # The arguments would store the name instead of the module.
        self.fam_layer = fam_layer
        check_smoothing("fam_smoothing", fam_smoothing)
        arguments = FAMArguments(fam_lambda=fam_lambda, fam_warmup_steps=fam_warmup_steps, fam_smoothing=fam_smoothing)
        self._fam = FlatTraining(arguments)
        self._attached: AttachedFlatness | None = None
        self._last_kappa: Tensor | None = None

    def __repr__(self) -> str:
        strength = "its default" if self.fam_lambda is None else f"{self.fam_lambda:g}"
        layer = self.fam_layer if isinstance(self.fam_layer, str) else type(self.fam_layer).__name__
        return f"FAMCallback(fam_layer={layer!r}, fam_lambda={strength})"

    @property
    def fam_lambda(self) -> float | None:
        """Return the strength that the user set, or None for the default."""
        return self._fam.arguments.fam_lambda

    @property
    def fam_warmup_steps(self) -> float:
        """Return the warm-up in steps; below 1 it is a fraction of the training."""
        return self._fam.arguments.fam_warmup_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach the term to the head, or refuse settings that cannot work."""
        self._detach()
        if self.fam_lambda != 0:
            refuse_split_models(args)
            model, layer = kwargs["model"], self.fam_layer
            # The layer may belong to the loss instead of the model, as in sentence-transformers' SoftmaxLoss.
            if isinstance(layer, nn.Module) and all(module is not layer for module in model.modules()):
                model = layer
            detach_interrupted(model, state)
            self._attached = attach(model, 0.0, layer, smoothing=self._fam.arguments.fam_smoothing or 0.0)
            self._fam.default_strength = default_lambda(ClosedForm.name, self._attached.layer.out_features)
            self._attached.strength = self._fam.strength
            _ATTACHED[self._attached] = weakref.ref(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set lambda for the step."""
        if self._attached is not None:
            self._attached.strength = self._fam.strength_at(state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Add the step's kappa to the log.

        Raises:
            RuntimeError: the term did not act in the first step; the message says why.
        """
        if self._attached is None:
            return
        kappa = self._attached.take_kappa()
        if kappa is None:
            if self._last_kappa is None:
                raise RuntimeError(self._attached.explain_inaction())
            # The loss of another task may not use the head. All processes must log the same number of entries.
            kappa = torch.zeros_like(self._last_kappa)
        self._last_kappa = kappa
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None:
            kappa = kappa / scaler.scale(torch.ones_like(kappa))  # get_scale() would wait for the device
        self._fam.log.add(state.global_step, kappa, kappa, 1.0, self._attached.strength, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Add the flatness term to the logs of the training loss."""
        if self._attached is None or not logs or "loss" not in logs:
            return
        mean = functools.partial(mean_over_processes, device=args.device)
        means = self._fam.log.drain(self._attached.layer.in_features, mean)
        logs.update(means)  # for later callbacks
        state.log_history[-1].update(means)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hooks, and refuse to end with weights that are not finite.

        The Trainer itself would save them as the final model.

        Raises:
            NonFiniteFlatnessError: a weight is NaN or infinite.
        """
        model = None if self._attached is None else kwargs.get("model")
        self._detach()
        problem = None if model is None else problem_of_weights(model, state.global_step, self._fam.strength)
        if problem is not None:
            error = NonFiniteFlatnessError if state.is_world_process_zero else StoppedWithTheOthersError
            raise error(problem + resume_hint(args.output_dir))

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.detach()
        self._attached, self._last_kappa = None, None
        self._fam.forget_training()


def refuse_second_term(trainer: Any, model: nn.Module | None) -> None:
    """Refuse a second flatness term on a model that a trainer trains with one.

    Raises:
        ValueError: `FAMCallback` or `attach` adds a term, too.
    """
    name = type(trainer).__name__
    if any(isinstance(c, FAMCallback) and c.fam_lambda != 0 for c in trainer.callback_handler.callbacks):
        raise ValueError(
            f"{name} trains the flatness term itself, and FAMCallback would add it again: remove the callback, or set "
            "fam_lambda=0 in one of them."
        )
    if model is None:
        return
    detach_interrupted(model, trainer.state)
    if any(has_flatness_term(module) for module in model.modules()):
        raise ValueError(
            f"{name} trains the flatness term itself, but hf_fam.attach has put one on this model: detach() the handle "
            "that attach returned, or set fam_lambda=0."
        )


def detach_interrupted(model: nn.Module, state: Any) -> None:
    """Remove the terms that interrupted trainings left on a model.

    Raises:
        ValueError: another callback added a term in the same training.
    """
    modules = {*model.modules()}
    for attached, state_of_training in [*_ATTACHED.items()]:
        if attached.layer.module in modules:
            if state_of_training() is state:
                raise ValueError(
                    f"two FAMCallbacks add the flatness term of '{attached.layer.name}' in one training: "
                    "remove one of them."
                )
            attached.detach()
