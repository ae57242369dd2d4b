"""What RelativeFlatness does for a model that FSDP shards, without processes; they run in tests/distributed."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_fam import RelativeFlatness, attach
from hf_fam.flatness.estimators import ActsIn

DRAW = torch.Generator().manual_seed(1)


def network(classes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes)).double()


def reference(phi: Tensor, z: Tensor, weight: Tensor, c: float, smoothing: float) -> Tensor:
    """``sum_i c ||phi_i||^2 Var_q(w)`` from its definition, in float64."""
    q = (1 - smoothing) * z.softmax(-1) + smoothing / z.shape[-1]
    deviations = weight.unsqueeze(0) - (q @ weight).unsqueeze(1)
    return c * (phi.square().sum(-1) * (q * deviations.square().sum(-1)).sum(-1)).sum()


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("center", [False, True])
def test_head_of_any_size_in_the_backward_pass(classes: int, smoothing: float, center: bool) -> None:
    """Gradients of all weights and kappa itself are those of the formula."""
    model, strength = network(classes), 0.7
    x = torch.randn(9, 4, dtype=torch.float64, generator=DRAW)
    y = torch.randint(classes, (9,), generator=DRAW)
    expected = copy.deepcopy(model)
    flatness = RelativeFlatness(model, center=center, smoothing=smoothing)
    flatness.adapt_to_sharding()
    assert flatness.method.acts_in is ActsIn.BACKWARD_PASS
    if center:  # the first batch shows the mean
        with flatness.capture(strength):
            loss = nn.functional.cross_entropy(model(x + 1), y)
        flatness(loss)
    with flatness.capture(strength):
        loss = nn.functional.cross_entropy(model(x), y)
    kappa = flatness(loss)
    (3 * (loss + strength * kappa)).backward()

    phi = expected[:2](x)
    z = expected[2](phi)
    mean = expected[:2](x + 1).mean(0).detach() if center else 0.0
    kappa_of_formula = reference(phi - mean, z, expected[2].weight, 1 / 9, smoothing)
    (3 * (nn.functional.cross_entropy(z, y) + strength * kappa_of_formula)).backward()
    torch.testing.assert_close(kappa, kappa_of_formula.detach(), rtol=1e-10, atol=0.0)
    for p, e in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, e.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_attach_with_two_classes(seed: int) -> None:
    """The gradient is (a, -a) for both signs of the weights; rounding must not choose one."""
    model = network(2)
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(9, 4, dtype=torch.float64, generator=draw), torch.randint(2, (9,), generator=draw)
    attached = attach(model, 0.7)
    nn.functional.cross_entropy(model(x), y).backward()
    phi = model[:2](x).detach()
    expected = reference(phi, model.eval()(x).detach(), model[2].weight.detach(), 1 / 9, 0.0)
    assert attached.kappa() == pytest.approx(float(expected), rel=1e-10)


class Partitioned:
    """A stand-in for DeepSpeed ZeRO stage 3: a weight is empty but in the forward and backward pass of its layer.

    The real one runs in tests/distributed/test_deepspeed.py, where it is installed.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.weights = [*layer.parameters()]
        self.whole = [weight.data for weight in self.weights]
        for number, weight in enumerate(self.weights):
            weight.ds_id = number  # type: ignore[attr-defined]
        partition = self

        class PreBackwardFunctionForModule(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, output: Tensor) -> Tensor:
                return output.detach()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                partition.gather()
                return gradient

        class PostBackwardFunctionModule(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, features: Tensor) -> Tensor:
                return features.detach()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                partition.free()
                return gradient

        def before(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            self.gather()
            return (PostBackwardFunctionModule.apply(*args),)

        def after(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            self.free()
            return PreBackwardFunctionForModule.apply(output)

        self.free()
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)

    def gather(self) -> None:
        for weight, whole in zip(self.weights, self.whole, strict=True):
            weight.data = whole

    def free(self) -> None:
        for weight in self.weights:
            weight.data = torch.empty(0, dtype=weight.dtype)


@pytest.mark.parametrize("layer", ["head", "0"])
def test_weights_that_are_empty_between_the_passes(layer: str) -> None:
    """Gradients are those of whole weights: the term sees a weight while its layer has it, never an empty one."""
    expected, strength = network(5), 0.3
    model = copy.deepcopy(expected)
    x, y = torch.randn(9, 4, dtype=torch.float64, generator=DRAW), torch.randint(5, (9,), generator=DRAW)
    parts = [Partitioned(part) for part in model if isinstance(part, nn.Linear)]
    for each in (model, expected):
        flatness = RelativeFlatness(each, layer)
        flatness.adapt_to_sharding()  # which a partitioned model needs not be told
        assert flatness.is_sharded
        flatness.seed(5)
        with flatness.capture(strength):
            loss = nn.functional.cross_entropy(each(x), y)
        flatness(loss)
        loss.backward()
        flatness.detach()
    assert flatness.estimator == ("closed_form" if layer == "head" else "perturbation")
    for part in parts:
        part.gather()
    for p, e in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, e.grad, rtol=1e-12, atol=1e-15)


def test_a_partitioned_model_is_noticed() -> None:
    model = network(5)
    Partitioned(model[2])
    assert RelativeFlatness(model).is_sharded and RelativeFlatness(model, "0").estimator == "perturbation"


def test_an_empty_weight_is_refused() -> None:
    """Of a part that is gathered on its own, as those of a layer with an adapter."""
    model = network(5)
    partition, flatness = Partitioned(model[2]), RelativeFlatness(model)
    original = model[2].forward

    def freed(features: Tensor) -> Tensor:
        output = original(features)
        partition.free()
        return output

    model[2].forward = freed
    with pytest.raises(ValueError, match="the weight of layer '2' is split between processes"), flatness.capture(0.1):
        model(torch.randn(3, 4, dtype=torch.float64))


def test_a_hidden_layer_is_perturbed_by_default() -> None:
    flatness = RelativeFlatness(network(3), "0")
    assert flatness.estimator == "gauss_newton"
    flatness.adapt_to_sharding()
    assert flatness.estimator == "perturbation"


@pytest.mark.parametrize("estimator", ["gauss_newton", "hessian", "dense"])
def test_what_differentiates_the_loss_is_refused(estimator: str) -> None:
    flatness = RelativeFlatness(network(3), "0", estimator)
    with pytest.raises(ValueError, match=f'estimator="{estimator}" does not work.*"perturbation" for any layer'):
        flatness.adapt_to_sharding()


def test_a_strength_is_needed() -> None:
    flatness = RelativeFlatness(network(3))
    flatness.adapt_to_sharding()
    with pytest.raises(ValueError, match=r"capture\(strength=0.003\)"), flatness.capture():
        pass


def test_a_loss_that_is_not_proven_perturbs_from_the_next_batch() -> None:
    """The batch that showed it has no term, not a wrong one."""
    model, x, y = network(3), torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    plain = copy.deepcopy(model)
    nn.functional.cross_entropy(plain(x), y, label_smoothing=0.1).backward()
    flatness = RelativeFlatness(model)
    flatness.adapt_to_sharding()
    with pytest.warns(UserWarning, match="Perturbing the features instead"):
        with flatness.capture(0.5):
            loss = nn.functional.cross_entropy(model(x), y, label_smoothing=0.1)
        (loss + flatness(loss)).backward()
    for p, e in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, e.grad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with flatness.capture(0.5):
            loss = nn.functional.cross_entropy(model(x), y, label_smoothing=0.1)
        kappa = flatness(loss)
        loss.backward()
    assert kappa != 0


def test_a_batch_of_another_task_has_no_term() -> None:
    model = network(3)
    flatness = RelativeFlatness(model)
    flatness.adapt_to_sharding()
    with flatness.capture(0.5):
        features = model[:2](torch.randn(5, 4, dtype=torch.float64))
        model[2](features)
    loss = features.square().sum()
    kappa = flatness(loss)
    (loss + kappa).backward()
    assert kappa == 0 and flatness.method.acts_in is ActsIn.BACKWARD_PASS


def test_logits_may_be_changed_in_place() -> None:
    """The output of the head's term is no view of the logits."""
    model, y = network(3), torch.tensor([0, 1, 2, 0, 1])
    attached = attach(model, 0.5)
    logits = model(torch.randn(5, 4, dtype=torch.float64))
    assert logits._base is None
    logits += 1.0
    nn.functional.cross_entropy(logits, y).backward()
    assert attached.kappa() > 0
