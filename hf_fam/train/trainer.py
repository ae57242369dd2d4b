"""FAMTrainer: ``transformers.Trainer`` with relative flatness in its loss."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer

from .._compat import CheckpointHooks
from ..flatness.relative_flatness import RelativeFlatness
from ..layer.finding import resolve_layer
from .callback import refuse_second_term
from .card_writing import name_of_base_model, write_card
from .flat_training import FlatTraining, FlatTrainingCallback, whole_model
from .training_args import FAMArguments

if TYPE_CHECKING:  # what the mixin expects of the class that stands behind it

    class _Host(CheckpointHooks, Trainer):
        """A Trainer."""
else:
    _Host = CheckpointHooks


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
            fam_args.fam_layer = resolve_layer(whole_model(self), fam_args.fam_layer)[0]
        self.fam_args = fam_args
        self._fam = FlatTraining(fam_args)
        self._fam.prepare(self)  # an unknown layer is refused now, not after the data was prepared
        self.add_callback(FlatTrainingCallback(self._fam, self))

    @property
    def relative_flatness(self) -> RelativeFlatness | None:
        """The estimator on the model that is trained; None while ``fam_lambda`` is 0, or there is no model yet."""
        return None if self.fam_args.fam_lambda == 0 else self._fam.flatness

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the user's own loss; while training its gradient is that of ``loss + lambda * kappa``.

        The value stays the task loss, so that everything which is logged compares with plain training.
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
        loss = with_gradient_of(loss, strength * kappa)
        return (loss, *outputs) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; afterwards the model carries no hooks of ours."""
        if self.fam_args.fam_lambda != 0:
            # In a search the model is made anew for every trial, and there is none yet.
            refuse_second_term(self, None if self.model is None else whole_model(self))
        self._fam.keep_loss_scaling(self)
        try:
            return super().train(*args, **kwargs)
        finally:
            self._fam.detach()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Take the Trainer's step; before the first one, see what can only be seen on a batch."""
        if not self._fam.first_batch_is_examined:
            plain = functools.partial(super().compute_loss, model)
            self._fam.examine_first_batch(self, plain, model, inputs, num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, and the term beside the training loss."""
        if "loss" in logs:
            logs = {**logs, **self._fam.logged(self)}
        super().log(logs, *args, **kwargs)

    def before_checkpoint(self) -> None:
        """Refuse a checkpoint that could not be resumed from."""
        self._fam.before_checkpoint(self)

    def create_model_card(
        self, *args: Any, command: str | None = None, step_time_ratio: float | None = None, **kwargs: Any
    ) -> None:
        """Write the Trainer's card, with tags, a section about flatness and the evaluation as metadata.

        For the metadata, give ``tasks`` and ``dataset`` (or ``dataset_tags``). `push_to_hub` passes all of these on.

        Args:
            *args: the Trainer's.
            command: what one types to repeat the training, shown as it is.
            step_time_ratio: seconds a step over those of plain training, if you measured them.
            **kwargs: the Trainer's.
        """
        base_model = kwargs.get("finetuned_from") or name_of_base_model(self.model)
        summarize = functools.partial(self._fam.summary, self, base_model, step_time_ratio)
        write_card(self, super().create_model_card, args, kwargs, summarize, command)


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
