"""Third derivatives of torch's operations against finite differences: all that are wrong are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from hf_fam import RelativeFlatness
from hf_fam.calculus.autograd_graph import TailGraph
from hf_fam.calculus.third_derivatives import WrongThirdDerivativeError, refuse_wrong_third_derivatives

# Functions of symmetric matrices, which read one triangle: a difference in a direction that is not symmetric means
# nothing. The subgradient of a norm at zero is no derivative.
NOT_COMPARABLE = {
    "cholesky", "cholesky_inverse", "linalg.cholesky", "linalg.cholesky_ex", "linalg.eigh", "linalg.eigvalsh",
    "linalg.pinv.hermitian", "linalg.norm.subgradients_at_zero",
}  # fmt: skip
STEP = 1e-4
SAMPLES = 6


def test_a_ranking_loss_is_refused() -> None:
    """CoSENT: every gradient would be NaN after the first step."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    for layer in ("0", "2"):
        flatness = RelativeFlatness(model, layer, "hessian")
        with flatness.capture():
            scores = model(torch.randn(8, 4).double()).sum(-1)
        loss = torch.logcumsumexp((scores[:, None] - scores[None, :]).flatten(), 0)[-1]
        with pytest.raises(WrongThirdDerivativeError, match='Logcumsumexp.*estimator="perturbation"'):
            flatness(loss)


def test_a_loss_without_such_operations_is_not_refused() -> None:
    z = torch.randn(3, 4, requires_grad=True) * 1
    refuse_wrong_third_derivatives(TailGraph(F.gelu(z).logsumexp(-1).sum(), [z]))


def scalar(operation: Any, sample: Any, x: Tensor) -> Tensor | None:
    """A fixed combination of all outputs."""
    torch.manual_seed(0)
    outputs = tree_flatten(operation(x, *sample.args, **sample.kwargs))[0]
    generator = torch.Generator().manual_seed(1)
    terms = [
        (y * torch.rand(y.shape, generator=generator, dtype=y.dtype)).sum()
        for y in outputs
        if isinstance(y, Tensor) and y.is_floating_point() and y.requires_grad
    ]
    return torch.stack(terms).sum() if terms else None


def curvature(y: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """``v^T H v``, in the graph."""
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    if not first.requires_grad:
        return y.new_zeros(())
    (product,) = torch.autograd.grad((first * v).sum(), x, create_graph=True, allow_unused=True)
    return y.new_zeros(()) if product is None else (product * v).sum()


def is_wrong(operation: Any, sample: Any) -> bool:
    """Whether the derivative of ``v^T H v`` is not the one that differences of it show, and no name is refused."""
    x = sample.input.detach()
    generator = torch.Generator().manual_seed(0)
    v, u = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))

    def at(point: Tensor) -> tuple[Tensor, Tensor] | None:
        point = point.detach().requires_grad_()
        y = scalar(operation, sample, point)
        return None if y is None else (curvature(y, point, v), point)

    here = at(x)
    if here is None:
        return False
    value, point = here
    slope = 0.0
    if value.requires_grad:
        (third,) = torch.autograd.grad(value, point, allow_unused=True)
        slope = 0.0 if third is None else float((third * u).sum())
    differences = []
    for step in (STEP, STEP / 2):
        ends = [at(x + sign * step * u) for sign in (1, -1)]
        assert ends[0] is not None and ends[1] is not None
        differences.append(float(ends[0][0].detach() - ends[1][0].detach()) / (2 * step))
    allowed = 1e-3 * max(1.0, abs(differences[0]))
    if not all(map(math.isfinite, differences)) or abs(differences[0] - differences[1]) > allowed:
        return False  # not differentiable three times here
    return not abs(slope - differences[0]) <= allowed


def is_refused(operation: Any, sample: Any) -> bool:
    z = sample.input.detach().requires_grad_() * 1
    y = scalar(operation, sample, z)
    assert y is not None
    try:
        refuse_wrong_third_derivatives(TailGraph(y, [z]))
    except WrongThirdDerivativeError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_operation_of_torch_is_right_or_refused() -> None:
    pytest.importorskip("expecttest")  # which torch's list of operations needs
    from torch.testing._internal.common_methods_invocations import op_db

    wrong, refused, compared = set(), set(), set()
    for operation in op_db:
        name = ".".join(filter(None, (operation.name, operation.variant_test_name)))
        double = torch.float64 in operation.supported_backward_dtypes("cpu")
        if not (operation.supports_autograd and double) or name in NOT_COMPARABLE:
            continue
        samples = [
            sample
            for sample in operation.sample_inputs("cpu", torch.float64, requires_grad=True)
            if isinstance(sample.input, Tensor) and 0 < sample.input.numel() <= 2000 and sample.input.requires_grad
        ]
        for sample in samples[:SAMPLES]:
            try:
                if is_wrong(operation, sample):
                    (refused if is_refused(operation, sample) else wrong).add(name)
                compared.add(name)
            except (RuntimeError, NotImplementedError):  # torch says itself that it has no such derivative
                break
    print(f"{len(compared)} operations compared; wrong and refused: {', '.join(sorted(refused))}")
    assert len(compared) > 400
    assert {"logcumsumexp", "special.i1", "nn.functional.layer_norm", "nn.functional.batch_norm"} <= refused
    assert wrong == set()
