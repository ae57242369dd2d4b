"""WGANTrainer: ``transformers.Trainer`` for a generator and a critic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy

from .._compat import CheckpointHooks, GradientNormHook, clip_gradients, mark_scheduler_as_created
from ..processes.checkpoints import checkpoint_to_resume
from .callback import AfterCriticStep
from .data import SAMPLES, collate_samples
from .evaluation import Features, SampleComparison
from .lipschitz import clip_weights
from .micro_batches import MicroBatch, micro_batch_shares, standard_deviation
from .networks import GenerativeNetworks, samples_of, weight_dtype, without_gradients_of
from .optimizers import CRITIC, GENERATOR, parameter_groups, schedule
from .penalty import penalty_of_norms
from .points import LocalPoints
from .random_numbers import ItemRandomNumbers
from .requirements import (
    check_finite,
    check_networks,
    check_range,
    check_settings,
    first_batch,
    latent_size_of,
    refuse_keywords,
    refuse_launcher,
)
from .sample_grid import refuse_missing_package, write_picture
from .training_args import NONE, UNIFORM, WGANTrainingArguments
from .training_log import CriticLog


class WGANTrainer(CheckpointHooks, GradientNormHook, Trainer):
    """``transformers.Trainer`` for a Wasserstein GAN with a gradient penalty.

    The critic f minimizes E f(generated) - E f(real) + lambda E penalty(||grad f(x)||). After every ``n_critic``-th
    such step the generator minimizes -E f(generated). The source of ``penalty="one"`` is Petzka, Fischer, Lukovnikov,
    ICLR 2018, arXiv 1709.08894. One step of the Trainer is one step of the critic.

    Both networks are parts of one module, ``trainer.model``, with one optimizer of two groups. Latent codes and points
    are a function of (seed, step, item). So training does not depend on micro-batches and processes, and a resumed
    training continues like an uninterrupted one. Saved files: ``model.safetensors`` with everything, for resuming;
    ``generator.safetensors`` (the moving average if there is one) and ``critic.safetensors`` for use.

    Logged: ``loss`` (the critic's), ``wasserstein_estimate`` (without the penalty), ``gradient_penalty``,
    ``penalty_term`` = lambda times it, ``gradient_violation`` (largest gradient norm minus the target),
    ``generator_loss``, ``generator_learning_rate``, ``generator_steps``. Evaluation: ``eval_wasserstein_estimate``,
    ``eval_gradient_violation``, ``eval_emd``, ``eval_frechet_distance``.

    Args:
        generator: from latent codes (n, latent_size) to samples.
        critic: from samples to one number each; without batch normalization.
        args: `WGANTrainingArguments`.
        train_dataset: real samples, as `hf_fam.gan.collate_samples` takes them.
        eval_dataset: held-out real samples.
        features: from samples to features (n, m), for the Frechet distance in evaluations.
        compute_metrics: takes an ``EvalPrediction`` with generated samples as predictions and real ones as label_ids.
        **kwargs: further arguments of the Trainer, such as data_collator and callbacks.

    Raises:
        ValueError: a setting, network or data set is not supported; the message names it and says what to do.

    Examples:
        >>> import tempfile
        >>> from hf_fam.gan import WGANTrainer, WGANTrainingArguments
        >>> generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> critic = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
        >>> args = WGANTrainingArguments(
        ...     output_dir=tempfile.mkdtemp(),
        ...     latent_size=4,
        ...     max_generator_steps=2,
        ...     report_to="none",
        ...     disable_tqdm=True,
        ...     use_cpu=True,
        ...     save_strategy="no",
        ...     logging_strategy="no",
        ... )
        >>> trainer = WGANTrainer(generator, critic, args=args, train_dataset=torch.randn(64, 2))
        >>> result = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> result.global_step, trainer.generator_steps
        (10, 2)
        >>> trainer.sample(3).shape
        torch.Size([3, 2])
    """

    # compute_loss weights losses by the samples of their micro-batch, so the Trainer must not average them. Later
    # versions read this attribute, earlier ones model_accepts_loss_kwargs and a number of items.
    loss_is_scaled_for_ga = True
    args: WGANTrainingArguments

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        args: WGANTrainingArguments | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        features: Features | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        args = WGANTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, WGANTrainingArguments):
            raise ValueError(
                f"args: a {type(args).__name__} has no settings of the critic: give WGANTrainingArguments."
            )
        for name, network in ((GENERATOR, generator), (CRITIC, critic)):
            if not isinstance(network, nn.Module):
                raise ValueError(f"{name} is a {type(network).__name__}: give a torch.nn.Module.")
        refuse_keywords(kwargs)
        check_settings(args)
        self.latent_size = latent_size_of(generator, args.latent_size)
        kwargs.setdefault("data_collator", collate_samples)
        networks = GenerativeNetworks(generator, critic, averaged=args.ema_decay is not None)
        super().__init__(
            model=networks,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        refuse_launcher(self)
        self.model_accepts_loss_kwargs = True
        self.features = features
        self.points = args.sampler
        self._critic_log = CriticLog()
        self._micro_batches: list[MicroBatch] = []
        self._real_batches: list[Tensor] = []
        self.add_callback(AfterCriticStep(self._begin_training, self._after_critic_step, self.save_samples))
        batch = None if train_dataset is None else first_batch(self.data_collator, train_dataset)
        if batch is not None:
            real = self._real_of(batch)
            check_networks(generator, critic, self._latents("check", 0, 0, 2), real)
            check_range(generator, real, args.sample_low, args.sample_high)
            if args.sample_steps:
                refuse_missing_package(real)

    @property
    def networks(self) -> GenerativeNetworks:
        """Return both networks in one module."""
        networks: Any = self.model
        assert isinstance(networks, GenerativeNetworks)
        return networks

    @property
    def generator(self) -> nn.Module:
        """Return the generator in training."""
        return self.networks.generator

    @property
    def critic(self) -> nn.Module:
        """Return the critic."""
        return self.networks.critic

    @property
    def ema_generator(self) -> nn.Module | None:
        """Return the moving average of the generator, or None."""
        return self.networks.ema_generator

    @property
    def generator_steps(self) -> int:
        """Return the number of generator steps so far."""
        return self.args.critic_schedule.generator_steps(self.state.global_step)

    def sample(self, count: int, seed: int | None = None) -> Tensor:
        """Return samples of the generator, in evaluation mode.

        They are samples of the moving average if there is one.

        Args:
            count: number of samples.
            seed: seed of the latent codes; None: ``args.seed``. The first samples do not depend on the count.
        """
        return self._comparison().generate(self._latents("samples", 0, 0, count, seed))

    # One step: the critic by the Trainer's own loop, the generator after it.

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """Return the micro-batches of one step.

        `training_step` prepares them together when it gets the first one.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._real_batches, self._micro_batches = [self._real_of(batch) for batch in batches], []
        return [{SAMPLES: batch} for batch in self._real_batches], sum(map(len, self._real_batches))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run the Trainer's step on the next micro-batch."""
        if not self._micro_batches:
            if not all(module.training for module in model.modules()):
                model.train()
            self._micro_batches = self._prepare_micro_batches()
        micro_batch = self._micro_batches.pop(0)
        return super().training_step(model, {"micro_batch": micro_batch}, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the critic's loss on one micro-batch.

        -estimate + lambda penalty, weighted by its share of the samples.
        """
        micro_batch: MicroBatch = inputs["micro_batch"]
        outputs = model(real=micro_batch.real, generated=micro_batch.generated, points=micro_batch.points)
        loss, step = -outputs["estimate"], self.state.global_step
        penalty = norms = None
        weight = self.args.penalty_lambda * self.args.penalty_every
        if micro_batch.points is not None:
            norms = outputs["norms"]
            penalty = penalty_of_norms(norms, self.args.penalty, self.args.penalty_target)
            loss = loss + weight * penalty
            penalty, norms = penalty.detach(), norms.detach()
        self._critic_log.add_critic(step, micro_batch.share, outputs["estimate"].detach(), penalty, norms, weight)
        loss = loss * micro_batch.share
        return (loss, outputs) if return_outputs else loss

    def _prepare_micro_batches(self) -> list[MicroBatch]:
        """Return all micro-batches of a critic step, with generated samples.

        They have the points of the penalty, too.
        """
        step = self.state.global_step
        shares = micro_batch_shares([len(batch) for batch in self._real_batches], self.accelerator)
        micro_batches = []
        for real, (first, share) in zip(self._real_batches, shares, strict=True):
            latents = self._latents("critic", step, first, len(real))
            with torch.no_grad(), self.accelerator.autocast():
                generated = samples_of(self.networks.generator(latents)).to(real.dtype)
            micro_batches.append(MicroBatch(first, share, real, generated))
        if self.args.penalty == NONE or step % self.args.penalty_every:
            return micro_batches
        options: dict[str, Any] = {}
        if isinstance(self.points, LocalPoints):
            samples_of_step = (
                [micro_batch.real for micro_batch in micro_batches],
                [micro_batch.generated for micro_batch in micro_batches],
            )
            options["deviations"] = tuple(standard_deviation(samples, self.accelerator) for samples in samples_of_step)
        for micro_batch in micro_batches:
            random_numbers = ItemRandomNumbers(
                (self.args.seed, "points", step), micro_batch.first_item, len(micro_batch.real)
            )
            micro_batch.points = self.points(
                micro_batch.real, micro_batch.generated, generator=random_numbers, **options
            )
        return micro_batches

    def _begin_training(self) -> None:
        self._critic_log = CriticLog()

    def _after_critic_step(self) -> None:
        """Clip the critic, and step the generator if a step is due.

        The generator steps on as many samples as the critic.
        """
        if self.args.clip_limit is not None:
            clip_weights(self.networks.critic, self.args.clip_limit)
        if not self.args.critic_schedule.generator_follows(self.state.global_step):
            return
        model, networks = self.model_wrapped, self.networks
        model.zero_grad()
        with without_gradients_of(networks.critic):
            shares = micro_batch_shares([len(batch) for batch in self._real_batches], self.accelerator)
            for number, (real, (first, share)) in enumerate(zip(self._real_batches, shares, strict=True)):
                latents = self._latents("generator", self.state.global_step, first, len(real))
                is_last = number == len(shares) - 1
                with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                    self._generator_backward(model, latents, share)
        if self.args.max_grad_norm > 0:
            clip_gradients(self, model)
        assert self.optimizer is not None
        self.optimizer.step()
        if self.args.ema_decay is not None:
            networks.update_average(self.args.ema_decay)

    def _generator_backward(self, model: nn.Module, latents: Tensor, share: float) -> None:
        loss = model(latents=latents)["generator_loss"]
        self._critic_log.add_generator(self.state.global_step, share, loss.detach())
        self.accelerator.backward(loss * share)

    # Optimizer, schedule, checkpoints, logs.

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return one optimizer of the kind ``args.optim``, a group per network."""
        if self.optimizer is None:
            kind, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args)
            groups = parameter_groups(self.args, self.critic, self.generator, "betas" in settings)
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Return one schedule, by the steps of each network."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            self.lr_scheduler = schedule(self.args, optimizer, self.args.critic_schedule, num_training_steps)
            mark_scheduler_as_created(self)
        return self.lr_scheduler

    def needs_gradient_norm(self) -> bool:
        """Return True if the Trainer logs after the current step, or may do so."""
        args, step = self.args, self.state.global_step + 1
        if args.logging_strategy == IntervalStrategy.STEPS:
            return step % self.state.logging_steps == 0 or (args.logging_first_step and step == 1)
        return bool(args.logging_strategy != IntervalStrategy.NO)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log values, and add those of critic and generator to the training loss."""
        if "loss" in logs:

            def mean(tensor: Tensor) -> Tensor:
                averaged: Tensor = self.accelerator.reduce(tensor, reduction="mean")
                return averaged

            logs.update(self._critic_log.drain(self.args.penalty_target, mean, self.accelerator.gather))
            logs["generator_steps"] = self.generator_steps
            assert self.optimizer is not None
            rates = {group["network"]: group["lr"] for group in self.optimizer.param_groups}
            logs["generator_learning_rate"] = rates[GENERATOR]
        super().log(logs, *args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does.

        ``resume_from_checkpoint=True`` takes the newest whole checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint, True for the newest one, or None.
            *args: further positional arguments of the Trainer's method.
            **kwargs: keyword arguments of the Trainer's method.

        Raises:
            ValueError: the checkpoint is damaged; the message names the file.
        """
        return super().train(checkpoint_to_resume(self, resume_from_checkpoint), *args, **kwargs)

    def before_saving(self) -> None:
        """Refuse to save weights that are not finite."""
        check_finite(self.networks, self.state.global_step, str(self.args.output_dir))

    def state_to_save(self) -> dict[str, Tensor]:
        """Return copies of the weights for safetensors.

        safetensors takes neither shared nor non-contiguous tensors.
        """
        state = self.networks.state_dict()
        return {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in state.items()}

    def after_saving(self, folder: Path) -> None:
        """Write each network into a separate file."""
        save_model(self.networks.sampling_generator, str(folder / "generator.safetensors"))
        save_model(self.critic, str(folder / "critic.safetensors"))

    # Evaluation and pictures.

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compare held-out real samples with generated ones.

        Every evaluation uses the same latent codes.
        """
        real = self._held_out(dataloader)
        comparison = self._comparison()
        generated = comparison.generate(self._latents("evaluation", 0, 0, len(real))).to(real.dtype)
        random_numbers = ItemRandomNumbers((self.args.seed, "evaluation points"), 0, len(real))
        metrics = comparison.metrics(real, generated, self.points(real, generated, generator=random_numbers))
        if self.compute_metrics is not None:
            pair = EvalPrediction(predictions=generated.float().cpu().numpy(), label_ids=real.float().cpu().numpy())
            metrics.update(self.compute_metrics(pair))
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        nothing: Any = None
        return EvalLoopOutput(predictions=nothing, label_ids=None, metrics=named, num_samples=len(real))

    def _held_out(self, dataloader: Any) -> Tensor:
        """Return the first real samples of all processes.

        The random state of the training does not change.
        """
        samples: list[Tensor] = []
        with torch.random.fork_rng():
            for batch in dataloader:
                gathered = self.accelerator.gather_for_metrics(self._real_of(batch))
                if sum(map(len, samples)) < self.args.eval_samples:
                    samples.append(gathered)
        return torch.cat(samples)[: self.args.eval_samples]

    def save_samples(self) -> Path | None:
        """Write a picture of samples into ``output_dir/samples``.

        The picture shows images or points of the plane. Beside points, it shows the real points of the current step and
        the critic's level sets. TensorBoard gets images, too.

        Returns:
            The path of the file. Samples of another kind are saved as a tensor. None in processes that do not save.
        """
        samples = self.sample(self.args.sample_count)
        if not self.args.should_save:
            return None
        args, step = self.args, self.state.global_step
        path, grid = write_picture(
            samples,
            Path(str(args.output_dir)) / "samples" / f"step-{step:06d}",
            args.sample_low,
            args.sample_high,
            torch.cat(self._real_batches).to(samples.dtype) if self._real_batches else None,
            self._comparison().values,
        )
        for callback in self.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None and grid is not None:
                writer.add_image("samples", grid, step)
        return path

    def _comparison(self) -> SampleComparison:
        networks, args = self.networks, self.args
        return SampleComparison(
            networks.sampling_generator, networks.critic, args.eval_batch_size, self.features, args.eval_emd,
            args.penalty_target,
        )  # fmt: skip

    def _latents(self, purpose: str, step: int, first_item: int, items: int, seed: int | None = None) -> Tensor:
        """Return latent codes that are a function of their numbers.

        They have the dtype of the generator.
        """
        random_numbers = ItemRandomNumbers((self.args.seed if seed is None else seed, purpose, step), first_item, items)
        shape = (items, self.latent_size)
        latents = (
            2 * random_numbers.uniform(shape) - 1 if self.args.latent_prior == UNIFORM else random_numbers.normal(shape)
        )
        return latents.to(self.args.device, weight_dtype(self.networks.generator))

    def _real_of(self, batch: Any) -> Tensor:
        samples = batch.get(SAMPLES) if isinstance(batch, dict) else None
        if not isinstance(samples, Tensor):
            raise ValueError(f"data_collator must return {{{SAMPLES!r}: tensor}}, the real samples of a batch.")
        return samples.to(self.args.device, weight_dtype(self.networks.critic))
