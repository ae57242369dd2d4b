"""The part of `WGANTrainer` that takes the steps of critic and generator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .._compat import clip_gradients
from .argument_checks import NONE
from .data import RealBatch
from .evaluated_trainer import EvaluatedTrainer
from .lipschitz import clip_weights
from .micro_batches import MicroBatch, micro_batch_shares, standard_deviation
from .networks import call, samples_of, without_gradients_of
from .penalty import penalty_of_norms
from .points import LocalPoints
from .random_numbers import ItemRandomNumbers
from .training_log import CriticLog


class CriticSteps(EvaluatedTrainer):
    """A ``Trainer`` whose step is one of the critic, with one of the generator behind some of them."""

    # compute_loss weights losses by the samples of their micro-batch, so the Trainer must not average them. Later
    # versions read this attribute, earlier ones model_accepts_loss_kwargs and a number of items.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self.critic_log = CriticLog()
        self._micro_batches: list[MicroBatch] = []

    def begin_training(self) -> None:
        """Forget the log of an earlier training."""
        self.critic_log = CriticLog()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """Return the micro-batches of one step; `compute_loss` completes them together when it gets the first one."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        real = [self.real_batch_of(batch) for batch in batches]
        shares = micro_batch_shares(list(map(len, real)), self.accelerator)
        self._micro_batches = [
            MicroBatch(first, share, batch.samples, batch.labels)
            for batch, (first, share) in zip(real, shares, strict=True)
        ]
        return [{"micro_batch": micro_batch} for micro_batch in self._micro_batches], sum(map(len, real))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the critic's loss on one micro-batch.

        -estimate + lambda penalty, weighted by its share of the samples.
        """
        micro_batch: MicroBatch = inputs["micro_batch"]
        if micro_batch.generated is None:
            self._complete_micro_batches()
        outputs = model(
            real=micro_batch.real,
            generated=micro_batch.generated,
            points=micro_batch.points,
            labels=micro_batch.labels,
        )
        loss, step = -outputs["estimate"], self.state.global_step
        penalty = norms = None
        weight = self.args.penalty_lambda * self.args.penalty_every
        if micro_batch.points is not None:
            norms = outputs["norms"]
            penalty = penalty_of_norms(norms, self.args.penalty, self.args.penalty_target)
            loss = loss + weight * penalty
            penalty, norms = penalty.detach(), norms.detach()
        self.critic_log.add_critic(step, micro_batch.share, outputs["estimate"].detach(), penalty, norms, weight)
        loss = loss * micro_batch.share
        return (loss, outputs) if return_outputs else loss

    def _complete_micro_batches(self) -> None:
        """Generate samples for all micro-batches of a critic step, and draw the points of the penalty."""
        step, micro_batches = self.state.global_step, self._micro_batches
        for micro_batch in micro_batches:
            latents = self.latent_codes("critic", step, micro_batch.first_item, len(micro_batch.real))
            with torch.no_grad(), self._autocast():
                generated = samples_of(call(self.networks.generator, latents, micro_batch.labels))
            micro_batch.generated = generated.to(micro_batch.real.dtype)
        if self.args.penalty == NONE or step % self.args.penalty_every:
            return
        options: dict[str, Any] = {}
        if isinstance(self.points, LocalPoints):
            of_real = standard_deviation([micro_batch.real for micro_batch in micro_batches], self.accelerator)
            generated_parts = [part.generated for part in micro_batches if part.generated is not None]
            options["deviations"] = of_real, standard_deviation(generated_parts, self.accelerator)
        for micro_batch in micro_batches:
            assert micro_batch.generated is not None
            random_numbers = ItemRandomNumbers(
                (self.args.seed, "points", step), micro_batch.first_item, len(micro_batch.real)
            )
            micro_batch.points = self.points(
                micro_batch.real, micro_batch.generated, generator=random_numbers, **options
            )

    def after_critic_step(self) -> None:
        """Clip the critic, and step the generator if a step is due.

        The generator steps on as many samples as the critic, with the same labels.
        """
        if self.args.clip_limit is not None:
            clip_weights(self.networks.critic, self.args.clip_limit)
        if not self.args.critic_schedule.generator_follows(self.state.global_step):
            return
        model, networks = self.model_wrapped, self.networks
        model.zero_grad()
        with without_gradients_of(networks.critic):
            for micro_batch in self._micro_batches:
                is_last = micro_batch is self._micro_batches[-1]
                with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                    self._generator_backward(model, micro_batch)
        if self.args.max_grad_norm > 0:
            clip_gradients(self, model)
        assert self.optimizer is not None
        self.optimizer.step()
        if self.args.ema_decay is not None:
            networks.update_average(self.args.ema_decay)

    def _generator_backward(self, model: nn.Module, micro_batch: MicroBatch) -> None:
        step = self.state.global_step
        latents = self.latent_codes("generator", step, micro_batch.first_item, len(micro_batch.real))
        loss = model(latents=latents, labels=micro_batch.labels)["generator_loss"]
        self.critic_log.add_generator(step, micro_batch.share, loss.detach())
        self.accelerator.backward(loss * micro_batch.share)

    def real_samples_of_step(self) -> RealBatch | None:
        """Return the real samples of the current step; None before the first."""
        if not self._micro_batches:
            return None
        labels = [part.labels for part in self._micro_batches if part.labels is not None]
        samples = torch.cat([part.real for part in self._micro_batches])
        return RealBatch(samples, torch.cat(labels) if labels else None)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return accelerate's autocast, which takes time even where it changes nothing."""
        if self.accelerator.mixed_precision == "no":
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = self.accelerator.autocast()
        return context
