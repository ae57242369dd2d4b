"""What flatness-aware training keeps between the steps of a Trainer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_pt_utils import find_batch_size

from .._compat import averages_micro_batches, prepared_inputs, restore_logged_quantities, train_batch_size
from ..flatness.estimators import ActsIn
from ..flatness.relative_flatness import RelativeFlatness
from ..layer.finding import AUTO
from ..layer.model_state import preserve_state
from ..processes.decisions import stop_together, sum_over_processes
from .first_batch import copied, correct_loss_scaling
from .log import FlatnessLog, problem_of_weights
from .model_card import FlatnessSummary, first_logged, last_logged
from .requirements import NEVER_REACHED, check_requirements, refuse_parallelism
from .strength import strength_at
from .training_args import CORRECTED, FAMArguments

# Between so many steps the gradient ratio is measured once, for the log; it costs one more pass through the tail.
RATIO_EVERY = 10

# The key of the features' mean in the Trainer's state.
_STATE = "FAM"


class FlatTraining:
    """Strength, log and counters of a training, with `FAMMixin` or with `FAMCallback`.

    Args:
        arguments: layer, estimator and strength.

    Attributes:
        arguments: the same.
        flatness: the estimator on the model as it is now; None where nothing is flattened.
        default_strength: lambda where ``fam_lambda`` is None.
        log: what came since the last log.
        first_batch_is_examined: what only a batch can show is known.
    """

    def __init__(self, arguments: FAMArguments) -> None:
        self.arguments = arguments
        self.flatness: RelativeFlatness | None = None
        self.default_strength = 0.0
        self._made_for: tuple[Any, ...] = ()
        self._loss_scaling: tuple[bool, bool | None] | None = None
        self.forget_training()

    def forget_training(self) -> None:
        """Begin anew, after an earlier training or an attempt that was broken off (``auto_find_batch_size``)."""
        self.log = FlatnessLog()
        self.first_batch_is_examined = False
        self._step, self._micro_batch = -1, 0

    @property
    def strength(self) -> float:
        """Lambda after warm-up."""
        given = self.arguments.fam_lambda
        return self.default_strength if given is None else given

    def strength_at(self, state: Any) -> float:
        """Return lambda in the step that a Trainer is about to take.

        Args:
            state: the ``TrainerState``.
        """
        return strength_at(state.global_step, self.strength, self.arguments.fam_warmup_steps, state.max_steps)

    # The estimator, for the Trainer's model and arguments as they are now.

    def prepare(self, trainer: Any) -> RelativeFlatness | None:
        """Return the estimator, made anew for a new model (``model_init``) or new arguments; None for plain training.

        Args:
            trainer: the ``Trainer``.

        Raises:
            ValueError: a setting that FAM cannot work with; the message names it and the remedy.
        """
        fam = self.arguments
        fam.validate_fam()
        if fam.fam_lambda == 0 or trainer.model is None:  # in a search the model is made anew for every trial
            self.detach()
            self.flatness, self._made_for = None, ()  # which would keep an earlier model in memory
            return None
        made_for = (trainer.model, fam.fam_layer, fam.fam_estimator, fam.fam_probes, fam.fam_center)
        if self.flatness is None or made_for != self._made_for:
            self.detach()
            self.flatness = RelativeFlatness(
                whole_model(trainer), fam.fam_layer, fam.fam_estimator, fam.fam_probes, center=fam.fam_center
            )
            self.flatness.ends_steps = False
            self._made_for = made_for
            self.default_strength = self.flatness.default_strength
            check_requirements(trainer.args, self.flatness)
            refuse_parallelism(trainer)
        return self.flatness

    def detach(self) -> None:
        """Remove the hooks from the model."""
        if self.flatness is not None:
            self.flatness.detach()

    # A training.

    def keep_loss_scaling(self, trainer: Any) -> None:
        """Undo the correction of an earlier training's loss scale: this one may have another strength.

        The correction stands until then, so that evaluation after training agrees with that during it.
        """
        if self._loss_scaling is not None:
            trainer.model_accepts_loss_kwargs, trainer.loss_is_scaled_for_ga = self._loss_scaling
        self._loss_scaling = trainer.model_accepts_loss_kwargs, averages_micro_batches(trainer)

    def begin_training(self, trainer: Any) -> None:
        """Forget an earlier training, and take up the features' mean of the one that is resumed."""
        self.forget_training()
        if self.flatness is not None and self.flatness.is_outdated:
            self._made_for = ()
        flatness = self.prepare(trainer)
        if flatness is not None and flatness.mean is not None:
            saved, layer = trainer.state.stateful_callbacks.get(_STATE, {}).get("mean"), flatness.layer
            of_this_layer = saved is not None and saved.get("layer", layer.name) == layer.name
            flatness.mean.load(saved if of_this_layer else None, layer.weight)

    def examine_first_batch(
        self,
        trainer: Any,
        compute_loss: Callable[..., Any],
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any,
    ) -> None:
        """See what only a batch can show: does the loss honor num_items_in_batch, which rows does it couple?

        Args:
            trainer: the ``Trainer``.
            compute_loss: the Trainer's own, called as ``compute_loss(inputs, num_items_in_batch=...)``.
            model: the model as the training loop sees it.
            inputs: the first batch.
            num_items_in_batch: what the Trainer passes for it.
        """
        model.train()
        is_known, is_active, scaling = True, self.strength > 0, self.arguments.fam_loss_scaling
        if scaling == CORRECTED or (scaling == AUTO and is_active):
            is_known = correct_loss_scaling(trainer, compute_loss, model, inputs, num_items_in_batch)
        flatness = self.prepare(trainer)
        if flatness is not None and is_active and flatness.method.acts_in is ActsIn.FORWARD_PASS:
            # So that even the first step draws what the others do, after a resumption too.
            with preserve_state(model), restore_logged_quantities(trainer):
                with flatness.capture(0.0):
                    loss = compute_loss(copied(prepared_inputs(trainer, inputs)))
                flatness(loss)
            if flatness.mean is not None:
                flatness.mean.discard_step()
        self.first_batch_is_examined = is_known

    # A micro-batch.

    def strength_of_batch(self, trainer: Any, model: nn.Module) -> float | None:
        """Return lambda for this batch; None in evaluation and where FAM is off."""
        if not (model.training and torch.is_grad_enabled()) or self.prepare(trainer) is None or self.strength == 0:
            return None
        return self.strength_at(trainer.state)

    def seeded_flatness(self, trainer: Any, inputs: dict[str, Any]) -> RelativeFlatness:
        """Return the estimator, its probes a function of seed, step and item, however the step's batch is cut."""
        step = trainer.state.global_step
        self._micro_batch = self._micro_batch + 1 if step == self._step else 0
        self._step = step
        # Samplers hand out items micro-batch by micro-batch, and in each process by process.
        args, size = trainer.args, train_batch_size(trainer)
        if args.accelerator_config.split_batches:
            size //= args.world_size
        first_item = (self._micro_batch * args.world_size + args.process_index) * size
        assert self.flatness is not None
        self.flatness.seed(args.seed, step, first_item=first_item, items=find_batch_size(inputs))
        return self.flatness

    def record(self, trainer: Any, loss: Tensor, kappa: Tensor, strength: float, num_items_in_batch: Any) -> None:
        """Add a micro-batch to the log."""
        assert self.flatness is not None
        mean = self.flatness.mean
        if mean is not None and mean.value is None:
            return  # the first step shows the mean of the features, and the term does not act
        squares = None
        if self._micro_batch == 0 and self._step % RATIO_EVERY == 0:
            squares = self.flatness.gradient_squares(loss, kappa)
        parts = getattr(trainer, "current_gradient_accumulation_steps", 1)  # set in the training loop alone
        share = 1.0 if _sums_micro_batches(trainer, num_items_in_batch) else 1.0 / parts
        self.log.add(self._step, loss.detach(), kappa.detach(), share, strength, squares)
        # Elsewhere a look costs a wait, and several processes look together: before_optimizer_step, before_checkpoint.
        if kappa.device.type == "cpu" and trainer.args.world_size == 1 and kappa.requires_grad:
            stop_together(self.log.problem(), trainer.accelerator)

    # A step, a log, a checkpoint.

    def before_optimizer_step(self, trainer: Any) -> None:
        """End the step of the features' mean; stop at a NaN where looking costs little.

        All processes come here equally often and exchange one tensor of one shape.
        """
        step = trainer.state.global_step
        if self._step != step:
            if self._step < 0 and self.flatness is not None and self.strength > 0:
                raise RuntimeError(NEVER_REACHED.format(trainer=type(trainer).__name__))
            return
        if self.flatness is not None and self.flatness.mean is not None:
            self.flatness.mean.end_step(functools.partial(trainer.accelerator.reduce, reduction="sum"))
        if trainer.args.device.type != "cpu":
            return
        problem = self.log.problem()
        (stopping,) = sum_over_processes([float(problem is not None)], trainer.accelerator)
        if stopping:
            stop_together(problem, trainer.accelerator)

    def logged(self, trainer: Any) -> dict[str, float]:
        """Return the means since the last log, over all processes, under the names that are logged."""
        if self.flatness is None:
            return {}
        stop_together(self.log.problem(), trainer.accelerator)
        mean = functools.partial(trainer.accelerator.reduce, reduction="mean")
        return self.log.drain(self.flatness.layer.in_features, mean)

    def before_checkpoint(self, trainer: Any) -> None:
        """Refuse a checkpoint with weights that are not finite; put the features' mean into the Trainer's state."""
        flatness = self.prepare(trainer)
        if flatness is None or self.strength == 0:
            return
        model, step = trainer.accelerator.unwrap_model(trainer.model), trainer.state.global_step
        stop_together(self.log.problem() or problem_of_weights(model, step, self.strength), trainer.accelerator)
        if flatness.mean is not None:
            mean = {**flatness.mean.state(), "layer": flatness.layer.name}
            trainer.state.stateful_callbacks[_STATE] = {"mean": mean}

    def summary(self, trainer: Any, base_model: str | None, step_time_ratio: float | None) -> FlatnessSummary | None:
        """Return what the model card says; None where nothing was trained with FAM."""
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
            last_strength=last_logged(history, "fam_lambda"),
        )


class FlatTrainingCallback(TrainerCallback):
    """The beginning of a training, and the moment before an optimizer step.

    Args:
        training: the state to keep.
        trainer: the ``Trainer`` whose it is.
    """

    def __init__(self, training: FlatTraining, trainer: Any) -> None:
        self._training, self._trainer = training, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a training."""
        self._training.begin_training(self._trainer)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the step of the features' mean."""
        self._training.before_optimizer_step(self._trainer)


def whole_model(trainer: Any) -> nn.Module:
    """Return the model; for sentence-transformers' losses with weights of their own the loss, which contains it."""
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    loss = getattr(trainer, "loss", None)
    if isinstance(loss, nn.Module) and {*loss.parameters()} - {*model.parameters()}:
        return loss
    return model


def _sums_micro_batches(trainer: Any, num_items_in_batch: Any) -> bool:
    """Whether micro-batches of a step are summed (the Trainer's own rule) and not averaged."""
    scaled = averages_micro_batches(trainer)
    if scaled is not None:
        return scaled
    return (trainer.model_accepts_loss_kwargs and num_items_in_batch is not None) or (
        trainer.compute_loss_func is not None
    )
