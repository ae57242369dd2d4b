"""The loss under random feature perturbations is L + lambda kappa on average, exactly where the loss is quadratic."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.flatness.estimators.dense import dense_flatness
from hf_fam.flatness.strength import delta_of, lambda_of
from support.gradients import assert_same_gradients

FIXED = torch.Generator().manual_seed(0)
INPUTS = torch.randn(5, 3, dtype=torch.float64, generator=FIXED)
TARGETS = torch.randn(5, 2, dtype=torch.float64, generator=FIXED)


def network(*tail: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), *tail, nn.Linear(3, 2)).double()


def perturbed_loss(model: nn.Module, flatness: RelativeFlatness, strength: float) -> tuple[Tensor, Tensor]:
    with flatness.capture(strength):
        output = model(INPUTS)
    loss = F.mse_loss(output, TARGETS)
    return loss, flatness(loss)


def test_mean_over_all_signs_is_loss_plus_lambda_kappa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradient of every parameter; linear tail and squared error, so that there are no higher orders."""
    model, strength = network(), 0.3
    plain = F.mse_loss(model(INPUTS), TARGETS)
    true = plain + strength * dense_flatness(plain, model[2].weight).kappa
    signs = [torch.tensor(s, dtype=torch.float64) for s in itertools.product([-1.0, 1.0], repeat=4)]
    losses = []
    for r in signs:
        monkeypatch.setattr("hf_fam.flatness.directions._signs", lambda shape, *_, r=r: r.expand(shape))
        flatness = RelativeFlatness(model, "2", "perturbation")
        perturbed_loss(model, flatness, 0.0)  # finds that the rows are not coupled
        losses.append(perturbed_loss(model, flatness, strength)[0])
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(mean, true, rtol=1e-10, atol=0)
    assert_same_gradients(model, mean, true)


@pytest.mark.parametrize("tail", [[], [nn.BatchNorm1d(3)]], ids=["rows", "batch"])
def test_mean_over_draws_to_second_order(tail: list[nn.Module]) -> None:
    torch.manual_seed(1)
    model, strength = network(*tail, nn.Tanh()), 1e-5
    plain = F.mse_loss(model(INPUTS), TARGETS)
    kappa = dense_flatness(plain, model[2].weight).kappa.item()
    flatness = RelativeFlatness(model, "2", "perturbation")
    perturbed_loss(model, flatness, 0.0)  # finds out which rows are coupled
    draws = []
    for _ in range(300):
        loss, estimate = perturbed_loss(model, flatness, strength)
        loss.backward()
        # (L(z + v) - L) / lambda = n + kappa and the recorded estimate is n / 2 + kappa, n the first-order noise.
        draws.append(2 * estimate - (loss - plain).detach() / strength)
    draws = torch.stack(draws)
    standard_error = draws.std().item() / math.sqrt(len(draws))
    assert abs(draws.mean().item() - kappa) < 5 * standard_error + 0.01 * abs(kappa)
    assert standard_error < 0.5 * abs(kappa), "not a test if it is all noise"


def test_kappa_is_recorded_in_the_backward_pass_whatever_the_scale() -> None:
    model, strength = network(), 0.01
    flatness = RelativeFlatness(model, "2", "perturbation")
    estimates = []
    for scale in (1.0, 1 / 7, 65536.0):  # accumulation, loss scaling
        flatness.seed(5)
        loss, kappa = perturbed_loss(model, flatness, strength)
        if not estimates:
            flatness.seed(5)  # the first pass did not know the coupling yet
            loss, kappa = perturbed_loss(model, flatness, strength)
        assert kappa == 0
        (scale * loss).backward()
        estimates.append(kappa.item())
    assert estimates[0] != 0
    assert estimates == pytest.approx([estimates[0]] * 3, rel=1e-9)


def test_strength_and_delta_convert_into_each_other() -> None:
    for m, strength in ((4, 0.1), (384, 0.005), (4096, 1e-4)):
        delta = delta_of(strength, m)
        assert lambda_of(delta, m) == pytest.approx(strength, rel=1e-12)
    # An orthogonal A of scale delta moves phi by delta ||phi||; so does ours, in the mean square.
    model, strength = nn.Sequential(nn.Linear(50, 50, bias=False), nn.Linear(50, 2)), 0.02
    nn.init.eye_(model[0].weight)
    phi = torch.randn(400, 50)
    flatness = RelativeFlatness(model, "0", "perturbation")
    for _ in range(2):
        with flatness.capture(strength), torch.enable_grad():
            output = model(phi)
        flatness(output.square().mean())
    moved = []
    model[0].register_forward_hook(lambda module, args, output: moved.append(output - args[0]))
    with flatness.capture(strength):
        model(phi)
    relative = (moved[0].norm(dim=-1) / phi.norm(dim=-1)).square().mean().sqrt()
    assert relative.item() == pytest.approx(delta_of(strength, 50), rel=1e-4)


def test_an_attention_kernel_without_second_derivative_is_no_obstacle() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(x, x, x)

    model = nn.Sequential(nn.Linear(8, 8), Attention(), nn.Linear(8, 2))
    flatness = RelativeFlatness(model, "0", "perturbation")
    for _ in range(2):
        with flatness.capture(0.01):
            output = model(torch.randn(2, 1, 5, 8))
        kappa = flatness(output.square().mean())
        output.square().mean().backward()
    assert kappa.isfinite()


def test_zero_strength_and_evaluation_leave_the_pass_untouched() -> None:
    model = network(nn.Tanh())
    flatness = RelativeFlatness(model, "2", "perturbation")
    with flatness.capture(0.5):
        perturbed = model(INPUTS)
    assert not torch.equal(perturbed, model(INPUTS))
    with flatness.capture(0.0):
        assert torch.equal(model(INPUTS), model(INPUTS))
    expected = network(nn.Tanh())
    expected.load_state_dict(model.state_dict())
    assert torch.equal(model(INPUTS), expected(INPUTS))


@pytest.mark.parametrize("strength", [None, -0.1, float("nan")])
def test_a_missing_strength_is_asked_for(strength: float | None) -> None:
    flatness = RelativeFlatness(network(), "2", "perturbation")
    with pytest.raises(ValueError, match=r"capture\(strength=0.003\)"), flatness.capture(strength):
        pass
