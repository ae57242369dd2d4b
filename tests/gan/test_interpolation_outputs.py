"""interpolate with the generators and scorers of other libraries."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hf_fam.gan import interpolate

QUICK = {"steps": 3, "calibration": 64}


def score(x: Tensor) -> Tensor:
    return -x.flatten(1).square().sum(1)


def test_objects_with_sample_and_with_logits() -> None:
    make = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    z0, z1 = torch.randn(2, 4).double(), torch.randn(2, 4).double()
    plain = interpolate(make, z0, z1, scorer=score, **QUICK)
    wrapped = interpolate(
        lambda z: SimpleNamespace(sample=make(z)),
        z0,
        z1,
        scorer=lambda x: SimpleNamespace(logits=score(x)[:, None]),
        **QUICK,
    )
    assert torch.equal(plain.samples, wrapped.samples) and torch.equal(plain.scores, wrapped.scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autoencoder_of_diffusers(dtype: torch.dtype) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).to(dtype)
    z0, z1 = torch.randn(2, 2, 2, 4, 4).to(dtype)
    result = interpolate(
        vae.decode, z0, z1, scorer=score, points=5, steps=10, learning_rate=0.02, calibration=64, chunk_size=4
    )
    assert result.samples.shape == (2, 5, 3, 8, 8) and result.samples.dtype == dtype
    assert torch.equal(result.latents[:, 0], z0) and torch.equal(result.latents[:, -1], z1)
    assert (result.energy < result.start_energy).all()
    torch.testing.assert_close(result.samples[0], vae.eval().decode(result.latents[0]).sample, rtol=0.02, atol=0.02)
    assert all(p.grad is None for p in vae.parameters())


def test_classifier_of_transformers_as_scorer() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=1, **sizes)
    vit = transformers.ViTForImageClassification(config)
    make = nn.Sequential(nn.Linear(4, 192), nn.Unflatten(1, (3, 8, 8)))
    result = interpolate(make, torch.randn(2, 4), torch.randn(2, 4), scorer=vit, **QUICK)
    torch.testing.assert_close(result.scores[0], vit.eval()(result.samples[0]).logits[:, 0].detach())
