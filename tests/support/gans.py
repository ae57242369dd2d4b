"""Tiny generators, critics and data, and one WGAN training cut in different ways; launched by tests/gan as well."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import SequentialSampler, TensorDataset

from hf_fam.gan import WGANTrainer, WGANTrainingArguments
from support.leaving import leave_together

HOST = ("train_dataset", "eval_dataset", "data_collator", "callbacks", "features", "compute_metrics", "optimizers")
PLAIN: dict[str, Any] = {
    "latent_size": 3,
    "max_steps": 6,
    "n_critic": 2,
    "penalty_target": 0.01,  # below the slopes of these critics, so that the penalty acts
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 4,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def tiny_generator(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    """From three numbers to points of the plane."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 2))


def tiny_critic(seed: int = 1, dropout: float = 0.0) -> nn.Module:
    """Smooth, so that nothing depends on which side of a kink rounding puts a point."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)
    )


def points(count: int = 40) -> Tensor:
    """On a ring of radius 3."""
    angles = 6.2831853 * torch.rand(count, generator=torch.Generator().manual_seed(5))
    return 3 * torch.stack([angles.cos(), angles.sin()], 1)


class WithLabels(nn.Module):
    """A network that takes labels, too: an embedding of the label beside the input."""

    def __init__(self, inside: nn.Module, classes: int, size: int = 3) -> None:
        super().__init__()
        self.embedding, self.inside = nn.Embedding(classes, size), inside

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        values: Tensor = self.inside(torch.cat([x, self.embedding(labels).to(x.dtype)], 1))
        return values


def conditional_networks(classes: int = 3, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A generator from three numbers and a label to points, and a critic of points and labels."""
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2))
    critic = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 1))
    return WithLabels(generator, classes), WithLabels(critic, classes)


def labeled_points(count: int = 40, classes: int = 3) -> TensorDataset:
    """On rings of radius 1, 2, ..., one for each class."""
    labels = torch.arange(count) % classes
    return TensorDataset(points(count) / 3 * (labels[:, None] + 1), labels)


def wgan_arguments(path: Path, **given: Any) -> WGANTrainingArguments:
    """Of a short silent training that logs every step."""
    return WGANTrainingArguments(output_dir=str(path), **{**PLAIN, **given})


def wgan_trainer(
    path: Path, generator: nn.Module | None = None, critic: nn.Module | None = None, **given: Any
) -> WGANTrainer:
    """Keywords of the trainer and of its arguments alike."""
    host = {name: given.pop(name) for name in list(given) if name in HOST}
    host.setdefault("train_dataset", points())
    generator = tiny_generator() if generator is None else generator
    critic = tiny_critic() if critic is None else critic
    kind = given.pop("kind", WGANTrainer)
    return kind(generator, critic, args=wgan_arguments(path, **given), **host)


def everything(trainer: WGANTrainer) -> dict[str, Tensor]:
    """Weights of all networks and the state of the optimizers."""
    found = {name: t.detach().clone() for name, t in trainer.model.state_dict().items()}
    for number, values in trainer.optimizer.state_dict()["state"].items():
        found.update({f"optimizer.{number}.{name}": torch.as_tensor(value).clone() for name, value in values.items()})
    return found


# Settings under which the arrangements have to agree.
ARRANGED: dict[str, dict[str, Any]] = {
    "one-sided, line": {},
    "two-sided, local around both": {"penalty": "two", "penalty_points": "local_both"},
    "lazy, average, warm-up, clipped gradients": {
        "penalty_every": 2,
        "ema_decay": 0.7,
        "n_critic_warmup": 3,
        "n_critic_warmup_steps": 1,
        "max_grad_norm": 0.5,
        "latent_prior": "uniform",
    },
    "weights clipped": {"penalty": "none", "clip_limit": 0.2},
    "classes": {"num_classes": 3, "penalty_points": "local_both"},
}


# Each call of the critic is a step of its power iteration, so micro-batches differ, but processes agree.
NORMALIZED = "spectral normalization"


class InOrder(WGANTrainer):
    """The items as they are in the data set, so that it is known which ones a short last batch has."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def trained(path: Path, name: str, batch: int, parts: int, items: int = 40, **given: Any) -> dict[str, Any]:
    """Weights, states and logs after a few steps in float64."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
    settings = {"penalty": "none"} if name == NORMALIZED else ARRANGED[name]
    classes = settings.get("num_classes")
    networks = (tiny_generator(), tiny_critic()) if classes is None else conditional_networks(classes)
    if name == NORMALIZED:
        for layer in networks[1]:
            if isinstance(layer, nn.Linear):
                spectral_norm(layer)
    data = points(items).double() if classes is None else labeled_points(items, classes)
    trainer = wgan_trainer(
        path,
        *(network.double() for network in networks),
        train_dataset=data,
        kind=InOrder,
        **{**settings, **sizes, **given},
    )
    trainer.train()
    found = everything(trainer)
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    same = bool((trainer.accelerator.gather(weights.unsqueeze(0)) == weights).all())
    names = ("loss", "wasserstein_estimate", "gradient_penalty", "penalty_term", "gradient_violation", "generator_loss")
    logs = {key: [e[key] for e in trainer.state.log_history if key in e] for key in (*names, "generator_learning_rate")}
    return {"found": found, "logs": logs, "same": same, "processes": trainer.accelerator.num_processes}


def main(folder: Path) -> None:
    """Every setting in the processes that were started; the first one writes what came out."""
    torch.set_num_threads(1)
    found = {}
    for name in ARRANGED:
        for batch, parts in ((4, 1), (2, 2)):
            found[name, 40, batch, parts] = trained(folder, name, batch, parts)
        found[name, 20, 2, 2] = trained(folder, name, 2, 2, items=20)
    found[NORMALIZED, 40, 4, 1] = trained(folder, NORMALIZED, 4, 1)
    if PartialState().is_main_process:
        torch.save(found, folder / "found.pt")
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
