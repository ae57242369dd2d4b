"""FAMTrainer: ``transformers.Trainer`` with relative flatness in its loss."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.trainer_pt_utils import find_batch_size

from ..flatness.estimators import PERTURBATION
from ..flatness.relative_flatness import RelativeFlatness
from ..flatness.strength import default_lambda
from ..layer.finding import AUTO, resolve_layer
from ..layer.model_state import preserve_state
from ..processes.decisions import stop_together, sum_over_processes
from .callback import refuse_second_term
from .card_writing import name_of_base_model, write_card
from .first_batch import copied, correct_loss_scaling, unnoted
from .log import FlatnessLog, problem_of_weights, ratio_of_norms
from .model_card import FlatnessSummary, first_logged, last_logged
from .requirements import NEVER_REACHED, check_requirements, refuse_parallelism
from .strength import Strength, warmup_steps
from .training_args import CORRECTED, FAMArguments

# Between these many steps the gradient ratio is measured once, for the log; it costs one more pass through the tail.
RATIO_EVERY = 10

# Under this name the lagged gradient ratio is saved with the Trainer's state.
_STATE = "FAMStrength"


if TYPE_CHECKING:  # what the mixin expects of the class that stands behind it
    _Host = Trainer
else:
    _Host = object


class FAMMixin(_Host):
    """Flatness-aware training for any ``Trainer`` subclass: ``class MyTrainer(FAMMixin, SFTTrainer)``.

    Minimizes ``loss + lambda * kappa`` (Adilova et al. 2023): one forward pass, one backward pass, an ordinary
    optimizer. Logged beside the task loss: ``fam_kappa``, ``fam_term`` = lambda kappa, ``fam_lambda``,
    ``fam_grad_ratio`` and ``fam_delta`` = sqrt(2 m lambda).

    Args:
        *args: the Trainer's.
        fam_args: arguments of FAM, where ``args`` does not contain them. A hyperparameter search sets fields of
            ``args`` alone, so search over fam_* fields with `FAMTrainingArguments`.
        **kwargs: the Trainer's.

    Raises:
        ValueError: a setting that FAM cannot work with; the message names it and the remedy.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(FAMMixin):
            raise TypeError(f"class {cls.__name__}: put FAMMixin in front of the Trainer, which would go past it.")

    def __init__(self, *args: Any, fam_args: FAMArguments | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if fam_args is None:
            fam_args = self.args if isinstance(self.args, FAMArguments) else FAMArguments()
        elif not isinstance(fam_args, FAMArguments):
            raise ValueError(f"fam_args={fam_args!r}: give FAMArguments(...), or None.")
        if isinstance(fam_args.fam_layer, nn.Module):  # arguments are written to JSON, so they keep the name
            fam_args.fam_layer = resolve_layer(self._whole_model(), fam_args.fam_layer)[0]
        self.fam_args = fam_args
        self._flatness: RelativeFlatness | None = None
        self._flatness_key: tuple[Any, ...] = ()
        self._default_lambda = 0.0
        self._fam_log = FlatnessLog()
        self._step_and_micro_batch = (-1, 0)
        self._squares: list[Tensor] = []
        self._began = False
        self._stock_scaling: tuple[bool, bool | None] | None = None
        if fam_args.fam_lambda != 0:  # which is plain training, whatever the layer
            self.relative_flatness  # noqa: B018 -- an unknown layer is refused now, not after the data was prepared
        self.add_callback(_Moments(self))

    @property
    def relative_flatness(self) -> RelativeFlatness:
        """The estimator on the current model; made anew for a new model (``model_init``) or new arguments."""
        fam = self.fam_args
        fam.validate_fam()
        key = (
            self.model, fam.fam_layer, fam.fam_estimator, fam.fam_probes, fam.fam_gradient, fam.fam_token_fraction,
            fam.fam_center,
        )  # fmt: skip
        if self._flatness is None or key != self._flatness_key:
            if self._flatness is not None:
                self._flatness.detach()
            self._flatness = RelativeFlatness(
                self._whole_model(),
                fam.fam_layer,
                fam.fam_estimator,
                fam.fam_probes,
                gradient=fam.fam_gradient,
                token_fraction=fam.fam_token_fraction,
                center=fam.fam_center,
            )
            self._flatness.ends_steps = False
            self._flatness_key = key
            # By what was chosen at first: lambda does not change if the loss turns out to have no closed form.
            self._default_lambda = default_lambda(
                self._flatness.estimator, self._flatness.layer.out_features, head=self._flatness.at_head
            )
            check_requirements(self.args, self._flatness)
            refuse_parallelism(self)
        return self._flatness

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The user's own loss; while training its gradient is that of ``loss + lambda * kappa``.

        The value stays the task loss, so that everything which is logged compares with plain training.
        """
        strength = self._fam_strength(model)
        if strength is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        flatness = self._seeded_flatness(inputs)
        with flatness.capture(strength):
            found: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        loss, *outputs = found if return_outputs else (found,)
        kappa = flatness(loss)
        self._record(loss, kappa, strength, num_items_in_batch)
        loss = with_gradient_of(loss, strength * kappa)
        return (loss, *outputs) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; afterwards the model carries no hooks of ours."""
        if self.fam_args.fam_lambda != 0:
            # In a search the model is made anew for every trial, and there is none yet.
            refuse_second_term(self, None if self.model is None else self._whole_model())
        # This training may have another strength, so a correction of the loss's scale is made anew. It stands until
        # then: evaluation after training agrees with that during it.
        if self._stock_scaling is not None:
            self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = self._stock_scaling
        self._stock_scaling = self.model_accepts_loss_kwargs, getattr(self, "loss_is_scaled_for_ga", None)
        if self._flatness is not None and self._flatness.is_outdated:
            self._flatness_key = ()
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._flatness is not None:
                self._flatness.detach()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The Trainer's step; before the first one, see what can only be seen on a batch."""
        if not self._began:
            self._began = self._begin(model, inputs, num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's logs; those of the training loss get the term beside them."""
        if "loss" in logs and self._flatness is not None:
            stop_together(self._fam_log.problem(), self.accelerator)
            mean = functools.partial(self.accelerator.reduce, reduction="mean")
            logs.update(self._fam_log.drain(self.relative_flatness.layer.in_features, mean))
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save as the Trainer does, but nothing that could not be resumed from."""
        if self._fam_lambda() > 0:
            model, step = self.accelerator.unwrap_model(self.model), self.state.global_step
            problem = self._fam_log.problem() or problem_of_weights(model, step, self._fam_lambda())
            stop_together(problem, self.accelerator)
            mean = self.relative_flatness.mean
            if mean is not None:
                self._remember(mean={**mean.state(), "layer": self.relative_flatness.layer.name})
        super()._save_checkpoint(*args, **kwargs)

    def create_model_card(
        self, *args: Any, command: str | None = None, step_time_ratio: float | None = None, **kwargs: Any
    ) -> None:
        """The Trainer's card, with tags, a section about flatness and the evaluation as metadata.

        For the metadata, give ``tasks`` and ``dataset`` (or ``dataset_tags``). `push_to_hub` passes all of these on.

        Args:
            *args: the Trainer's.
            command: what one types to repeat the training, shown as it is.
            step_time_ratio: seconds a step over those of plain training, if you measured them.
            **kwargs: the Trainer's.
        """

        def summarize() -> FlatnessSummary | None:
            trained = self.state.global_step > 0 and self._fam_lambda() > 0
            return self._summary(kwargs.get("finetuned_from"), step_time_ratio) if trained else None

        write_card(self, super().create_model_card, args, kwargs, summarize, command)

    def _whole_model(self) -> nn.Module:
        """The model; for sentence-transformers' losses with weights of their own the loss, which contains it."""
        model, loss = self.accelerator.unwrap_model(self.model), getattr(self, "loss", None)
        if isinstance(loss, nn.Module) and {*loss.parameters()} - {*model.parameters()}:
            return loss
        return model

    def _summary(self, base_model: str | None, step_time_ratio: float | None) -> FlatnessSummary:
        flatness = self.relative_flatness
        return FlatnessSummary(
            layer=flatness.layer.name,
            in_features=flatness.layer.in_features,
            estimator=flatness.estimator,
            gradient=self.fam_args.fam_gradient,
            strength=self._fam_lambda(),
            kappa=last_logged(self.state.log_history, "fam_kappa"),
            kappa_before=first_logged(self.state.log_history, "fam_kappa"),
            base_model=base_model or name_of_base_model(self.model),
            step_time_ratio=step_time_ratio,
            centered=flatness.mean is not None,
            last_strength=last_logged(self.state.log_history, "fam_lambda"),
            every_n_steps=self.fam_args.fam_every_n_steps,
        )

    def _fam_lambda(self) -> float:
        given = self.fam_args.fam_lambda
        if given is not None:
            return given
        self.relative_flatness  # noqa: B018 -- which knows the default
        return self._default_lambda

    def _acts_in(self, step: int) -> bool:
        return step % self.fam_args.fam_every_n_steps == 0 and self._fam_lambda() > 0

    def _fam_strength(self, model: nn.Module) -> float | None:
        """lambda for this batch; None in evaluation, in skipped steps and where FAM is off."""
        fam, step = self.fam_args, self.state.global_step
        if not (model.training and torch.is_grad_enabled() and self._acts_in(step)):
            return None
        warm = warmup_steps(fam.fam_warmup_steps, self.state.max_steps)
        strength = Strength(self._fam_lambda(), warm, fam.fam_max_grad_ratio)
        # What is not skipped stands for what is.
        return strength.at(step, self._lagged_ratio()) * fam.fam_every_n_steps

    def _seeded_flatness(self, inputs: dict[str, Any]) -> RelativeFlatness:
        """The estimator, its probes a function of seed, step and item, however the step's batch is cut."""
        step, (last_step, number) = self.state.global_step, self._step_and_micro_batch
        number = number + 1 if step == last_step else 0
        self._step_and_micro_batch = step, number
        # Samplers hand out items micro-batch by micro-batch, and in each process by process.
        processes, size = self.args.world_size, self._train_batch_size
        config: Any = self.args.accelerator_config
        if config.split_batches:
            size //= processes
        first_item = (number * processes + self.args.process_index) * size
        self.relative_flatness.seed(self.args.seed, step, first_item=first_item, items=find_batch_size(inputs))
        return self.relative_flatness

    def _record(self, loss: Tensor, kappa: Tensor, strength: float, num_items_in_batch: Any) -> None:
        """Note the micro-batch for the log, and what the next step's cap needs."""
        mean = self.relative_flatness.mean
        if mean is not None and mean.value is None:
            return  # the first step shows the mean of the features, and the term does not act
        step, number = self._step_and_micro_batch
        capped = self.fam_args.fam_max_grad_ratio is not None
        squares = None
        if capped or (number == 0 and step % (RATIO_EVERY * self.fam_args.fam_every_n_steps) == 0):
            squares = self.relative_flatness.gradient_squares(loss, kappa)
        if capped and squares is not None:
            self._squares.append(squares)
        parts = getattr(self, "current_gradient_accumulation_steps", 1)  # set in the training loop alone
        share = 1.0 if self._loss_is_scaled(num_items_in_batch) else 1.0 / parts
        strength = strength / self.fam_args.fam_every_n_steps
        self._fam_log.add(step, loss.detach(), kappa.detach(), share, strength, squares)
        # Elsewhere a look costs a wait, and several processes look together: _before_optimizer_step, _save_checkpoint.
        if kappa.device.type == "cpu" and self.args.world_size == 1 and kappa.requires_grad:
            stop_together(self._fam_log.problem(), self.accelerator)

    def _loss_is_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether micro-batches of a step are summed (the Trainer's own rule) and not averaged."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is not None:
            return scaled
        return (self.model_accepts_loss_kwargs and num_items_in_batch is not None) or self.compute_loss_func is not None

    def _begin(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> bool:
        """Look at the first batch: does the model honour num_items_in_batch, which rows does the loss couple?"""
        model.train()
        told = True
        active = self._fam_lambda() > 0
        if self.fam_args.fam_loss_scaling == CORRECTED or (self.fam_args.fam_loss_scaling == AUTO and active):
            compute: Any = functools.partial(super().compute_loss, model)
            told = correct_loss_scaling(self, compute, model, inputs, num_items_in_batch)
        if active and self.relative_flatness.estimator == PERTURBATION:
            with (
                preserve_state(model),
                unnoted(self),
            ):  # so that even the first step draws what the others do, after a resumption too
                with self.relative_flatness.capture(0.0):
                    loss: Any = super().compute_loss(model, copied(self._prepare_inputs(inputs)))
                self.relative_flatness(loss)
            if self.relative_flatness.mean is not None:
                self.relative_flatness.mean.forget_step()
        return told

    def _lagged_ratio(self) -> float | None:
        """``||d kappa|| / ||d loss||`` of the step before; the Trainer keeps it in trainer_state.json."""
        ratio: float | None = self._remembered().get("unit_ratio")
        return ratio

    def _remembered(self) -> dict[str, Any]:
        saved: Any = self.state.stateful_callbacks
        return saved.get(_STATE, {})

    def _remember(self, **what: Any) -> None:
        saved: Any = self.state.stateful_callbacks
        saved[_STATE] = {**self._remembered(), **what}

    def _begin_training(self) -> None:
        """Forget an earlier training, or an attempt that was broken off (``auto_find_batch_size``)."""
        self._began, self._step_and_micro_batch = False, (-1, 0)
        self._fam_log, self._squares = FlatnessLog(), []
        if self._fam_lambda() > 0 and self.relative_flatness.mean is not None:
            found, layer = self._remembered().get("mean"), self.relative_flatness.layer
            of_this_layer = found is not None and found.get("layer", layer.name) == layer.name
            self.relative_flatness.mean.load(found if of_this_layer else None, layer.weight)

    def _before_optimizer_step(self) -> None:
        """Stop at a NaN where looking costs little; sum squared gradients over processes for the next step's cap.

        All processes come here equally often and exchange one tensor of one shape.
        """
        capped, on_cpu = self.fam_args.fam_max_grad_ratio is not None, self.args.device.type == "cpu"
        step = self.state.global_step
        last = self._step_and_micro_batch[0]
        if last != step:
            if last < 0 and self._acts_in(step):
                raise RuntimeError(NEVER_REACHED.format(trainer=type(self).__name__))
            return
        if self.relative_flatness.mean is not None:
            self.relative_flatness.mean.end_step(functools.partial(self.accelerator.reduce, reduction="sum"))
        if not (capped or on_cpu):
            return
        problem = self._fam_log.problem() if on_cpu else None
        found, self._squares = self._squares, []
        squares = torch.stack(found).sum(0).tolist() if found else [0.0, 0.0]
        stopping, *totals = sum_over_processes([float(problem is not None), *squares], self.accelerator)
        if stopping:
            stop_together(problem, self.accelerator)
        if capped and totals[0] > 0:  # a batch without labels says nothing
            self._remember(unit_ratio=ratio_of_norms(*totals))


class _Moments(TrainerCallback):
    """The beginning of a training, and the moment before an optimizer step."""

    def __init__(self, trainer: FAMMixin) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._begin_training()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._before_optimizer_step()


def with_gradient_of(loss: Tensor, term: Tensor) -> Tensor:
    """A scalar with the value of ``loss``, bit for bit, and the gradient of ``loss + term``.

    Examples:
        >>> import torch
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = with_gradient_of(2 * x, x**2)
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (6.0, 8.0)
    """
    return loss + (term - term.detach())


class FAMTrainer(FAMMixin, Trainer):
    """``transformers.Trainer`` that also makes the loss flat; everything else is the Trainer's.

    Plain ``TrainingArguments`` are accepted too and give the FAM defaults.

    Examples:
        >>> import tempfile, torch
        >>> from hf_fam import FAMTrainer, FAMTrainingArguments
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(
        ...     vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ... )
        >>> data = [{"input_ids": [k, k + 1, 2], "labels": k % 2} for k in range(8)]
        >>> args = FAMTrainingArguments(
        ...     output_dir=tempfile.mkdtemp(),
        ...     max_steps=2,
        ...     logging_steps=1,
        ...     report_to="none",
        ...     disable_tqdm=True,
        ...     use_cpu=True,
        ...     save_strategy="no",
        ...     logging_strategy="no",
        ... )
        >>> trainer = FAMTrainer(model=BertForSequenceClassification(config), args=args, train_dataset=data)
        >>> result = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> result.global_step
        2
    """


class FAMSeq2SeqTrainer(FAMMixin, Seq2SeqTrainer):
    """``transformers.Seq2SeqTrainer`` that also makes the loss flat."""
