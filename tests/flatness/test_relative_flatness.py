"""RelativeFlatness in one's own loop."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.calculus.autograd_graph import TailGraph
from hf_fam.calculus.derivatives import SecondDerivativeError
from hf_fam.flatness.directions import direction
from hf_fam.flatness.estimators.dense import dense_flatness
from hf_fam.flatness.estimators.hessian import hessian_probe
from support.tails import TAILS, make


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()


INPUTS, LABELS = torch.randn(8, 3, dtype=torch.float64), torch.randint(0, 3, (8,))


def loss_and_kappa(model: nn.Module, flatness: RelativeFlatness) -> tuple[Tensor, Tensor]:
    with flatness.capture():
        loss = F.cross_entropy(model(INPUTS), LABELS)
    return loss, flatness(loss)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("estimator", ["hessian", "dense"])
def test_probes_are_unbiased_whatever_is_coupled(tail: str, estimator: str) -> None:
    case = make(tail, 0)
    flatness = RelativeFlatness(case.model, case.layer, estimator, probes=50 if estimator == "hessian" else 1)
    draws = []
    for _ in range(8 if estimator == "hessian" else 1):
        with flatness.capture():
            loss = case.run()
        draws.append(flatness(loss).detach())
    true = dense_flatness(case.run(), case.layer.weight).kappa.item()
    mean = torch.stack(draws).mean().item()
    standard_error = torch.stack(draws).std().item() / 8**0.5 if len(draws) > 1 else 0.0
    assert abs(mean - true) <= 5 * standard_error + 1e-9 * abs(true)


def test_auto_is_the_head_in_closed_form_and_gauss_newton_below() -> None:
    assert (RelativeFlatness(network()).layer.name, RelativeFlatness(network()).estimator) == ("4", "closed_form")
    representation = RelativeFlatness(network(), "representation")
    assert (representation.layer.name, representation.estimator) == ("2", "gauss_newton")


def test_the_random_state_of_the_training_is_untouched() -> None:
    model = network()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for estimator in ("hessian", "gauss_newton"):
        loss_and_kappa(model, RelativeFlatness(model, "2", estimator))
    assert torch.equal(torch.rand(3), expected)


def test_seeds_and_generators_repeat_the_probes() -> None:
    model = network()

    def kappas(flatness: RelativeFlatness) -> list[float]:
        return [loss_and_kappa(model, flatness)[1].item() for _ in range(3)]

    plain = kappas(RelativeFlatness(model, "2"))
    assert len(set(plain)) == 3, "every call draws anew"
    assert kappas(RelativeFlatness(model, "2")) == plain
    seeded = RelativeFlatness(model, "2")
    seeded.seed(7, 1)
    first = kappas(seeded)
    seeded.seed(7, 2)
    assert kappas(seeded) != first
    seeded.seed(7, 1)
    assert kappas(seeded) == first != plain
    with_generator = [
        kappas(RelativeFlatness(model, "2", generator=torch.Generator().manual_seed(s))) for s in (1, 1, 2)
    ]
    assert with_generator[0] == with_generator[1] != with_generator[2]


def test_every_item_gets_its_signs_and_coupled_items_share_them() -> None:
    """Coupled rows need one matrix on every process; uncoupled ones are better off with different signs."""
    for tail, alike in (("tanh_mlp", False), ("batchnorm", True)):
        case, kappas = make(tail, 0), []
        for first_item in (0, 100):
            flatness = RelativeFlatness(case.model, case.layer, "hessian")
            flatness.seed(1, 2, first_item=first_item)
            with flatness.capture():
                loss = case.run()
            kappas.append(flatness(loss).item())
        assert (kappas[0] == pytest.approx(kappas[1], rel=1e-12)) == alike


class Pair(nn.Module):
    """One encoder, called for both sides of a pair; the loss couples the sides of one pair."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(2.0))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.scale * (self.encoder(left).tanh() * self.encoder(right).tanh()).sum(-1)


def test_a_layer_called_for_both_sides_of_a_pair() -> None:
    model = Pair().double()
    left, right = torch.randn(2, 4, 3, dtype=torch.float64)
    flatness = RelativeFlatness(model, "encoder", "hessian")
    with flatness.capture():
        loss = F.softplus(model(left, right)).mean()
    captures = flatness.watch.captures
    assert captures is not None
    signs = [torch.tensor(s, dtype=torch.float64) for s in itertools.product([-1.0, 1.0], repeat=3)]
    probes = [
        hessian_probe(
            loss,
            [c.pre_activations for c in captures],
            [direction(c.features, flatness.layer.linear_map, r, a.unsqueeze(0)) for c in captures],
        )
        for r in signs
        for a in signs
    ]
    true = dense_flatness(loss, model.encoder.weight).kappa
    torch.testing.assert_close(sum(probes) / len(probes), true, rtol=1e-10, atol=0)
    draws = []
    for _ in range(200):
        with flatness.capture():
            loss = F.softplus(model(left, right)).mean()
        draws.append(flatness(loss).detach())
    drawn = torch.stack(draws)
    assert abs(drawn.mean() - true) <= 5 * drawn.std() / 200**0.5


def test_only_differentiates_the_tail() -> None:
    """A trunk whose kernels have no second derivative is never touched."""

    class OnceDifferentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g: Tensor) -> Tensor:
            return g

    class Trunk(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return OnceDifferentiable.apply(x)

    model = nn.Sequential(nn.Linear(3, 4), Trunk(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for layer, estimator in (("4", "closed_form"), ("2", "hessian"), ("2", "gauss_newton"), ("2", "dense")):
        loss, kappa = loss_and_kappa(model, RelativeFlatness(model, layer, estimator))
        (loss + kappa).backward()
    assert model[0].weight.grad.abs().max() > 0


def test_detached_models_can_be_copied_and_pickled() -> None:
    model = network()
    flatness = RelativeFlatness(model, "2")
    loss_and_kappa(model, flatness)
    flatness.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    pickle.loads(pickle.dumps(copy.deepcopy(model)))
    loss_and_kappa(model, flatness)  # comes back by itself


def test_gradient_squares() -> None:
    model = network()
    flatness = RelativeFlatness(model, "2", "hessian")
    phi = []
    model[1].register_forward_hook(lambda module, args, output: phi.append(output))
    loss, kappa = loss_and_kappa(model, flatness)
    of_kappa, of_loss = (torch.autograd.grad(y, phi[0], retain_graph=True)[0] for y in (kappa, loss))
    squares = flatness.gradient_squares(loss, kappa)
    assert squares.tolist() == pytest.approx([of_kappa.norm().item() ** 2, of_loss.norm().item() ** 2], rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "clasifier"}, "layer='clasifier' is not a module.*did you mean"),
        ({"layer": nn.Linear(2, 2)}, "not a module of this Sequential"),
        ({"layer": "1"}, "'1' is a Tanh, which is no kind.*Supported: torch.nn.Linear"),
        ({"estimator": "trace"}, "estimator='trace': choose one of 'auto', 'closed_form'"),
        ({"probes": 0}, "probes=0: give a whole number"),
        ({"probes": True}, "probes=True"),
        ({"gradient": "half"}, "gradient='half': choose one of"),
        ({"estimator": "perturbation", "gradient": "weights_only"}, 'not possible with estimator="perturbation"'),
    ],
)
def test_errors_at_construction(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        RelativeFlatness(network(), **arguments)


def test_errors_at_the_first_step() -> None:
    model = network()
    flatness = RelativeFlatness(model)
    with pytest.raises(ValueError, match="run the model inside `with flatness.capture"):
        flatness(torch.tensor(1.0))
    with flatness.capture():
        pass
    with pytest.raises(ValueError, match="layer '4' was not called in the forward pass"):
        flatness(torch.tensor(1.0))
    with flatness.capture():
        losses = F.cross_entropy(model(INPUTS), LABELS, reduction="none")
    with pytest.raises(ValueError, match=r"must be a scalar tensor, not shape \(8,\): take its mean"):
        flatness(losses)
    with flatness.capture():
        model(INPUTS)
    with pytest.raises(ValueError, match="its output does not reach the loss"):
        flatness(model[0].weight.sum())
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    with pytest.raises(ValueError, match="nothing at or below layer '2' is trainable"):
        loss_and_kappa(model, RelativeFlatness(model, "2"))
    with pytest.raises(ValueError, match="torch.nn.DataParallel"):
        RelativeFlatness(nn.DataParallel(network()))


def test_a_loss_without_curvature_is_pointed_out() -> None:
    model = network()
    flatness = RelativeFlatness(model)
    with pytest.warns(UserWarning, match="exactly 0 here: the loss has no curvature"):
        with flatness.capture():
            output = model(INPUTS)
        kappa = flatness(F.l1_loss(output, torch.zeros_like(output)))
    assert kappa == 0


def test_a_batch_without_labels_is_not_taken_for_a_loss_without_curvature() -> None:
    """The mean over no labels is NaN, kappa is 0."""
    model = network()
    flatness = RelativeFlatness(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with flatness.capture():
            output = model(INPUTS)
        flatness(F.cross_entropy(output, torch.full((len(output),), -100)))


class HeadFirst(nn.Module):
    """Defines the layer into the logits before the others."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(4, 3))
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(self.second(self.first(x).tanh()).tanh())


def test_a_head_is_found_by_its_name_or_its_absence_is_noticed() -> None:
    model = HeadFirst("classifier").double()
    assert RelativeFlatness(model).layer.name == "classifier"
    assert loss_and_kappa(model, RelativeFlatness(model, "first"))[1] >= 0
    unnamed = HeadFirst("w").double()
    with pytest.raises(ValueError, match="takes 'second' for the layer into the logits, but it has further layers"):
        loss_and_kappa(unnamed, RelativeFlatness(unnamed, "first"))


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


@pytest.mark.parametrize(("layer", "estimator"), [("0", "hessian"), ("0", "gauss_newton"), ("2", "closed_form")])
def test_operations_that_torch_differentiates_once_are_refused(layer: str, estimator: str) -> None:
    """torch takes their second derivative for zero, without an error."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    flatness = RelativeFlatness(model, layer, estimator)
    with flatness.capture():
        loss = nn.functional.cross_entropy(_Doubled.apply(model(torch.randn(5, 3))), torch.tensor([0, 1, 0, 1, 1]))
    with pytest.raises(SecondDerivativeError, match="once_differentiable"):
        flatness(loss)


@pytest.mark.parametrize(
    ("layer", "estimator"),
    [("4", "closed_form"), ("4", "row_probes"), ("2", "hessian"), ("2", "gauss_newton"), ("2", "dense")],
)
def test_the_graph_of_a_batch_is_walked_once(layer: str, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All refusals read the record of one walk, and a batch that is not examined takes none."""
    walks: list[int] = []

    class Counted(TailGraph):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            walks.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr("hf_fam.flatness.batch.TailGraph", Counted)
    model = network()
    flatness = RelativeFlatness(model, layer, estimator)
    for expected in (1, 2, 3, 3):  # the fourth batch is not examined
        with flatness.capture():
            loss = F.cross_entropy(model(INPUTS), LABELS)
        flatness(loss)
        assert len(walks) == expected
