"""The regularized-transport penalty and weight clipping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_fam.gan import clip_weights, transport_penalty


def test_transport_penalty_pair_by_pair() -> None:
    torch.manual_seed(0)  # few random critics are steeper nowhere
    critic = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    critic[3].weight.data *= 20
    real, generated = torch.randn(5, 2, 3).double(), torch.randn(3, 2, 3).double()
    plain = sum(
        (critic(x[None]) - critic(y[None]) - (x - y).norm()).clamp(min=0).pow(2).squeeze()
        for x in real
        for y in generated
    )
    expected = torch.autograd.grad(plain / 15, list(critic.parameters()), retain_graph=True, allow_unused=True)
    value = transport_penalty(critic, real, generated)
    torch.testing.assert_close(value, plain / 15)
    assert value > 0
    got = torch.autograd.grad(value, list(critic.parameters()))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_transport_penalty_of_a_lipschitz_critic_is_zero() -> None:
    real = torch.randn(20, 3).double()
    assert transport_penalty(lambda x: x[:, :1], real, real + 1e-9).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("inference", [False, True])
def test_transport_penalty_of_half_precision_samples(inference: bool) -> None:
    critic = nn.Linear(3, 1)
    with torch.inference_mode(inference):
        real, generated = torch.randn(4, 3), torch.randn(5, 3).bfloat16()
    value = transport_penalty(critic, real.bfloat16(), generated)
    torch.testing.assert_close(value, transport_penalty(critic, real.bfloat16().float(), generated.float()))
    transport_penalty(critic, real, generated).backward()


def test_transport_penalty_refuses() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(3, 4\)"):
        transport_penalty(nn.Linear(2, 1), torch.randn(3, 2), torch.randn(3, 4))
    with pytest.raises(ValueError, match="batch normalization"):
        transport_penalty(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)), torch.randn(3, 2), torch.randn(3, 2))


def test_clipping() -> None:
    critic = nn.Linear(50, 1)
    small = critic.weight.detach().abs() < 0.05
    before = critic.weight.detach().clone()
    clip_weights(critic, 0.05)
    assert critic.weight.abs().max() <= 0.05 and critic.bias.abs() <= 0.05
    assert torch.equal(critic.weight[small], before[small])
    for limit in (0.0, float("nan")):
        with pytest.raises(ValueError, match="limit="):
            clip_weights(critic, limit)
