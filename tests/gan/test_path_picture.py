"""What can be done with a path: codes at any share, pictures, animations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_fam.gan import interpolate
from hf_fam.gan.latent_path import Interpolation
from hf_fam.gan.sample_grid import image_grid

Image = pytest.importorskip("PIL.Image")


def paths(channels: int = 1, points: int = 5) -> Interpolation:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, channels * 6), nn.Tanh(), nn.Unflatten(1, (channels, 2, 3)))
    return interpolate(generator, *torch.randn(2, 2, 3), energy="pullback", points=points, steps=2)


def test_codes_at_a_share() -> None:
    found = paths()
    for number in range(5):
        assert torch.equal(found.at(number / 4), found.latents[:, number])
    torch.testing.assert_close(found.at(0.3), 0.8 * found.latents[:, 1] + 0.2 * found.latents[:, 2])
    torch.testing.assert_close(
        found.linear.at(0.9), 0.4 * found.linear.latents[:, 3] + 0.6 * found.linear.latents[:, 4]
    )


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_no_codes_beyond_the_ends(t: float) -> None:
    with pytest.raises(ValueError, match="^t=.*between 0"):
        paths().at(t)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_of_images_a_pair(tmp_path: Path, channels: int) -> None:
    found = paths(channels)
    found.plot(tmp_path / "path.png", low=-2, high=2)
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "path.png"))).reshape(5, 19, channels).permute(2, 0, 1)
    expected = ((found.samples[1, 3] + 2) / 4 * 255).round()
    assert torch.equal(picture[:, 3:5, 12:15].float(), expected)


def test_an_animation_goes_there_and_back(tmp_path: Path) -> None:
    found = paths(points=4)
    found.save_gif(tmp_path / "path.gif", seconds=0.6)
    animation = Image.open(tmp_path / "path.gif")
    assert animation.n_frames == 6 and animation.info["duration"] == 200
    for frame, number in enumerate((0, 1, 2, 3, 2, 1)):
        animation.seek(frame)
        shown = torch.from_numpy(np.array(animation.convert("L")))
        assert torch.equal(shown, image_grid(found.samples[:, number])[0])


def test_lines_in_the_plane_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ends = torch.randn(2, 2, 2)
    planar = interpolate(lambda z: z, *ends, energy="pullback", steps=1)
    planar.plot(tmp_path / "plane.png")
    assert Image.open(tmp_path / "plane.png").size == (600, 600)
    with pytest.raises(ValueError, match="make no picture. Give a generator of images"):
        planar.save_gif(tmp_path / "plane.gif")
    other = interpolate(lambda z: z.repeat(1, 3), *ends, energy="pullback", steps=1)
    with pytest.raises(ValueError, match=r"shape \(6,\) make no picture"):
        other.plot(tmp_path / "other.png")
