"""WGANTrainer: ``transformers.Trainer`` for a generator and a critic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import EvalPrediction
from transformers.trainer_utils import IntervalStrategy

from .._compat import CheckpointHooks, GradientNormHook, mark_scheduler_as_created, step_directly
from ..processes.checkpoints import checkpoint_to_resume
from .argument_checks import NONE
from .callback import AfterCriticStep
from .class_labels import check_labels
from .critic_steps import CriticSteps
from .data import collate_samples
from .evaluation import Features
from .lipschitz import refuse_unbounded_layers
from .network_checks import check_networks, check_range, latent_size_of
from .networks import GenerativeNetworks
from .optimizers import CRITIC, GENERATOR, parameter_groups, schedule
from .requirements import check_finite, check_settings, first_batch, refuse_keywords, refuse_launcher
from .sample_grid import refuse_missing_package
from .training_args import WGANTrainingArguments


class WGANTrainer(CheckpointHooks, GradientNormHook, CriticSteps):
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
        generator: from latent codes (n, latent_size) to samples. With ``num_classes`` in the arguments, it is called as
            ``generator(latents, labels)``, with labels of shape (n,), int64.
        critic: from samples to one number each; without batch normalization. With classes, ``critic(samples, labels)``.
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
        if args.penalty == NONE and args.clip_limit is None:
            refuse_unbounded_layers(critic)
        if args.num_classes is not None:
            for data, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
                check_labels(dataset, args.num_classes, data)
        kwargs.setdefault("data_collator", functools.partial(collate_samples, num_classes=args.num_classes))
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
        self.features = features
        self.points = args.sampler
        self.add_callback(AfterCriticStep(self.begin_training, self.after_critic_step, self.save_samples))
        batch = None if train_dataset is None else first_batch(self.data_collator, train_dataset)
        if batch is not None:
            real = self.real_batch_of(batch)
            check_networks(generator, critic, self.latent_codes("check", 0, 0, 2), real, args.num_classes)
            check_range(generator, real.samples, args.sample_low, args.sample_high)
            if args.sample_steps:
                refuse_missing_package(real.samples)

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
            step_directly(optimizer)
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

            logs.update(self.critic_log.drain(self.args.penalty_target, mean, self.accelerator.gather))
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
