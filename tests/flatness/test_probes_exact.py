"""Probe expectations, by enumerating every sign vector: values and gradients equal the dense Hessian's."""

from __future__ import annotations

import itertools
import secrets

import pytest
import torch
from torch import Tensor

from hf_fam.flatness.coupling import Coupling, find_coupling
from hf_fam.flatness.directions import direction
from hf_fam.flatness.estimators.dense import dense_flatness
from hf_fam.flatness.estimators.gauss_newton import gauss_newton_probe
from hf_fam.flatness.estimators.hessian import hessian_probe
from hf_fam.layer.exact_norms import ExactNorms
from hf_fam.layer.feature_layer import FeatureLayer
from support.gradients import assert_gradient_by_finite_differences, assert_same_gradients
from support.tails import TAILS, Case, make


def captured(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, FeatureLayer]:
    layer, head = FeatureLayer(case.model, case.layer), FeatureLayer(case.model, "head")
    norms = ExactNorms(case.model, layer)
    norms.attach()
    with layer.capture() as of_layer, head.capture() as of_head:
        loss = case.run()
    norms.detach()
    return loss, of_layer[0].features, of_layer[0].pre_activations, of_head[0].pre_activations, layer


def all_signs(count: int) -> Tensor:
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=count)), dtype=torch.float64)


def enumerated_directions(phi: Tensor, layer: FeatureLayer, coupling: Coupling, blocks: int = 1) -> list[Tensor]:
    """Directions whose mean of ``u u^T`` is that of all sign vectors.

    Uncoupled rows: cross terms between rows vanish in the Hessian, so the rows may run through the signs together.
    Coupled rows: every matrix A, shared by all items; items that are not coupled add up without cross terms.
    """
    if coupling is Coupling.ROWS:
        return [direction(phi, layer.linear_map, r.expand_as(phi), None) for r in all_signs(phi.shape[-1])]
    return [direction(phi, layer.linear_map, r, a) for r, a in all_matrices(phi.shape[-1], blocks)]


def all_matrices(m: int, blocks: int) -> list[tuple[Tensor, Tensor]]:
    """All signs (r, a) with different matrices A; the first r of a block is 1, because (-r, -a) is the same matrix."""
    firsts = torch.arange(m) % -(-m // blocks) == 0
    return [
        (r, a.view(blocks, m)) for r in all_signs(m) if (r[firsts] == 1).all() for a in all_signs(int(firsts.sum()) * m)
    ]


@pytest.mark.parametrize("tail", TAILS)
def test_coupling_is_found(tail: str) -> None:
    case = make(tail, secrets.randbits(32))
    loss, _, z, _, _ = captured(case)
    assert find_coupling(loss, [z]).value == case.coupling


@pytest.mark.parametrize("tail", TAILS)
def test_enumerated_hessian_probes_equal_dense(tail: str) -> None:
    case = make(tail, secrets.randbits(32))
    loss, phi, z, _, layer = captured(case)
    directions = enumerated_directions(phi, layer, Coupling(case.coupling))
    kappa = sum(hessian_probe(loss, [z], [u]) for u in directions) / len(directions)
    true = dense_flatness(loss, case.layer.weight).kappa
    torch.testing.assert_close(kappa, true, rtol=1e-10, atol=1e-12)
    assert_same_gradients(case.model, kappa, true)


@pytest.mark.parametrize("tail", ["attention", "batchnorm", "multiple_choice"])
def test_enumerated_blocks_equal_dense_and_gauss_newton(tail: str) -> None:
    """Coupled rows with a matrix A of two blocks."""
    case = make(tail, secrets.randbits(32))
    loss, phi, z, logits, layer = captured(case)
    directions = enumerated_directions(phi, layer, Coupling(case.coupling), 2)
    kappa = sum(hessian_probe(loss, [z], [u]) for u in directions) / len(directions)
    true = dense_flatness(loss, case.layer.weight).kappa
    torch.testing.assert_close(kappa, true, rtol=1e-10, atol=1e-12)
    assert_same_gradients(case.model, kappa, true)
    kappa = sum(gauss_newton_probe(loss, [z], [logits], [u]) for u in directions) / len(directions)
    true = gauss_newton_reference(case)
    torch.testing.assert_close(kappa, true, rtol=1e-10, atol=1e-12)
    assert_same_gradients(case.model, kappa, true)


@pytest.mark.parametrize("tail", TAILS)
def test_weights_only_is_term_one(tail: str) -> None:
    """Same value; the gradient is that of <W W^T, Tr H> with H constant, and reaches W alone."""
    case = make(tail, secrets.randbits(32))
    loss, phi, z, logits, layer = captured(case)
    directions = enumerated_directions(phi.detach(), layer, Coupling(case.coupling))
    true = dense_flatness(loss, case.layer.weight, weights_only=True).kappa
    kappa = sum(hessian_probe(loss, [z], [u], weights_only=True) for u in directions) / len(directions)
    torch.testing.assert_close(kappa, true, rtol=1e-10, atol=1e-12)
    assert_same_gradients(case.model, kappa, true)
    others = [p for p in case.model.parameters() if p is not case.layer.weight]
    found = torch.autograd.grad(kappa, others, allow_unused=True, retain_graph=True)
    assert all(g is None or not g.any() for g in found)
    newton = gauss_newton_probe(loss, [z], [logits], [directions[0]], weights_only=True)
    full = gauss_newton_probe(loss, [z], [logits], [directions[0].detach()])
    torch.testing.assert_close(newton, full, rtol=1e-10, atol=1e-12)


def gauss_newton_traces(case: Case) -> Tensor:
    """``Tr G_{s,t}`` of the Gauss-Newton matrix of W, from its definition: Jacobians of the logits by torch.func."""
    if isinstance(case.model[3], torch.nn.BatchNorm1d):  # torch.func refuses to update running statistics in place
        case.model[3].track_running_stats, case.model[3].num_batches_tracked = False, None
        case.model[3].running_mean = case.model[3].running_var = None
    parameters = dict(case.model.named_parameters())
    name = next(n for n, p in parameters.items() if p is case.layer.weight)

    def logits_of(weight: Tensor) -> Tensor:
        return torch.func.functional_call(case.model, {**parameters, name: weight}, (case.inputs,)).reshape(-1)

    shape = case.model(case.inputs).shape
    jacobian = torch.func.jacrev(logits_of)(case.layer.weight)  # (N, d, m)
    outer = torch.func.hessian(lambda y: case.loss(y.view(shape)))(logits_of(case.layer.weight))
    return torch.einsum("ksi,kl,lti->st", jacobian, outer, jacobian)


def gauss_newton_reference(case: Case) -> Tensor:
    """kappa with the Gauss-Newton matrix of W."""
    return ((case.layer.weight @ case.layer.weight.T) * gauss_newton_traces(case)).sum()


@pytest.mark.parametrize("tail", TAILS)
def test_enumerated_gauss_newton_probes_equal_definition(tail: str) -> None:
    case = make(tail, secrets.randbits(32))
    loss, phi, z, logits, layer = captured(case)
    directions = enumerated_directions(phi, layer, Coupling(case.coupling))
    probes = [gauss_newton_probe(loss, [z], [logits], [u]) for u in directions]
    assert all(p >= 0 for p in probes)
    true = gauss_newton_reference(case)
    kappa = sum(probes) / len(probes)
    torch.testing.assert_close(kappa, true, rtol=1e-10, atol=1e-12)
    assert_same_gradients(case.model, kappa, true)


@pytest.mark.parametrize("tail", TAILS)
def test_gauss_newton_with_weights_only_is_term_one(tail: str) -> None:
    """The gradient is that of <W W^T, Tr G> with G constant, and reaches W alone."""
    case = make(tail, secrets.randbits(32))
    loss, phi, z, logits, layer = captured(case)
    directions = enumerated_directions(phi.detach(), layer, Coupling(case.coupling))
    probes = [gauss_newton_probe(loss, [z], [logits], [u], weights_only=True) for u in directions]
    kappa, traces, weight = sum(probes) / len(probes), gauss_newton_traces(case).detach(), case.layer.weight
    torch.testing.assert_close(kappa, ((weight @ weight.T) * traces).sum(), rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(kappa, list(case.model.parameters()), allow_unused=True)
    for gradient, parameter in zip(found, case.model.parameters(), strict=True):
        if parameter is weight:
            torch.testing.assert_close(gradient, 2 * traces @ weight, rtol=1e-10, atol=1e-12)
        else:
            assert gradient is None or not gradient.any()


def test_wrong_sharing_is_biased() -> None:
    """Why coupling is looked for: independent perturbations of coupled rows miss the cross terms."""
    for tail in ("attention", "batchnorm", "multiple_choice"):
        case = make(tail, 0)
        loss, phi, z, _, layer = captured(case)
        directions = enumerated_directions(phi, layer, Coupling.ROWS)
        independent = 0.0
        for row in range(z[..., 0].numel()):  # each row alone: no cross terms, as with independent draws
            mask = torch.zeros(z[..., 0].numel(), dtype=torch.float64)
            mask[row] = 1
            mask = mask.view(*z.shape[:-1], 1)
            independent += sum(hessian_probe(loss, [z], [u * mask]) for u in directions) / len(directions)
        true = dense_flatness(loss, case.layer.weight).kappa
        assert abs(independent - true) > 1e-3 * abs(true), tail


@pytest.mark.parametrize("tail", TAILS)
def test_gradients_by_finite_differences(tail: str) -> None:
    """Autograd against autograd cannot see that fused normalizations have wrong third derivatives; this can."""
    case = make(tail, 0)
    _, phi, *_ = captured(case)
    r = all_signs(phi.shape[-1])[5]

    def hessian() -> Tensor:
        loss, phi, z, _, layer = captured(case)
        return hessian_probe(loss, [z], [direction(phi, layer.linear_map, r, None)])

    def gauss_newton() -> Tensor:
        loss, phi, z, logits, layer = captured(case)
        return gauss_newton_probe(loss, [z], [logits], [direction(phi, layer.linear_map, r, r.unsqueeze(0))])

    assert_gradient_by_finite_differences(case.model, hessian)
    assert_gradient_by_finite_differences(case.model, gauss_newton)
