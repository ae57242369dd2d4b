"""FAMTrainer and FAMMixin: flatness-aware training with ``transformers.Trainer``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer

from .._compat import CheckpointHooks
from ..flatness.relative_flatness import RelativeFlatness
from ..inputs.paths import no_new_folder_if_refused
from ..inputs.secrets import hide_token
from ..layer.finding import resolve_layer
from ..processes.checkpoints import checkpoint_to_resume
from .callback import refuse_second_term
from .card_writing import base_model_name, write_card
from .flat_training import FlatTraining, FlatTrainingCallback, whole_model
from .not_finite import refuse_to_save
from .notebook import add_flatness_columns
from .removed_fields import refuse_removed_fields
from .training_args import FAMArguments

if TYPE_CHECKING:  # the class that the mixin is combined with

    class _Host(CheckpointHooks, Trainer):
        """A Trainer."""
else:
    _Host = CheckpointHooks


class FAMMixin(_Host):
    """Flatness-aware training for any ``Trainer`` subclass.

    Put it in front of the Trainer: ``class MyTrainer(FAMMixin, SFTTrainer)``. It minimizes ``loss + lambda * kappa``
    (Adilova et al. 2023) with one forward pass, one backward pass and the usual optimizer. The log adds ``fam_kappa``,
    ``fam_term`` = lambda kappa, ``fam_lambda``, ``fam_grad_ratio`` and ``fam_delta`` = sqrt(2 m lambda).

    Args:
        *args: positional arguments of the Trainer.
        fam_args: arguments of flatness-aware training. Needed only if ``args`` does not contain them. For a
            hyperparameter search over fam_* fields, use `FAMTrainingArguments` instead.
        **kwargs: keyword arguments of the Trainer.

    Raises:
        ValueError: a setting does not work with FAM; the message names it and says what to do.
        TypeError: a class has the mixin behind the Trainer.

    Examples:
        >>> from hf_fam import FAMMixin
        >>> from transformers import Trainer
        >>> class MyTrainer(FAMMixin, Trainer):
        ...     pass
        >>> MyTrainer.__mro__[1].__name__
        'FAMMixin'
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(FAMMixin):
            raise TypeError(f"class {cls.__name__}: put FAMMixin in front of the Trainer in the list of base classes.")

    def __init__(self, *args: Any, fam_args: FAMArguments | None = None, **kwargs: Any) -> None:
        refuse_removed_fields(kwargs)
        given = kwargs.get("args", args[1] if len(args) > 1 else None)
        with no_new_folder_if_refused(getattr(given, "output_dir", None)):
            super().__init__(*args, **kwargs)
            hide_token(self.args)
            self.start_fam(fam_args)

    def start_fam(self, fam_args: FAMArguments | None) -> None:
        """Prepare for flatness-aware training; the constructor calls this.

        Args:
            fam_args: arguments of flatness-aware training; None for those in ``args``, or the defaults.

        Raises:
            ValueError: ``fam_args`` is something else, or a setting does not work with FAM.
        """
        if fam_args is None:
            fam_args = self.args if isinstance(self.args, FAMArguments) else FAMArguments()
        elif not isinstance(fam_args, FAMArguments):
            raise ValueError(f"fam_args={fam_args!r}: give FAMArguments(...) or None.")
        if isinstance(fam_args.fam_layer, nn.Module):  # arguments are saved as JSON, so they store the name
            fam_args.fam_layer = resolve_layer(whole_model(self), fam_args.fam_layer)[0]
        self.fam_args = fam_args
        self._fam = FlatTraining(fam_args)
        self._fam.prepare(self)  # refuses an unknown layer before the data is prepared
        self.add_callback(FlatTrainingCallback(self._fam, self))
        add_flatness_columns(self)

    def __repr__(self) -> str:
        """Return model, layer and strength, as far as they are known yet."""
        training: FlatTraining | None = getattr(self, "_fam", None)
        model = type(getattr(self, "model", None)).__name__
        if training is None or training.flatness is None:
            return f"{type(self).__name__}({model}, without a flatness term)"
        return f"{type(self).__name__}({model}, {training.flatness!r}, fam_lambda={training.strength:g})"

    def prepare_fam(self) -> None:
        """Find the layer and the estimator again, after ``fam_args`` changed.

        Raises:
            ValueError: a setting does not work with FAM; the message names it and says what to do.
        """
        self._fam.prepare(self)

    @property
    def relative_flatness(self) -> RelativeFlatness | None:
        """Return the flatness of the trained model.

        None while ``fam_lambda`` is 0, or before a model exists.
        """
        return None if self.fam_args.fam_lambda == 0 else self._fam.flatness

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the task loss, with the gradient of ``loss + lambda * kappa``.

        The value is that of the task loss, so that logs compare with plain training. Evaluation adds no term.
        """
        strength = self._fam.strength_of_batch(self, model)
        if strength is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        flatness = self._fam.seeded_flatness(self, inputs)
        with flatness.capture(strength):
            result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        loss, *outputs = result if return_outputs else (result,)
        kappa = flatness(loss)
        self._fam.record(self, loss, kappa, strength, num_items_in_batch)
        loss = with_gradient_of(loss, kappa, strength)
        return (loss, *outputs) if return_outputs else loss

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, then remove the hooks from the model.

        ``resume_from_checkpoint=True`` resumes from the newest whole checkpoint: a process that was killed while it
        saved leaves an incomplete one.

        Args:
            resume_from_checkpoint: a checkpoint, True for the newest one, or None.
            *args: further positional arguments of the Trainer's method.
            **kwargs: keyword arguments of the Trainer's method.

        Raises:
            ValueError: the checkpoint is damaged; the message names the file.
        """
        checkpoint = checkpoint_to_resume(self, resume_from_checkpoint)
        if self.fam_args.fam_lambda != 0:
            # A hyperparameter search makes a new model for every trial, later.
            refuse_second_term(self, None if self.model is None else whole_model(self))
        self._fam.reset_loss_scaling(self)
        try:
            return super().train(checkpoint, *args, **kwargs)
        finally:
            self._fam.detach()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Take the Trainer's step; check the first batch before the first one."""
        if not self._fam.is_first_batch_checked:
            compute_plain_loss = functools.partial(super().compute_loss, model)
            self._fam.check_first_batch(self, compute_plain_loss, model, inputs, num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with the flatness term beside the training loss."""
        if "loss" in logs:
            logs = {**logs, **self._fam.means_to_log(self)}
        super().log(logs, *args, **kwargs)

    def before_saving(self) -> None:
        """Refuse to save weights that are not finite."""
        refuse_to_save(self, self._fam.strength)

    def before_checkpoint(self) -> None:
        """Refuse to save a checkpoint that could not be resumed."""
        self._fam.before_checkpoint(self)

    def create_model_card(
        self, *args: Any, command: str | None = None, step_time_ratio: float | None = None, **kwargs: Any
    ) -> None:
        """Write the Trainer's model card, with a section about flatness.

        The card also gets tags and the evaluation as metadata. The metadata needs ``tasks`` and ``dataset`` (or
        ``dataset_tags``). `push_to_hub` accepts the same arguments.

        Args:
            *args: positional arguments of the Trainer's method.
            command: command line that repeats the training.
            step_time_ratio: duration of a step relative to plain training, if you measured it.
            **kwargs: keyword arguments of the Trainer's method.
        """
        base_model = kwargs.get("finetuned_from") or base_model_name(self.model)
        summarize = functools.partial(self._fam.summary, self, base_model, step_time_ratio)
        write_card(self, super().create_model_card, args, kwargs, summarize, command)


def with_gradient_of(loss: Tensor, kappa: Tensor, strength: float) -> Tensor:
    """Return a scalar with the value of ``loss`` and the gradient of ``loss + strength * kappa``.

    Args:
        loss: a scalar.
        kappa: a scalar.
        strength: lambda.

    Examples:
        >>> import torch
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = with_gradient_of(2 * x, x**2, 0.5)
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (6.0, 5.0)
    """
    result: Tensor = _WithGradientOf.apply(loss, kappa, strength)
    return result


class _WithGradientOf(torch.autograd.Function):
    """The identity on the loss, which takes one kernel in the backward pass."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, kappa: Tensor, strength: float) -> Tensor:
        ctx.strength, ctx.dtype = strength, kappa.dtype
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return gradient, (gradient * ctx.strength).to(ctx.dtype) if ctx.needs_input_grad[1] else None, None


def make_flat(trainer: Any, strength: float | None) -> None:
    """Change a Trainer so that its next training is flatness-aware.

    Args:
        trainer: any ``Trainer``. One with `FAMMixin` keeps its other ``fam_*`` arguments.
        strength: lambda; None for the default of the estimator.

    Raises:
        ValueError: the Trainer cannot train with FAM; the message says why.
    """
    if isinstance(trainer, FAMMixin):
        trainer.fam_args.fam_lambda = strength
        trainer.prepare_fam()
        return
    kind = type(trainer)
    trainer.__class__ = type(f"FAM{kind.__name__}", (FAMMixin, kind), {})
    trainer.start_fam(FAMArguments(fam_lambda=strength))


class FAMTrainer(FAMMixin, Trainer):
    """``transformers.Trainer`` with flatness-aware training.

    It minimizes ``loss + lambda * kappa`` (Adilova et al. 2023), where kappa is the relative flatness of one layer.
    All other arguments, methods and saved files are those of the Trainer. `FAMMixin` lists what the log adds.

    One thing differs for models that accept ``num_items_in_batch`` and ignore it. Under accumulation and in several
    processes the Trainer multiplies their gradients, and this class does not; see ``fam_loss_scaling``.

    Args:
        *args: positional arguments of ``Trainer``.
        fam_args: arguments of flatness-aware training. By default those in ``args`` if it is `FAMTrainingArguments`,
            and the defaults of `FAMArguments` if it is plain ``TrainingArguments``.
        **kwargs: keyword arguments of ``Trainer``.

    Raises:
        ValueError: a setting does not work with FAM; the message names it and says what to do.

    Examples:
        >>> import tempfile
        >>> from hf_fam import FAMTrainer, FAMTrainingArguments
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        >>> data = [{"input_ids": [k, k + 1, 2], "labels": k % 2} for k in range(8)]
        >>> args = FAMTrainingArguments(
        ...     output_dir=tempfile.mkdtemp(),
        ...     max_steps=2,
        ...     report_to="none",
        ...     disable_tqdm=True,
        ...     use_cpu=True,
        ...     save_strategy="no",
        ... )
        >>> trainer = FAMTrainer(model=BertForSequenceClassification(config), args=args, train_dataset=data)
        >>> result = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> result.global_step
        2
    """


class FAMSeq2SeqTrainer(FAMMixin, Seq2SeqTrainer):
    """``transformers.Seq2SeqTrainer`` with flatness-aware training.

    Use it as `FAMTrainer`, with `FAMSeq2SeqTrainingArguments`. Generation in evaluation is the Trainer's own.

    Args:
        *args: positional arguments of ``Seq2SeqTrainer``.
        fam_args: arguments of flatness-aware training. Needed only if ``args`` does not contain them.
        **kwargs: keyword arguments of ``Seq2SeqTrainer``.

    Raises:
        ValueError: a setting does not work with FAM; the message names it and says what to do.

    Examples:
        >>> import tempfile
        >>> from hf_fam import FAMSeq2SeqTrainer, FAMSeq2SeqTrainingArguments
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        >>> args = FAMSeq2SeqTrainingArguments(output_dir=tempfile.mkdtemp(), use_cpu=True, report_to="none")
        >>> trainer = FAMSeq2SeqTrainer(model=T5ForConditionalGeneration(config), args=args)
        >>> trainer.relative_flatness.layer.name
        'lm_head'
    """
