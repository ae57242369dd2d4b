"""Normalizations above the feature layer: the same values, and third derivatives that are right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.calculus.autograd_graph import TailGraph
from hf_fam.calculus.third_derivatives import WrongThirdDerivativeError
from hf_fam.layer import exact_norms
from support.gradients import assert_gradient_by_finite_differences


class OlmoLikeNorm(nn.Module):
    """OLMo's: no nn.LayerNorm, but a call of torch's function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (4,))


NORMS = {
    "LayerNorm": lambda: nn.LayerNorm(4),
    "LayerNorm without weights": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "BatchNorm1d without statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "GroupNorm": lambda: nn.GroupNorm(1, 4),  # whose third derivative is right in torch itself
    "GroupNorm of two groups": lambda: nn.GroupNorm(2, 4),
    "a norm of another class": lambda: OlmoLikeNorm(),
}


def model_with(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), norm, nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton", "dense"])
def test_gradient_of_kappa_by_finite_differences(norm: str, estimator: str) -> None:
    torch.manual_seed(0)
    model, inputs, labels = model_with(NORMS[norm]()), torch.randn(7, 3).double(), torch.randint(0, 3, (7,))
    flatness = RelativeFlatness(model, "2", estimator)

    def kappa() -> Tensor:
        flatness.seed(1)
        with flatness.capture():
            logits = model(inputs)
        return flatness(F.cross_entropy(logits, labels))

    assert_gradient_by_finite_differences(model, kappa)


@pytest.mark.parametrize(
    ("fused", "elementary", "shape", "extra"),
    [
        (F.layer_norm, exact_norms.layer_norm, (3, 5, 6), [(6,), torch.randn(6), torch.randn(6)]),
        (F.layer_norm, exact_norms.layer_norm, (3, 5, 6), [(5, 6)]),
        (F.rms_norm, exact_norms.rms_norm, (3, 5, 6), [(6,), torch.randn(6)]),
        (F.batch_norm, exact_norms.batch_norm, (8, 6), [None, None, torch.randn(6), torch.randn(6), True]),
        (F.batch_norm, exact_norms.batch_norm, (4, 6, 3, 3), [None, None, torch.randn(6), None, True]),
        (F.instance_norm, exact_norms.instance_norm, (4, 6, 5), [None, None, torch.randn(6), torch.randn(6)]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_torch_s(fused, elementary, shape, extra, dtype) -> None:
    x = torch.randn(shape, dtype=dtype) * 3 + 1
    extra = [e.to(dtype) if isinstance(e, Tensor) else e for e in extra]
    expected, actual = fused(x, *extra), elementary(x, *extra)
    assert actual.dtype == expected.dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_running_statistics_are_updated_once() -> None:
    ours, theirs = model_with(nn.BatchNorm1d(4)), model_with(nn.BatchNorm1d(4))
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(7, 3).double()
    flatness = RelativeFlatness(ours, "2")
    with flatness.capture():
        ours(inputs)
    theirs(inputs)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer)


def test_layer_norm_called_as_a_function_is_refused() -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, (4,))

    model = model_with(Functional())
    flatness = RelativeFlatness(model, "2")
    with flatness.capture():
        logits = model(torch.randn(7, 3).double())
    with pytest.raises(WrongThirdDerivativeError, match='NativeLayerNormBackward.*"perturbation"'):
        flatness(F.cross_entropy(logits, torch.zeros(7, dtype=torch.long)))


def test_norms_that_do_not_matter_are_left_alone() -> None:
    """Below the layer, beside it, with frozen statistics, and for the head's closed form."""
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    model[2].eval()
    flatness = RelativeFlatness(model, "1")
    with flatness.capture():
        logits = model(torch.randn(7, 3))
    graph = TailGraph(logits.sum(), [torch.zeros(1, requires_grad=True) * 1])
    assert not graph.nodes and not graph.is_reached  # nothing leads to a tensor that is not in the graph
    flatness(F.cross_entropy(logits, torch.zeros(7, dtype=torch.long))).backward()


def test_hooks_leave_no_mode_behind_after_an_error() -> None:
    class Fails(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("on purpose")

    model = model_with(Fails(4))
    flatness = RelativeFlatness(model, "2")
    with pytest.raises(RuntimeError, match="on purpose"), flatness.capture():
        model(torch.randn(7, 3).double())
    assert torch.overrides._len_torch_function_stack() == 0
