"""kappa does not change when the network is written down differently; other measures do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.flatness.estimators.dense import dense_flatness, weight_hessian
from support.relu import relu_network, rescale_layer, rescale_neurons

INPUTS, LABELS = torch.randn(12, 3, dtype=torch.float64), torch.randint(0, 3, (12,))
ESTIMATORS = {"0": ["dense", "hessian", "gauss_newton"], "2": ["dense", "hessian", "gauss_newton"]}
CHOICES = [(layer, estimator) for layer, names in ESTIMATORS.items() for estimator in names]
CHOICES += [("6", "closed_form"), ("6", "dense"), ("6", "hessian")]


def kappa_of(model: nn.Module, layer: str, estimator: str) -> Tensor:
    flatness = RelativeFlatness(model, layer, estimator)
    flatness.seed(3)
    with flatness.capture():
        logits = model(INPUTS)
    return flatness(F.cross_entropy(logits, LABELS)).detach()


@pytest.mark.parametrize(("layer", "estimator"), CHOICES)
@pytest.mark.parametrize("where", [0, 2, 4])
def test_layer_wise_rescaling(layer: str, estimator: str, where: int) -> None:
    """For every probe, not only on average: the direction u scales with z."""
    model = relu_network()
    before = kappa_of(model, layer, estimator)
    rescale_layer(model, where, 37.0)
    torch.testing.assert_close(kappa_of(model, layer, estimator), before, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("layer", "estimator"), [choice for choice in CHOICES if choice[0] != "6"])
def test_output_neuron_rescaling(layer: str, estimator: str) -> None:
    """Of the layer's own neurons; the logits cannot be rescaled without changing the function."""
    model = relu_network()
    before = kappa_of(model, layer, estimator)
    rescale_neurons(model, int(layer), torch.logspace(-2, 2, 6, dtype=torch.float64))
    torch.testing.assert_close(kappa_of(model, layer, estimator), before, rtol=1e-6, atol=0)


def test_other_measures_do_change() -> None:
    torch.manual_seed(0)
    model = relu_network()
    moved = copy.deepcopy(model)
    rescale_neurons(moved, 2, torch.logspace(-2, 2, 6, dtype=torch.float64))

    def measures(net: nn.Sequential) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(net(INPUTS), LABELS)
        hessian = weight_hessian(loss, net[2].weight, create_graph=False)
        return torch.einsum("sisi->", hessian).detach(), dense_flatness(loss, net[2].weight).layerwise.detach()

    (trace, layerwise), (moved_trace, moved_layerwise) = measures(model), measures(moved)
    assert abs(moved_trace / trace) > 10
    assert abs(moved_layerwise / layerwise) > 10


def test_layerwise_variant_is_invariant_to_layer_wise_rescaling_only() -> None:
    model = relu_network()
    before = dense_flatness(F.cross_entropy(model(INPUTS), LABELS), model[2].weight)
    rescale_layer(model, 2, 37.0)
    after = dense_flatness(F.cross_entropy(model(INPUTS), LABELS), model[2].weight)
    for name in ("kappa", "kappa_max", "layerwise"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-6, atol=0)


def test_rotating_the_features() -> None:
    """phi -> Q phi, W -> W Q^T."""
    phi, w = torch.randn(9, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    labels = LABELS[:9]

    def kappa(phi: Tensor, w: Tensor) -> Tensor:
        w = w.clone().requires_grad_()
        return dense_flatness(F.cross_entropy(phi @ w.T, labels), w).kappa.detach()

    torch.testing.assert_close(kappa(phi @ q.T, w @ q.T), kappa(phi, w), rtol=1e-10, atol=0)
