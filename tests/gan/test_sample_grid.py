"""Grids of many images, and images that are too small to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_fam.gan.sample_grid import image_grid, write_picture
from support.gans import wgan_trainer

Image = pytest.importorskip("PIL.Image")


def test_every_image_of_a_large_grid_is_at_its_place() -> None:
    """A thousand images, in columns that do not divide them."""
    images = torch.rand(1000, 3, 5, 4) * 2 - 1
    grid = image_grid(images, columns=37, magnification=3)
    assert grid.shape == (3, 28 * 16 - 1, 37 * 13 - 1)
    levels = ((images + 1) / 2 * 255).round().to(torch.uint8)
    for number in (0, 36, 37, 500, 999):
        top, left = number // 37 * 16, number % 37 * 13
        tile = grid[:, top : top + 15, left : left + 12]
        assert torch.equal(tile[:, ::3, ::3], levels[number]) and torch.equal(tile[:, 2::3, 1::3], levels[number])
    assert int(grid[:, -1, -1].sum()) == 0  # no image there


@pytest.mark.parametrize(("side", "shown"), [(1, 64), (28, 84), (32, 64), (63, 126), (64, 64), (100, 100)])
def test_small_images_are_magnified(tmp_path: Path, side: int, shown: int) -> None:
    path, grid = write_picture(torch.zeros(4, 1, side, side), tmp_path / "picture", -1, 1)
    assert Image.open(path).size == (2 * shown + 1, 2 * shown + 1)
    assert grid is not None and grid.shape == (1, 2 * shown + 1, 2 * shown + 1)


def test_a_large_grid_is_generated_in_parts(tmp_path: Path) -> None:
    """No more images go through the generator at once than in an evaluation."""
    generator = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    sizes: list[int] = []
    trainer = wgan_trainer(
        tmp_path, generator, critic, train_dataset=torch.zeros(8, 1, 8, 8), sample_count=400,
        per_device_eval_batch_size=50,
    )  # fmt: skip
    generator.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    picture = np.array(Image.open(str(trainer.save_samples())))
    assert sizes == [50] * 8 and picture.shape == (20 * 65 - 1, 20 * 65 - 1)
    tile = torch.from_numpy(picture[65 * 19 : 65 * 19 + 64 : 8, 65 * 19 : 65 * 19 + 64 : 8])
    torch.testing.assert_close(tile, image_grid(trainer.sample(400)[-1:])[0], rtol=0, atol=0)
