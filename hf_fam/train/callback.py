"""FAMCallback: the head's relative flatness in any Trainer, compiled or not."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..flatness.attach import AttachedFlatness, attach, has_term
from ..flatness.estimators import CLOSED_FORM
from ..flatness.perturbation import delta_of
from ..flatness.strength import default_lambda, is_strength
from ..layer.finding import AUTO
from .requirements import refuse_split_models
from .strength import Strength, warmup_steps

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
        self.fam_lambda = fam_lambda
        if fam_lambda is not None and not is_strength(fam_lambda):
            raise ValueError(f"fam_lambda={fam_lambda!r}: give a finite strength of at least 0, or None.")
        if not is_strength(fam_warmup_steps):
            raise ValueError(f"fam_warmup_steps={fam_warmup_steps!r}: give steps, or a fraction below 1.")
        self.fam_layer = fam_layer
        self.fam_warmup_steps = fam_warmup_steps
        self._attached: AttachedFlatness | None = None
        self._strength = 0.0
        self._last: Tensor | None = None
        self._kappas: list[Tensor] = []
        self._strengths: list[float] = []

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
            by_default = default_lambda(CLOSED_FORM, self._attached.layer.out_features)
            self._strength = by_default if self.fam_lambda is None else self.fam_lambda
            self._attached.strength = self._strength
            _ATTACHED[self._attached] = weakref.ref(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set lambda of the step."""
        if self._attached is not None:
            warm = warmup_steps(self.fam_warmup_steps, state.max_steps)
            self._attached.strength = Strength(self._strength, warm).at(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Note kappa of the step."""
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
        self._kappas.append(kappa if scaler is None else kappa / scaler.get_scale())
        self._strengths.append(self._attached.strength)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Put the term beside the training loss."""
        if self._attached is None or not logs or "loss" not in logs or not self._kappas:
            return
        kappa = torch.stack(self._kappas)
        strength = kappa.new_tensor(self._strengths)
        self._kappas, self._strengths = [], []
        counted = kappa.isfinite()  # steps that a gradient scaler skipped do not count
        means = torch.stack([x[counted].mean() for x in (kappa, kappa * strength, strength)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            means = means.to(args.device)
            torch.distributed.all_reduce(means)
            means = means / torch.distributed.get_world_size()
        found = dict(zip(("fam_kappa", "fam_term", "fam_lambda"), means.tolist(), strict=True))
        found["fam_delta"] = delta_of(found["fam_lambda"], self._attached.layer.in_features)
        found = {name: float(f"{value:.7g}") for name, value in found.items()}
        logs.update(found)
        state.log_history[-1].update(found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it was."""
        self._detach()

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.detach()
        self._attached, self._last, self._kappas, self._strengths = None, None, [], []


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
