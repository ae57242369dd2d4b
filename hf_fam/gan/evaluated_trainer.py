"""The part of `WGANTrainer` that samples, evaluates and draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput

from .argument_checks import UNIFORM
from .class_labels import requested_labels
from .data import RealBatch, real_batch
from .evaluation import Features, SampleComparison
from .networks import GenerativeNetworks, weight_dtype
from .points import GeneratedPoints, LinePoints, LocalPoints, RealPoints
from .random_numbers import ItemRandomNumbers
from .sample_grid import write_picture
from .training_args import WGANTrainingArguments


class EvaluatedTrainer(Trainer):
    """A ``Trainer`` whose evaluation compares generated samples with held-out ones.

    `WGANTrainer` sets the attributes.
    """

    args: WGANTrainingArguments
    latent_size: int
    features: Features | None
    points: LinePoints | LocalPoints | RealPoints | GeneratedPoints
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None

    @property
    def networks(self) -> GenerativeNetworks:
        """Return both networks in one module."""
        networks: Any = self.model
        assert isinstance(networks, GenerativeNetworks)
        return networks

    def sample(self, count: int, seed: int | None = None, labels: Any = None) -> Tensor:
        """Return samples of the generator, in evaluation mode.

        They are samples of the moving average if there is one.

        Args:
            count: number of samples.
            seed: seed of the latent codes; None: ``args.seed``. The first samples do not depend on the count.
            labels: for conditional networks: one class for all samples, or a label for each; None: all classes in turn.

        Raises:
            ValueError: the labels do not fit.
        """
        chosen = requested_labels(labels, count, self.args.num_classes)
        chosen = None if chosen is None else chosen.to(self.args.device)
        return self._comparison().generate(self.latent_codes("samples", 0, 0, count, seed), chosen)

    def save_samples(self) -> Path | None:
        """Write a picture of samples into ``output_dir/samples``.

        The picture shows images or points of the plane. Beside points, it shows the real points of the current step and
        the critic's level sets. With classes, images have a column for each class, and points a panel. TensorBoard gets
        images, too.

        Returns:
            The path of the file. Samples of another kind are saved as a tensor. None in processes that do not save.
        """
        args, step = self.args, self.state.global_step
        samples = self.sample(args.sample_count)
        if not args.should_save:
            return None
        path, grid = write_picture(
            samples,
            Path(str(args.output_dir)) / "samples" / f"step-{step:06d}",
            args.sample_low,
            args.sample_high,
            self.real_samples_of_step(),
            self._comparison().values,
            args.num_classes,
        )
        for callback in self.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None and grid is not None:
                writer.add_image("samples", grid, step)
        return path

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compare held-out real samples with generated ones of the same labels.

        Every evaluation uses the same latent codes.
        """
        held_out = self._held_out(dataloader)
        real, labels = held_out.samples, held_out.labels
        comparison = self._comparison()
        generated = comparison.generate(self.latent_codes("evaluation", 0, 0, len(real)), labels).to(real.dtype)
        random_numbers = ItemRandomNumbers((self.args.seed, "evaluation points"), 0, len(real))
        points = self.points(real, generated, generator=random_numbers)
        metrics = comparison.metrics(real, generated, points, labels)
        if self.compute_metrics is not None:
            pair = EvalPrediction(
                predictions=generated.float().cpu().numpy(),
                label_ids=real.float().cpu().numpy(),
                inputs=None if labels is None else labels.cpu().numpy(),
            )
            metrics.update(self.compute_metrics(pair))
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        nothing: Any = None
        return EvalLoopOutput(predictions=nothing, label_ids=None, metrics=named, num_samples=len(real))

    def latent_codes(self, purpose: str, step: int, first_item: int, items: int, seed: int | None = None) -> Tensor:
        """Return latent codes that are a function of their numbers.

        Args:
            purpose: what they are for, such as ``"critic"``.
            step: optimizer steps already taken.
            first_item: number of the first item in the step.
            items: number of codes.
            seed: None: ``args.seed``.

        Returns:
            Of shape (items, latent_size), in the dtype of the generator.
        """
        random_numbers = ItemRandomNumbers((self.args.seed if seed is None else seed, purpose, step), first_item, items)
        shape = (items, self.latent_size)
        latents = (
            2 * random_numbers.uniform(shape) - 1 if self.args.latent_prior == UNIFORM else random_numbers.normal(shape)
        )
        return latents.to(self.args.device, weight_dtype(self.networks.generator))

    def real_batch_of(self, batch: Any) -> RealBatch:
        """Return what the data collator returned, in the dtype of the critic."""
        return real_batch(batch, self.args.num_classes, self.args.device, weight_dtype(self.networks.critic))

    def real_samples_of_step(self) -> RealBatch | None:
        """Return the real samples of the current step; None before the first."""
        return None

    def _held_out(self, dataloader: Any) -> RealBatch:
        """Return the first real samples of all processes.

        The random state of the training does not change.
        """
        samples: list[Tensor] = []
        labels: list[Tensor] = []
        with torch.random.fork_rng():
            for batch in dataloader:
                own = self.real_batch_of(batch)
                gathered = self.accelerator.gather_for_metrics(own.samples)
                gathered_labels = None if own.labels is None else self.accelerator.gather_for_metrics(own.labels)
                if sum(map(len, samples)) < self.args.eval_samples:
                    samples.append(gathered)
                    labels += [] if gathered_labels is None else [gathered_labels]
        count = self.args.eval_samples
        return RealBatch(torch.cat(samples)[:count], torch.cat(labels)[:count] if labels else None)

    def _comparison(self) -> SampleComparison:
        networks, args = self.networks, self.args
        return SampleComparison(
            networks.sampling_generator, networks.critic, args.eval_batch_size, self.features, args.eval_emd,
            args.penalty_target,
        )  # fmt: skip
