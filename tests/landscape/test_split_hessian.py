"""B, D and the inertia of the split network's Hessian, against torch.func and loops over the definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_fam.landscape import HalfSquaredError, split_certificate
from support.splits import ACTIVATIONS, SplitCase, full_hessian, inertia, mlp, residuals_with

RATIOS = [0.5, 0.25, 1.5, -0.7, 0.8]


def random_case(number: int) -> SplitCase:
    """Shallow and deep, D = 0 and not, with and without bias, every activation; all critical points."""
    torch.manual_seed(number)
    deep, d_vanishes, bias = number % 2, number // 2 % 2, number // 4 % 2
    activation = ACTIVATIONS[number // 8]
    outputs = 1 if d_vanishes and number % 3 == 0 else 2
    sizes = (2, 3, 2, outputs) if deep else (2, 3, outputs)
    model = mlp(sizes, activation, bool(bias))
    layer, neuron = (0, 2) if number % 3 else (2 * deep, 1)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(40, 2, dtype=torch.float64)
    e = residuals_with(model, x, layer, neuron, bool(d_vanishes), number)
    return SplitCase(model, x, (model(x) - e).detach(), layer, neuron, RATIOS[number % 5])


@pytest.mark.parametrize("number", range(40))
def test_inertia_is_predicted(number: int) -> None:
    case = random_case(number)
    certificate = split_certificate(
        case.model, HalfSquaredError(), (case.x, case.y), str(case.layer), case.neuron, case.ratio
    )
    before, after = full_hessian(case.model, case.x, case.y), full_hessian(case.wide, case.x, case.y)
    block = certificate.curvature.block(case.ratio)
    predicted = tuple(sum(pair) for pair in zip(inertia(before), inertia(block), strict=True))
    assert inertia(after) == predicted
    # Not the signs alone: the congruence itself, entry by entry.
    change = case.change_of_coordinates()
    expected = torch.block_diag(before, block)
    torch.testing.assert_close(change.T @ after @ change, expected, rtol=1e-9, atol=1e-11 * after.abs().max().item())
    d_vanishes = bool(number // 2 % 2)
    assert (torch.linalg.matrix_norm(certificate.D, 2) <= certificate.errors.d) == d_vanishes
    assert certificate.relative_gradient < 1e-9
    if not d_vanishes:
        assert certificate.verdict.kind == "saddle"
    if certificate.verdict.kind == "saddle":
        assert inertia(after)[0] > 0
    if certificate.verdict.kind == "minimum":
        assert inertia(after)[0] == 0
