"""What an evaluation says, and pictures of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_fam.gan import ItemRandomNumbers, earth_movers_distance, frechet_distance
from hf_fam.gan.sample_grid import image_grid
from support.gans import InOrder, points, tiny_critic, wgan_trainer

Image = pytest.importorskip("PIL.Image")


def test_metrics_are_those_of_the_samples(tmp_path: Path) -> None:
    seen: list[Any] = []

    def own(pair: Any) -> dict[str, float]:
        seen.append((torch.from_numpy(pair.predictions), torch.from_numpy(pair.label_ids)))
        return {"count": len(pair.predictions)}

    trainer = wgan_trainer(
        tmp_path, eval_dataset=points(30), eval_samples=25, eval_emd=True, features=lambda x: x[:, :1] * 3,
        compute_metrics=own,
    )  # fmt: skip
    metrics = trainer.evaluate()
    ((generated, real),) = seen
    assert metrics["eval_count"] == 25 and torch.equal(real, points(30)[:25])
    assert metrics["eval_emd"] == pytest.approx(earth_movers_distance(real, generated))
    assert metrics["eval_frechet_distance"] == pytest.approx(frechet_distance(3 * real[:, :1], 3 * generated[:, :1]))
    estimate = trainer.critic(real).mean() - trainer.critic(generated).mean()
    assert metrics["eval_wasserstein_estimate"] == pytest.approx(estimate.item(), rel=1e-4)
    again = trainer.evaluate()
    assert {k: v for k, v in again.items() if "per_second" not in k and "runtime" not in k} == {
        k: v for k, v in metrics.items() if "per_second" not in k and "runtime" not in k
    }


def test_model_card(tmp_path: Path) -> None:
    """The Trainer's own, which looks for a config of the model."""
    trainer = wgan_trainer(tmp_path)
    trainer.train()
    trainer.create_model_card()
    assert "learning_rate: 0.01" in (tmp_path / "README.md").read_text()


def test_violation_in_an_evaluation(tmp_path: Path) -> None:
    critic = nn.Linear(2, 1)
    critic.weight.data = torch.tensor([[3.0, 4.0]])
    trainer = wgan_trainer(tmp_path, critic=critic, eval_dataset=points(), penalty_target=1.0)
    assert trainer.evaluate()["eval_gradient_violation"] == pytest.approx(4.0, rel=1e-5)


def test_features_of_the_wrong_shape(tmp_path: Path) -> None:
    trainer = wgan_trainer(tmp_path, eval_dataset=points(), features=lambda x: x.sum())
    with pytest.raises(ValueError, match=r"features returned shape \(\)"):
        trainer.evaluate()


class Pixels(nn.Sequential):
    """From three numbers to images of 4 x 5 pixels."""

    def __init__(self, channels: int) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, channels * 20), nn.Tanh(), nn.Unflatten(1, (channels, 4, 5)))


@pytest.mark.parametrize("channels", [1, 3])
def test_grids_of_images_are_saved_and_logged(tmp_path: Path, channels: int) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    critic = nn.Sequential(nn.Flatten(), nn.Linear(20 * channels, 1))
    trainer = wgan_trainer(
        tmp_path, Pixels(channels), critic, train_dataset=torch.rand(16, channels, 4, 5), sample_steps=2,
        sample_count=5, max_steps=5, report_to="tensorboard", logging_steps=5,
    )  # fmt: skip
    trainer.train()
    result = sorted((tmp_path / "samples").iterdir())
    assert [f.name for f in result] == ["step-000002.png", "step-000004.png", "step-000005.png"]
    # 5 images of 4 x 5 pixels, each pixel magnified to 16 x 16.
    picture = torch.from_numpy(np.array(Image.open(result[-1]))).reshape(2 * 64 + 1, 3 * 80 + 2, channels)
    assert torch.equal(picture.permute(2, 0, 1), image_grid(trainer.sample(5), magnification=16))
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert [e.step for e in events.Images("samples")] == [2, 4, 5]


def test_pictures_of_points_and_of_anything_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    planar = wgan_trainer(tmp_path).save_samples()
    assert planar is not None and Image.open(planar).size == (400, 400)
    generator, critic = nn.Linear(3, 7), nn.Linear(7, 1)
    path = wgan_trainer(tmp_path / "other", generator, critic, train_dataset=torch.randn(8, 7)).save_samples()
    assert path is not None and torch.load(path).shape == (64, 7)


def test_pictures_show_real_points_and_level_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the axes that are drawn on, with the values of the critic at the raster."""
    axes = pytest.importorskip("matplotlib.axes").Axes
    drawn: dict[str, Any] = {}
    scatter, contourf = axes.scatter, axes.contourf

    def kept_scatter(self: Any, x: Any, y: Any, **options: Any) -> Any:
        drawn[options["label"]] = torch.tensor(np.stack([x, y], 1))
        return scatter(self, x, y, **options)

    def kept_contours(self: Any, x: Any, y: Any, values: Any, **options: Any) -> Any:
        drawn["levels"] = x, y, values
        return contourf(self, x, y, values, **options)

    monkeypatch.setattr(axes, "scatter", kept_scatter)
    monkeypatch.setattr(axes, "contourf", kept_contours)
    trainer = wgan_trainer(tmp_path, sample_steps=3, max_steps=3, kind=InOrder)
    trainer.train()
    assert torch.equal(drawn["real"], points()[16:24].double())
    assert torch.equal(drawn["generated"], trainer.sample(64).double())
    x, y, values = drawn["levels"]
    assert x.min() < drawn["generated"][:, 0].min() and y.max() > drawn["real"][:, 1].max()
    at = torch.tensor([[x[3], y[50]]]).float()
    assert values[50, 3] == pytest.approx(trainer.critic(at).item(), rel=1e-5)


def test_levels_of_a_grid() -> None:
    images = torch.tensor([-1.0, 0.0, 1.0, 9.0]).reshape(4, 1, 1, 1)
    assert image_grid(images).tolist() == [[[0, 0, 128], [0, 0, 0], [255, 0, 255]]]
    assert image_grid(images, 0.0, 9.0)[0, 2, 0] == 28


def test_samples_are_of_the_average_in_evaluation_mode(tmp_path: Path) -> None:
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    trainer = wgan_trainer(tmp_path, generator, tiny_critic(), ema_decay=0.9)
    trainer.train()
    first = trainer.sample(3)
    assert torch.equal(trainer.sample(10)[:3], first) and torch.equal(trainer.sample(3), first)
    assert not torch.equal(trainer.sample(3, seed=1), first)
    assert trainer.generator.training and trainer.ema_generator is not None

    latents = ItemRandomNumbers((trainer.args.seed, "samples", 0), 0, 3).normal((3, 3)).float()

    def by(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return network.eval()(latents)

    assert torch.equal(by(trainer.ema_generator), first) and not torch.equal(by(trainer.generator), first)


def test_statistics_of_the_average_are_those_of_the_generator(tmp_path: Path) -> None:
    """Averaged weights in front of stale running statistics would give samples of neither network."""
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    trainer = wgan_trainer(tmp_path, generator, tiny_critic(), ema_decay=0.9)
    start = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    trainer.train()
    assert trainer.ema_generator is not None
    averaged = dict(trainer.ema_generator.named_buffers())
    own = dict(generator.named_buffers())
    assert set(averaged) == set(own) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name, buffer in averaged.items():
        assert torch.equal(buffer, own[name]) and not torch.equal(buffer, start[name]), name
