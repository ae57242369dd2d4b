"""gradient_penalty: values and gradients against plain references, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hf_fam.gan import gradient_norms, gradient_penalty
from hf_fam.gan.safe_norm import row_norms

SIDES = ("one", "two", "zero")


def mlp(inputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 1)).double()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("length", [0.5, 3.0])
def test_linear_critic_is_exact(side: str, length: float) -> None:
    critic = nn.Linear(4, 1).double()
    critic.weight.data *= length / critic.weight.data.norm()
    w = critic.weight.detach().clone()
    value = gradient_penalty(critic, torch.randn(6, 4).double(), side=side)
    value.backward()
    excess = {"one": max(0.0, length - 1), "two": length - 1, "zero": length}[side]
    assert value.item() == pytest.approx(excess**2, rel=1e-12, abs=1e-14)
    torch.testing.assert_close(critic.weight.grad, 2 * excess * w / length)
    assert critic.bias.grad is None or not critic.bias.grad.any()


@pytest.mark.parametrize("side", SIDES)
def test_second_derivative_against_finite_differences(side: str) -> None:
    torch.manual_seed(1)
    critic, points = mlp(), torch.randn(4, 3).double()
    critic[0].weight.data *= 3
    names = [name for name, _ in critic.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())

    target = 1.0 if side == "zero" else 0.3

    def penalty(*parameters: Tensor) -> Tensor:
        these = dict(zip(names, parameters, strict=True))
        return gradient_penalty(lambda x: functional_call(critic, these, (x,)), points, side=side, target=target)

    assert penalty(*values) > 0
    assert torch.autograd.gradcheck(penalty, values)
    assert torch.autograd.gradgradcheck(penalty, values)


def test_points_may_come_from_inference_mode() -> None:
    critic = mlp()
    with torch.inference_mode():
        points = torch.randn(4, 3).double()
    torch.testing.assert_close(gradient_norms(critic, points), gradient_norms(critic, points.clone()))


@pytest.mark.parametrize("side", SIDES)
def test_against_torch_func(side: str) -> None:
    """Each sample on its own, over all of its dimensions."""
    critic = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Softplus(), nn.Flatten(), nn.Linear(12, 1)).double()
    critic[0].weight.data *= 4
    points = torch.randn(5, 2, 3, 3).double()
    names, values = zip(*critic.named_parameters(), strict=True)

    def reference(parameters: tuple[Tensor, ...]) -> Tensor:
        one = lambda x: functional_call(critic, dict(zip(names, parameters, strict=True)), (x[None],)).squeeze()  # noqa: E731
        norms = vmap(grad(one))(points).flatten(1).norm(dim=1)
        excess = {"one": (norms - 1).clamp(min=0), "two": norms - 1, "zero": norms}[side]
        return excess.pow(2).mean()

    expected = torch.autograd.grad(reference(values), values, allow_unused=True)
    got = torch.autograd.grad(gradient_penalty(critic, points, side=side), values, allow_unused=True)
    torch.testing.assert_close(gradient_penalty(critic, points, side=side), reference(values))
    for one, other, value in zip(got, expected, values, strict=True):
        zeros = torch.zeros_like(value)
        torch.testing.assert_close(zeros if one is None else one, zeros if other is None else other)


@pytest.mark.parametrize("side", SIDES)
def test_zero_gradient_is_safe(side: str) -> None:
    """The gradient of |x|^2 is 0 at 0, and the derivative of a norm is infinite there if it is taken plainly."""
    scale = torch.tensor(2.0, requires_grad=True)
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    value = gradient_penalty(lambda x: scale * x.square().sum(1) / 2, points, side=side)
    (slope,) = torch.autograd.grad(value, scale, create_graph=True)
    (second,) = torch.autograd.grad(slope, scale)
    # g = (0, 10) with dg/dscale = (0, 5): the mean of the two samples' 2 (g - c) dg.
    center = 0 if side == "zero" else 1
    assert slope.item() == pytest.approx((10 - center) * 5)
    assert second.item() == pytest.approx(25)


def test_row_norms_keep_their_range() -> None:
    rows = torch.tensor([[3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]], requires_grad=True)
    norms = row_norms(rows)
    norms.sum().backward()
    torch.testing.assert_close(norms, torch.tensor([5e30, 5e-30, 0.0]))
    torch.testing.assert_close(rows.grad, torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize("extreme", [0.0, 1e-30, 1e-7, 1e7, 1e30])
def test_a_row_of_another_size_does_not_change_the_other_norms(extreme: float) -> None:
    """Without one, fewer operations are taken; values, first and second derivatives are those in longer precision."""

    def derivatives(rows: torch.Tensor, norm_of: Any) -> list[torch.Tensor]:
        rows = rows.clone().requires_grad_()
        norms = norm_of(rows)
        (first,) = torch.autograd.grad(norms[:7].square().sum() + norms.sum(), rows, create_graph=True)
        (second,) = torch.autograd.grad((first[:7] * rows[:7].detach().sin()).sum(), rows)
        return [t.detach()[:7] for t in (norms, first, second)]

    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        rows = torch.randn(7, 5, dtype=dtype)
        wide = derivatives(rows.double(), lambda x: x.square().sum(1).sqrt())
        with_another = torch.cat([rows, extreme * torch.randn(1, 5, dtype=dtype)])
        for given in (rows, with_another):
            for result, expected in zip(derivatives(given, row_norms), wide, strict=True):
                torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
        own = row_norms(with_another)[7].double()
        torch.testing.assert_close(own, with_another[7].double().norm(), rtol=tolerance, atol=0)


def test_inside_autocast_it_is_float32() -> None:
    critic, points = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)), 3 * torch.randn(16, 8)
    critic[0].weight.data *= 5
    plain = gradient_penalty(critic, points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradient_penalty(critic, points)
        assert critic(points).dtype == torch.bfloat16  # autocast itself was on
    assert inside.dtype == torch.float32 and torch.equal(inside, plain)
    assert gradient_penalty(critic, points.bfloat16()).dtype == torch.float32


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerator")
def test_autocast_that_accelerate_patched_in_is_left_out() -> None:

    critic, points = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)), 3 * torch.randn(16, 8)
    critic[0].weight.data *= 5
    plain = gradient_penalty(critic, points)
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(critic)
    patched = prepared.forward
    assert torch.equal(gradient_penalty(prepared, points), plain)
    assert prepared.forward == patched
    assert not torch.equal(prepared(points), prepared._original_forward(points))  # the patch rounds


def test_evaluation_needs_no_graph() -> None:
    critic, points = mlp(), torch.randn(4, 3).double()
    with torch.no_grad():
        value = gradient_penalty(critic, points)
    assert not value.requires_grad
    torch.testing.assert_close(value, gradient_penalty(critic, points).detach())
    assert all(p.grad is None for p in critic.parameters())


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match=r"use torch\.no_grad\(\)"):
        gradient_penalty(nn.Linear(3, 1), torch.randn(4, 3))


def test_nothing_flows_into_the_points() -> None:
    generator, critic = nn.Linear(3, 3).double(), mlp()
    gradient_penalty(critic, generator(torch.randn(4, 3).double()), side="two").backward()
    assert generator.weight.grad is None and critic[0].weight.grad is not None


def test_attention_is_differentiated_twice() -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.attention(x, x, x, need_weights=False)[0]).mean(1)

    critic = Critic()
    gradient_penalty(critic, torch.randn(2, 5, 4), side="two").backward()
    assert critic.attention.in_proj_weight.grad.any()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(5), nn.BatchNorm1d(5, track_running_stats=False).eval()])
def test_batch_normalisation_is_refused(norm: nn.Module) -> None:
    critic = nn.Sequential(nn.Linear(3, 5), norm, nn.Linear(5, 1))
    with pytest.raises(ValueError, match=r"'1' is batch normalization .* depend on the other samples"):
        gradient_penalty(critic, torch.randn(4, 3))


def test_normalisation_of_single_samples_is_not() -> None:
    fixed = nn.BatchNorm1d(5).eval()  # by its running statistics: a constant map
    for norm in (fixed, nn.LayerNorm(5), nn.GroupNorm(5, 5)):
        gradient_penalty(nn.Sequential(nn.Linear(3, 5), norm, nn.Linear(5, 1)), torch.randn(4, 3)).backward()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"side": "both"}, "side='both'"),
        ({"target": 0.0}, "target=0.0"),
        ({"target": float("nan")}, "target=nan"),
        ({"side": "zero", "target": 2.0}, "does not apply"),
        ({"points": torch.ones(4, 3, dtype=torch.long)}, "torch.int64"),
        ({"points": torch.ones(3)}, r"\(n, 1\)"),
        ({"points": torch.ones(0, 3)}, "at least one"),
        ({"critic": nn.Linear(3, 2)}, r"shape \(4, 2\) for 4 samples"),
        ({"critic": lambda x: x.sum()}, r"shape \(\) for 4 samples"),
        ({"critic": lambda x: (x, x)}, "type tuple"),
        ({"critic": lambda x: x.detach().sum(1)}, "does not depend on the points"),
        ({"critic": lambda x: torch.ones(len(x), requires_grad=True)}, "does not depend on the points"),
    ],
)
def test_what_is_refused(arguments: dict[str, object], said: str) -> None:
    given = {"critic": nn.Linear(3, 1), "points": torch.randn(4, 3), **arguments}
    with pytest.raises(ValueError, match=said):
        gradient_penalty(given.pop("critic"), given.pop("points"), **given)
