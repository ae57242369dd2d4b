"""The state of flatness-aware training between the steps of a Trainer."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_pt_utils import find_batch_size

from .._compat import forget_forward_pass, loss_is_scaled, prepared_inputs, train_batch_size
from ..flatness.estimators import ActsIn
from ..flatness.relative_flatness import RelativeFlatness
from ..layer.finding import AUTO
from ..layer.model_state import preserve_state
from ..processes.checkpoints import resume_hint
from ..processes.decisions import stop_together, sum_over_processes
from .first_batch import copy_of_inputs, correct_loss_scaling
from .idle_term import IdleTermWatch
from .log import FlatnessLog
from .mean_state import load_mean, save_flatness
from .model_card import FlatnessSummary, first_logged, last_logged
from .not_finite import sum_of_labels
from .overconfidence import OverconfidenceWatch
from .requirements import (
    MISSING_TERM,
    check_requirements,
    describe_sharded_term,
    is_deepspeed,
    is_fsdp,
    refuse_parallelism,
)
from .strength import strength_at
from .training_args import CORRECTED, FAMArguments

# The gradient ratio is measured for the log once in this many steps. It costs one more pass through the tail.
RATIO_EVERY = 10


class FlatTraining:
    """Strength, log and counters of a training with `FAMMixin` or `FAMCallback`.

    Args:
        arguments: layer, estimator and strength.

    Attributes:
        arguments: layer, estimator and strength.
        flatness: flatness of the current model; None in plain training.
        default_strength: lambda if ``fam_lambda`` is None.
        log: entries since the last log.
        is_first_batch_checked: whether a first batch has shown how the model uses its loss.
    """

    def __init__(self, arguments: FAMArguments) -> None:
        self.arguments = arguments
        self.flatness: RelativeFlatness | None = None
        self.default_strength = 0.0
        self._settings: tuple[Any, ...] = ()
        self._loss_scaling: tuple[bool, bool | None] | None = None
        self.forget_training()

    def forget_training(self) -> None:
        """Reset the state of an earlier training.

        It may also be an earlier attempt of ``auto_find_batch_size``.
        """
        self.log = FlatnessLog()
        self._overconfidence = OverconfidenceWatch()
        self._idle_term = IdleTermWatch()
        self.is_first_batch_checked = False
        self._step, self._micro_batch = -1, 0
        self._labels: Tensor | None = None

    @property
    def strength(self) -> float:
        """Return lambda after the warm-up."""
        strength = self.arguments.fam_lambda
        return self.default_strength if strength is None else strength

    def strength_at(self, state: Any) -> float:
        """Return lambda in the Trainer's next step.

        Args:
            state: the ``TrainerState``.
        """
        return strength_at(state.global_step, self.strength, self.arguments.fam_warmup_steps, state.max_steps)

    def prepare(self, trainer: Any) -> RelativeFlatness | None:
        """Return the flatness of the Trainer's current model, or None for plain training.

        It is made again for a new model (``model_init``) or new arguments.

        Args:
            trainer: the ``Trainer``.

        Raises:
            ValueError: a setting does not work with FAM; the message names it and says what to do.
        """
        fam = self.arguments
        fam.validate_fam()
        if fam.fam_lambda == 0 or trainer.model is None:  # a hyperparameter search makes its models later
            self.detach()
            self.flatness, self._settings = None, ()  # frees an earlier model
            return None
        kappa = (fam.fam_layer, fam.fam_estimator, fam.fam_probes, fam.fam_center, fam.fam_smoothing)
        settings = (trainer.model, *kappa)
        if self.flatness is None or settings != self._settings:
            self.detach()
            self.flatness = RelativeFlatness(
                whole_model(trainer),
                fam.fam_layer,
                fam.fam_estimator,
                fam.fam_probes,
                center=fam.fam_center,
                smoothing=fam.fam_smoothing,
            )
            self.flatness.ends_steps = False
            self._settings = settings
            check_requirements(trainer.args, self.flatness)
            refuse_parallelism(trainer)
            # FSDP shards the model when the training begins. DeepSpeed takes every derivative of the loss for its
            # backward pass.
            if is_fsdp(trainer) or is_deepspeed(trainer):
                self.flatness.adapt_to_sharding()
            self.default_strength = self.flatness.default_strength
            if self.flatness.is_sharded and fam.fam_estimator == AUTO and trainer.accelerator.is_main_process:
                warnings.warn(describe_sharded_term(self.flatness, is_deepspeed(trainer)), stacklevel=4)
        return self.flatness

    def detach(self) -> None:
        """Remove the hooks from the model."""
        if self.flatness is not None:
            self.flatness.detach()

    def reset_loss_scaling(self, trainer: Any) -> None:
        """Undo the loss scaling that an earlier training corrected.

        The next training may have another strength. Until it begins, the correction stays, so that evaluations after
        the training compare with those during it.
        """
        if self._loss_scaling is not None:
            trainer.model_accepts_loss_kwargs, trainer.loss_is_scaled_for_ga = self._loss_scaling
        self._loss_scaling = trainer.model_accepts_loss_kwargs, loss_is_scaled(trainer)

    def begin_training(self, trainer: Any) -> None:
        """Reset the state, and load the mean of the features of a resumed training."""
        self.forget_training()
        if self.flatness is not None and self.flatness.is_outdated:
            self._settings = ()
        flatness = self.prepare(trainer)
        if flatness is not None and flatness.mean is not None:
            load_mean(trainer.state, flatness.mean, flatness.layer)

    def check_first_batch(
        self,
        trainer: Any,
        compute_loss: Callable[..., Any],
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any,
    ) -> None:
        """Check on the first batch how the loss is scaled and which rows it couples.

        Args:
            trainer: the ``Trainer``.
            compute_loss: the Trainer's own function, called as ``compute_loss(inputs, num_items_in_batch=...)``.
            model: the model of the training loop.
            inputs: the first batch.
            num_items_in_batch: the number that the Trainer passes for this batch.
        """
        model.train()
        is_conclusive, is_active, scaling = True, self.strength > 0, self.arguments.fam_loss_scaling
        if scaling == CORRECTED or (scaling == AUTO and is_active):
            is_conclusive = correct_loss_scaling(trainer, compute_loss, model, inputs, num_items_in_batch)
        flatness = self.prepare(trainer)
        # The coupling must be known before the first step, so that a resumed training repeats its signs. In a sharded
        # model, which shares one matrix, the form of the loss decides whether the head's term can act in the backward
        # pass.
        acts_in_forward_pass = flatness is not None and flatness.method.acts_in is ActsIn.FORWARD_PASS
        if flatness is not None and is_active and acts_in_forward_pass != flatness.is_sharded:
            with preserve_state(model), forget_forward_pass(trainer):
                with flatness.capture(0.0):
                    loss = compute_loss(copy_of_inputs(prepared_inputs(trainer, inputs)))
                flatness(loss)
            if flatness.mean is not None:
                flatness.mean.discard_step()
        self.is_first_batch_checked = is_conclusive

    def strength_of_batch(self, trainer: Any, model: nn.Module) -> float | None:
        """Return lambda for this batch; None in evaluation and in plain training."""
        if not (model.training and torch.is_grad_enabled()) or self.prepare(trainer) is None or self.strength == 0:
            return None
        return self.strength_at(trainer.state)

    def seeded_flatness(self, trainer: Any, inputs: dict[str, Any]) -> RelativeFlatness:
        """Return the flatness, with probes that are a function of seed, step and item."""
        step = trainer.state.global_step
        self._micro_batch = self._micro_batch + 1 if step == self._step else 0
        self._step = step
        # Samplers order the items by micro-batch, and within a micro-batch by process.
        args, size = trainer.args, train_batch_size(trainer)
        if args.accelerator_config.split_batches:
            size //= args.world_size
        first_item = (self._micro_batch * args.world_size + args.process_index) * size
        self._labels = sum_of_labels(inputs, trainer.label_names)
        assert self.flatness is not None
        self.flatness.seed(args.seed, step, first_item=first_item, items=find_batch_size(inputs))
        return self.flatness

    def record(self, trainer: Any, loss: Tensor, kappa: Tensor, strength: float, num_items_in_batch: Any) -> None:
        """Add a micro-batch to the log."""
        assert self.flatness is not None
        mean = self.flatness.mean
        if mean is not None and mean.value is None:
            return  # the first step only provides the mean of the features
        squares = None
        if self._micro_batch == 0 and self._step % RATIO_EVERY == 0:
            squares = self.flatness.gradient_squares(loss, kappa)
        # The training loop sets this attribute.
        accumulation_steps = getattr(trainer, "current_gradient_accumulation_steps", 1)
        share = 1.0 if _sums_micro_batches(trainer, num_items_in_batch) else 1.0 / accumulation_steps
        self.log.add(self._step, loss.detach(), kappa.detach(), share, strength, squares, self._labels)
        # Other devices would have to wait here, and several processes must stop together: see before_optimizer_step.
        if kappa.device.type == "cpu" and trainer.args.world_size == 1 and kappa.requires_grad:
            stop_together(self._problem(trainer), trainer.accelerator)

    def before_optimizer_step(self, trainer: Any) -> None:
        """End the step of the features' mean, and on CPUs stop at a NaN.

        All processes call this equally often and exchange one tensor of one shape.
        """
        step = trainer.state.global_step
        if self._step != step:
            if self._step < 0 and self.flatness is not None and self.strength > 0:
                raise RuntimeError(MISSING_TERM.format(trainer=type(trainer).__name__))
            return
        if self.flatness is not None and self.flatness.mean is not None:
            reduce = functools.partial(trainer.accelerator.reduce, reduction="sum")
            self.flatness.mean.end_step(reduce if trainer.args.world_size > 1 else None)
        if trainer.args.device.type != "cpu":
            return
        problem = self._problem(trainer)
        (must_stop,) = sum_over_processes([float(problem is not None)], trainer.accelerator)
        if must_stop:
            stop_together(problem, trainer.accelerator)

    def means_to_log(self, trainer: Any) -> dict[str, float]:
        """Return the means since the last log, over all processes, by their logged names."""
        if self.flatness is None:
            return {}
        stop_together(self._problem(trainer), trainer.accelerator)
        self.flatness.read_checks()
        mean = functools.partial(trainer.accelerator.reduce, reduction="mean")
        means = self.log.drain(self.flatness.layer.in_features, mean)
        if "fam_kappa" in means:
            self._overconfidence.observe(self.flatness, means["fam_kappa"])
        if "fam_grad_ratio" in means and trainer.args.process_index == 0:
            layer = self.flatness.layer.name
            self._idle_term.observe(layer, means["fam_grad_ratio"], means["fam_lambda"], self.strength)
        return means

    def end_training(self, trainer: Any) -> None:
        """Say that the term did nothing, if a short training has not said so, and save the mean of the features."""
        self._idle_term.end()
        if self.flatness is not None and self.strength != 0:
            save_flatness(trainer.state, self.flatness)

    def before_checkpoint(self, trainer: Any) -> None:
        """Refuse a checkpoint after a loss or kappa that is not finite, and save the mean of the features."""
        flatness = self.prepare(trainer)
        if flatness is None or self.strength == 0:
            return
        stop_together(self._problem(trainer), trainer.accelerator)
        save_flatness(trainer.state, flatness)

    def _problem(self, trainer: Any) -> str | None:
        """Return what is wrong since the last check, and how to go on."""
        problem = self.log.problem()
        return None if problem is None else problem + resume_hint(trainer.args.output_dir)

    def summary(self, trainer: Any, base_model: str | None, step_time_ratio: float | None) -> FlatnessSummary | None:
        """Return the contents of the model card; None if FAM trained nothing."""
        flatness, history = self.flatness, trainer.state.log_history
        if flatness is None or trainer.state.global_step == 0 or self.strength == 0:
            return None
        return FlatnessSummary(
            layer=flatness.layer.name,
            in_features=flatness.layer.in_features,
            estimator=flatness.estimator,
            strength=self.strength,
            kappa=last_logged(history, "fam_kappa"),
            kappa_before=first_logged(history, "fam_kappa"),
            base_model=base_model,
            step_time_ratio=step_time_ratio,
            centered=flatness.mean is not None,
            smoothing=flatness.method.smoothing,
            last_strength=last_logged(history, "fam_lambda"),
        )


class FlatTrainingCallback(TrainerCallback):
    """Callback at the start and the end of a training, and before each optimizer step.

    Args:
        training: the state of flatness-aware training.
        trainer: its ``Trainer``.
    """

    def __init__(self, training: FlatTraining, trainer: Any) -> None:
        self._training, self._trainer = training, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a training."""
        self._training.begin_training(self._trainer)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a training."""
        self._training.end_training(self._trainer)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the step of the features' mean."""
        self._training.before_optimizer_step(self._trainer)


def whole_model(trainer: Any) -> nn.Module:
    """Return the module that contains all trained weights.

    This is the model, or a loss of sentence-transformers that has weights of its own and contains the model.
    """
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    loss = getattr(trainer, "loss", None)
    if isinstance(loss, nn.Module) and {*loss.parameters()} - {*model.parameters()}:
        return loss
    return model


def _sums_micro_batches(trainer: Any, num_items_in_batch: Any) -> bool:
    """Return True if the Trainer sums the micro-batches of a step."""
    scaled = loss_is_scaled(trainer)
    if scaled is not None:
        return scaled
    return (trainer.model_accepts_loss_kwargs and num_items_in_batch is not None) or (
        trainer.compute_loss_func is not None
    )
