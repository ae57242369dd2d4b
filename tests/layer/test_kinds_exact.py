"""Every kind of layer and estimator equals the Hessian of its weight: values, and gradients to all parameters.

Random directions are replaced by a complete set of them, so that nothing is averaged: with r = e_i and a = e_j the sum
of ``u u^T`` over all i and j is its mean over all sign vectors.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.flatness.batch import Seeds
from hf_fam.flatness.coupling import Coupling
from hf_fam.flatness.directions import direction, draw
from hf_fam.layer.feature_layer import FeatureLayer
from hf_fam.layer.linear_map import LinearMap
from support.gradients import assert_same_gradients
from support.layers import (
    CONVOLUTIONS,
    KINDS,
    LayerCase,
    convolution_case,
    gauss_newton_reference,
    hessian_reference,
    kind_case,
    random_convolution,
    size_for,
)


def basis(linear_map: LinearMap, coupling: Coupling) -> list[tuple[Tensor, Tensor | None]]:
    """Pairs (r, a) whose directions' outer products add up to those of one independent matrix A a group."""
    m, groups = linear_map.in_features, linear_map.groups
    units = torch.eye(groups * m, dtype=torch.float64)
    if coupling is Coupling.ROWS:
        return [(r, None) for r in units]
    return [(units[g * m + i], units[g * m + j]) for g in range(groups) for i in range(m) for j in range(m)]


@pytest.fixture
def couplings(monkeypatch: pytest.MonkeyPatch) -> list[Coupling]:
    """Let probes run through a basis; their mean is then kappa divided by the number of probes.

    The result lists the couplings that directions were drawn for.
    """
    drawn_for: list[Coupling] = []

    def draw(
        features: Sequence[Tensor], linear_map: LinearMap, coupling: Coupling, seeds: Seeds, probe: int = 0
    ) -> list[Tensor]:
        drawn_for.append(coupling)
        r, a = basis(linear_map, coupling)[probe]
        shape = linear_map.vector_shape(features[0], an_item=coupling is Coupling.ITEMS)
        return [direction(phi, linear_map, r, a if a is None else a.expand(shape).unsqueeze(-2)) for phi in features]

    monkeypatch.setattr("hf_fam.flatness.estimators.random_probes.draw", draw)
    monkeypatch.setattr("hf_fam.flatness.estimators.perturbation.draw", draw)
    return drawn_for


def check_probes(case: LayerCase, estimator: str, couplings: list[Coupling]) -> None:
    case.use_substitute()
    directions = basis(FeatureLayer(case.model, case.name).linear_map, Coupling(case.coupling))
    flatness = RelativeFlatness(case.model, case.name, estimator, len(directions))
    with flatness.capture():
        logits, loss = case.run()
    kappa = flatness(loss) * len(directions)
    assert couplings and all(coupling == case.coupling for coupling in couplings)
    assert case.substitute is not None
    if estimator == "hessian":
        true = hessian_reference(loss, case.substitute, case.groups)
    else:
        true = gauss_newton_reference(loss, logits, case.substitute, case.groups)
    torch.testing.assert_close(kappa, true, rtol=1e-8, atol=1e-12)
    assert_same_gradients(case.model, kappa, true, rtol=1e-7)


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("tail", ["tanh", "batchnorm", "unbatched"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_probes_of_convolutions(dimensions: int, tail: str, estimator: str, couplings: list[Coupling]) -> None:
    seed = secrets.randbits(32)
    print("seed", seed)  # shown where the test fails
    check_probes(convolution_case(dimensions, tail, seed, batched=tail != "unbatched"), estimator, couplings)


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("kind", KINDS)
def test_probes_of_other_kinds(kind: str, estimator: str, couplings: list[Coupling]) -> None:
    check_probes(kind_case(kind, secrets.randbits(32)), estimator, couplings)


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_of_other_kinds(kind: str) -> None:
    case = kind_case(kind, secrets.randbits(32), head=True)
    case.use_substitute()
    flatness = RelativeFlatness(case.model)
    assert (flatness.layer.name, flatness.estimator) == (case.name, "closed_form")
    with flatness.capture():
        _, loss = case.run()
    kappa = flatness(loss)
    assert case.substitute is not None
    true = hessian_reference(loss, case.substitute)
    torch.testing.assert_close(kappa, true, rtol=1e-8, atol=1e-12)
    assert_same_gradients(case.model, kappa, true, rtol=1e-7)
    assert flatness.estimator == "closed_form"


def convolutional_head(dimensions: int, groups: int) -> LayerCase:
    """A convolution into the logits of every position, which torch wants in the second dimension."""
    seed = secrets.randbits(32)
    torch.manual_seed(seed)
    layer: Any = random_convolution(dimensions, random.Random(seed), groups)
    trunk: nn.Module = CONVOLUTIONS[dimensions](2, 2, 1)
    model = nn.Sequential(trunk, nn.Tanh(), layer).double()
    inputs = torch.randn(3, 2, *size_for(dimensions), dtype=torch.float64)
    shape = layer(inputs).shape
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    labels.view(-1)[::3] = -100
    return LayerCase(
        model,
        "2",
        inputs,
        lambda z: F.cross_entropy(z, labels),
        "rows",
        lambda x, w: layer._conv_forward(x, w.view_as(layer.weight), layer.bias),
        lambda: layer.weight.flatten(1),
        layer.groups,
    )


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_closed_form_of_convolutional_heads(dimensions: int) -> None:
    case = convolutional_head(dimensions, groups=1)
    case.use_substitute()
    flatness = RelativeFlatness(case.model)
    with flatness.capture():
        _, loss = case.run()
    kappa = flatness(loss)
    assert flatness.estimator == "closed_form"
    assert case.substitute is not None
    true = hessian_reference(loss, case.substitute)
    torch.testing.assert_close(kappa, true, rtol=1e-8, atol=1e-12)
    assert_same_gradients(case.model, kappa, true, rtol=1e-7)


def test_probes_of_uncoupled_positions(couplings: list[Coupling]) -> None:
    """Positions of a segmentation head: each has its own r, in every group."""
    for groups in (1, 2):
        check_probes(convolutional_head(2, groups=groups), "hessian", couplings)


def test_grouped_head_falls_back_to_probes() -> None:
    case = convolutional_head(2, groups=2)
    flatness = RelativeFlatness(case.model)
    with flatness.capture():
        _, loss = case.run()
    with pytest.warns(UserWarning, match="the head is a grouped convolution. Using Hessian probes"):
        flatness(loss)


@pytest.mark.parametrize("gradient", ["full", "weights_only"])
@pytest.mark.parametrize("kind", ["convolution", "conv1d"])
def test_dense_estimator(kind: str, gradient: str) -> None:
    case = kind_case(kind, 0) if kind == "conv1d" else convolution_case(2, "tanh", 0, groups=2)
    case.use_substitute()
    flatness = RelativeFlatness(case.model, case.name, "dense", gradient=gradient)
    with flatness.capture():
        _, loss = case.run()
    kappa = flatness(loss)
    assert case.substitute is not None
    true = hessian_reference(loss, case.substitute, case.groups)
    torch.testing.assert_close(kappa, true, rtol=1e-9, atol=0)
    if gradient == "full":
        assert_same_gradients(case.model, kappa, true)


@pytest.mark.usefixtures("couplings")
@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
def test_weights_only_of_a_grouped_convolution(estimator: str) -> None:
    """The same value, and a gradient that reaches W alone: term I for the Hessian."""
    case = convolution_case(2, "tanh", 0, groups=2)
    directions = basis(FeatureLayer(case.model, case.name).linear_map, Coupling(case.coupling))
    flatness = RelativeFlatness(case.model, case.name, estimator, len(directions), gradient="weights_only")
    with flatness.capture():
        logits, loss = case.run()
    kappa = flatness(loss) * len(directions)
    case.use_substitute()
    logits, loss = case.run()
    assert case.substitute is not None
    reference = hessian_reference(loss, case.substitute, case.groups)
    if estimator == "gauss_newton":
        reference = gauss_newton_reference(loss, logits, case.substitute, case.groups)
    torch.testing.assert_close(kappa, reference, rtol=1e-9, atol=0)
    reached = [
        name
        for name, parameter in case.model.named_parameters()
        for g in torch.autograd.grad(kappa, parameter, retain_graph=True, allow_unused=True)
        if g is not None and g.any()
    ]
    assert reached == ["2.weight"]


@pytest.mark.parametrize("kind", ["convolution 1", "convolution 2", "convolution 3", "lora", "conv1d", "quantized"])
def test_perturbation(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear tail and squared error: L + lambda u^T H u is the mean of +u and -u exactly; summed over a basis of u."""
    convolution, strength = kind.startswith("convolution"), 0.3
    seed = secrets.randbits(32)
    case = convolution_case(int(kind[-1]), "tanh", seed) if convolution else kind_case(kind, seed)
    case.model[3] = nn.Identity()  # type: ignore[index]
    if not convolution:
        case.model[4] = nn.Identity()  # type: ignore[index]
    case.use_substitute()
    logits, plain = case.run()
    targets = torch.randn_like(logits)
    case.loss = lambda logits: F.mse_loss(logits, targets)
    _, plain = case.run()
    assert case.substitute is not None
    true = hessian_reference(plain, case.substitute, case.groups)

    flatness = RelativeFlatness(case.model, case.name, "perturbation")
    chosen: list[Any] = []

    def draw(features: Sequence[Tensor], linear_map: LinearMap, *_: Any) -> list[Tensor]:
        sign, r, a = chosen[-1]
        return [sign * direction(phi, linear_map, r, a.unsqueeze(0)) for phi in features]

    monkeypatch.setattr("hf_fam.flatness.estimators.perturbation.draw", draw)
    total = torch.zeros((), dtype=torch.float64)
    for r, a in basis(flatness.layer.linear_map, Coupling.BATCH):
        for sign in (1, -1):
            chosen.append((sign, r, a))
            with flatness.capture(strength):
                _, loss = case.run()
            total = total + (loss - plain) / 2
    torch.testing.assert_close(total, strength * true, rtol=1e-8, atol=1e-12)
    assert_same_gradients(case.model, total, strength * true, rtol=1e-7)


class Mean(nn.Module):
    """Over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-1, -2))


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_coupling_is_found_in_half_precision(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of a large picture are coupled weakly to each other, compared with themselves."""
    couplings = []

    def recording_draw(features: Any, linear_map: Any, coupling: Coupling, *rest: Any) -> list[Tensor]:
        couplings.append(coupling)
        return draw(features, linear_map, coupling, *rest)

    monkeypatch.setattr("hf_fam.flatness.estimators.random_probes.draw", recording_draw)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GELU(),
        nn.Conv2d(4, 8, 3),
        nn.GELU(),
        Mean(),
        nn.Linear(8, 3),
    )
    inputs = torch.randn(4, 3, 20, 20)
    if how == "bfloat16":
        model, inputs = model.bfloat16(), inputs.bfloat16()
    flatness = RelativeFlatness(model, "2", "hessian")
    with flatness.capture(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        loss = F.cross_entropy(model(inputs).float(), torch.tensor([0, 1, 2, 0]))
    (loss + flatness(loss)).backward()
    assert couplings == [Coupling.ITEMS]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_reference_by_torch_func(dimensions: int) -> None:
    """These tests' own reference, and the dense estimator's Hessian, against independent software."""
    seed = secrets.randbits(32)
    print("seed", seed)  # shown where the test fails
    case = convolution_case(dimensions, "tanh", seed)
    parameters = dict(case.model.named_parameters())
    kernel = parameters["2.weight"].detach()

    def loss_of(kernel: Tensor) -> Tensor:
        return case.loss(torch.func.functional_call(case.model, {**parameters, "2.weight": kernel}, (case.inputs,)))

    d, m = len(kernel), kernel[0].numel()
    blocks = torch.func.hessian(loss_of)(kernel).view(d, m, d, m)
    rows = torch.arange(d) // (d // case.groups)
    kappa = sum(
        (kernel[s].flatten() @ kernel[t].flatten()) * blocks[s, :, t].trace()
        for s in range(d)
        for t in range(d)
        if rows[s] == rows[t]
    )
    case.use_substitute()
    _, loss = case.run()
    assert case.substitute is not None
    torch.testing.assert_close(hessian_reference(loss, case.substitute, case.groups), kappa, rtol=1e-9, atol=1e-14)
