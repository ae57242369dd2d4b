"""A layer that is called several times, also where one call feeds the next: kappa is that of its one weight."""

from __future__ import annotations

import itertools
import secrets
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hf_fam import RelativeFlatness
from hf_fam.flatness.coupling import Coupling
from hf_fam.flatness.directions import direction
from hf_fam.flatness.estimators.dense import dense_flatness
from support.gradients import assert_gradient_by_finite_differences, assert_same_gradients
from support.layers import LayerCase, gauss_newton_reference, hessian_reference
from support.tails import Attention


class Repeated(nn.Module):
    """A block that is applied three times, as in ALBERT; between the calls lie activation, residual and attention."""

    def __init__(self, mixing: str) -> None:
        super().__init__()
        self.block, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
        self.attention = Attention(3) if mixing == "tokens" else None
        self.norm = nn.BatchNorm1d(3) if mixing == "batch" else None

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.block(x).tanh()
            if self.attention is not None:
                x = self.attention(x)
            if self.norm is not None:
                x = self.norm(x)
        return self.head(x.mean(1) if x.dim() > 2 else x)


class Convolved(nn.Module):
    """A convolution that is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Conv1d(2, 2, 3, padding=1, groups=2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(x).tanh()).tanh().mean(-1))


class LeakyFed(nn.Module):
    """The last call makes the logits; almost everywhere only the direction's derivative tells that calls are nested.

    Leaky, since a ReLU may be dead on every item, where kappa and its gradient are 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(F.leaky_relu(self.block(x)))


COUPLINGS = {"rows": "items", "tokens": "items", "batch": "batch", "convolution": "items", "leaky": "items"}


def nested_case(name: str) -> LayerCase:
    seed = secrets.randbits(32)
    print("seed", seed)  # shown where the test fails
    torch.manual_seed(seed)
    model: Any = Convolved() if name == "convolution" else LeakyFed() if name == "leaky" else Repeated(name)
    model = model.double()
    shape = {"tokens": (3, 2, 3), "convolution": (3, 2, 4)}.get(name, (3, 3))
    labels, block = torch.randint(0, 3, (3,)), model.block
    convolution = name == "convolution"

    def plain(x: Tensor, w: Tensor) -> Tensor:
        return block._conv_forward(x, w.view(2, 1, 3), block.bias) if convolution else F.linear(x, w, block.bias)

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(z, labels)

    weight = (lambda: block.weight.flatten(1)) if convolution else (lambda: block.weight)
    inputs = torch.randn(*shape, dtype=torch.float64)
    return LayerCase(model, "block", inputs, loss, COUPLINGS[name], plain, weight, groups=2 if convolution else 1)


def summed_over_the_basis(case: LayerCase, flatness: RelativeFlatness, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """kappa of the case's current substitute, by the estimator's own path."""
    linear_map = flatness.layer.linear_map
    m, groups = linear_map.in_features, linear_map.groups
    units = torch.eye(groups * m, dtype=torch.float64)
    pairs = [(units[g * m + i], units[g * m + j]) for g in range(groups) for i in range(m) for j in range(m)]

    def draw(features: Any, linear_map: Any, coupling: Coupling, seeds: Any, probe: int = 0) -> list[Tensor]:
        assert coupling == case.coupling
        r, a = pairs[probe]
        shape = linear_map.vector_shape(features[0], an_item=coupling is Coupling.ITEMS)
        return [direction(phi, linear_map, r, a.expand(shape).unsqueeze(-2)) for phi in features]

    monkeypatch.setattr("hf_fam.flatness.estimators.random_probes.draw", draw)
    flatness.method.probes = len(pairs)  # type: ignore[union-attr]
    with flatness.capture():
        case.logits, task_loss = case.run()  # type: ignore[attr-defined]
    case.task_loss = task_loss  # type: ignore[attr-defined]
    return flatness(task_loss) * len(pairs)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [("leaky", "hessian"), *itertools.product(["rows", "tokens", "batch", "convolution"], ["hessian", "gauss_newton"])],
)
def test_nested_calls(name: str, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = nested_case(name)
    case.use_substitute()
    flatness = RelativeFlatness(case.model, "block", estimator)
    kappa: Any = summed_over_the_basis(case, flatness, monkeypatch)
    found: Any = case
    if estimator == "hessian":
        true = hessian_reference(found.task_loss, found.substitute, case.groups)
    else:
        true = gauss_newton_reference(found.task_loss, found.logits, found.substitute, case.groups)
    torch.testing.assert_close(kappa, true, rtol=1e-8, atol=1e-12)
    assert_same_gradients(case.model, kappa, true, rtol=1e-7)


@pytest.mark.parametrize("name", ["rows", "tokens", "batch", "convolution"])
def test_nested_gradients_by_finite_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = nested_case(name)
    flatness = RelativeFlatness(case.model, "block", "hessian")
    assert_gradient_by_finite_differences(
        case.model, lambda: summed_over_the_basis(case, flatness, monkeypatch), rtol=1e-4
    )


def test_nested_calls_by_torch_func() -> None:
    """The references of these tests against independent software."""
    case = nested_case("tokens")
    parameters = dict(case.model.named_parameters())

    def loss_of(w: Tensor) -> Tensor:
        return case.loss(torch.func.functional_call(case.model, {**parameters, "block.weight": w}, (case.inputs,)))

    w = case.weight().detach()
    hessian = torch.func.hessian(loss_of)(w)
    theirs = ((w @ w.T) * torch.einsum("siti->st", hessian)).sum()
    case.use_substitute()
    _, loss = case.run()
    assert case.substitute is not None
    torch.testing.assert_close(hessian_reference(loss, case.substitute), theirs, rtol=1e-9, atol=0)


def test_a_head_that_feeds_itself() -> None:
    """The output of its first call is none of the logits."""
    case = nested_case("leaky")
    flatness = RelativeFlatness(case.model, "block", "gauss_newton")
    with flatness.capture():
        _, loss = case.run()
    with pytest.raises(ValueError, match="'block' for the layer into the logits, but it is called several times"):
        flatness(loss)
    flatness = RelativeFlatness(case.model)
    with flatness.capture():
        _, loss = case.run()
    with pytest.warns(UserWarning, match="the loss couples the calls. Using Hessian probes"):
        flatness(loss)


def test_fused_normalisation_between_two_calls_is_refused() -> None:
    class Normalized(Repeated):
        def forward(self, x: Tensor) -> Tensor:
            return self.block(F.layer_norm(self.block(x), (3,)))

    model = Normalized("rows").double()
    flatness = RelativeFlatness(model, "block", "hessian")
    with flatness.capture():
        loss = model(torch.randn(4, 3, dtype=torch.float64)).square().sum()
    with pytest.raises(ValueError, match="NativeLayerNormBackward0 lies between"):
        flatness(loss)


def test_nested_calls_have_no_term_one_alone() -> None:
    case = nested_case("rows")
    flatness = RelativeFlatness(case.model, "block", "hessian", gradient="weights_only")
    with flatness.capture():
        _, loss = case.run()
    with pytest.raises(ValueError, match='weights_only" is not possible.*gauss_newton'):
        flatness(loss)


def test_items_of_different_calls_share_a_matrix_and_items_of_one_call_do_not() -> None:
    case = nested_case("tokens")
    flatness = RelativeFlatness(case.model, "block", "hessian")
    with flatness.capture():
        _, loss = case.run()
    captures = flatness.watch.captures
    assert captures is not None
    flatness(loss)
    from hf_fam.flatness.batch import Seeds
    from hf_fam.flatness.directions import draw

    features = [torch.ones_like(c.features) for c in captures]
    drawn = draw(features, flatness.layer.linear_map, Coupling.ITEMS, Seeds(), 0)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1])


class TwoSentences(nn.Module):
    """One head for two sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.body(left).tanh()), self.head(self.body(right).tanh())


def test_closed_form_of_a_head_that_is_called_twice() -> None:
    model = TwoSentences().double()
    left, right = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    y, flatness = torch.randint(0, 3, (5,)), RelativeFlatness(model, "head")
    with flatness.capture():
        a, b = model(left, right)
    loss = F.cross_entropy(a, y[:4]) + 0.3 * F.cross_entropy(b, y, label_smoothing=0.1)
    kappa = flatness(loss)
    assert flatness.estimator == "closed_form"
    true = dense_flatness(loss, model.head.weight).kappa
    torch.testing.assert_close(kappa, true, rtol=1e-9, atol=0)
    assert_same_gradients(model, kappa, true)


@pytest.mark.parametrize("loss", ["difference", "different"])
def test_a_head_whose_calls_are_coupled_has_no_closed_form(loss: str) -> None:
    model, y = TwoSentences().double(), torch.randint(0, 3, (4,))
    left, right = torch.randn(2, 4, 3, dtype=torch.float64)
    flatness = RelativeFlatness(model, "head")
    with flatness.capture():
        a, b = model(left, right)
    value = F.cross_entropy(a - b, y) if loss == "difference" else F.cross_entropy(a, y) + b.square().mean()
    reason = "the loss couples the calls" if loss == "difference" else "with different losses"
    with pytest.warns(UserWarning, match=f"called 2 times.*{reason}.*Using Hessian probes"):
        flatness(value)


def test_perturbation_of_nested_calls_is_the_loss_of_a_perturbed_weight() -> None:
    """One A for all calls: what is computed is L(W (I + delta A)), to every order."""
    case = nested_case("rows")
    flatness = RelativeFlatness(case.model, "block", "perturbation")
    flatness.seed(3)
    with flatness.capture(0.0):
        flatness(case.run()[1])
    flatness.method.coupling_finder.coupling = Coupling.BATCH  # type: ignore[union-attr]
    with flatness.capture(0.02):
        _, perturbed = case.run()
        first = flatness.watch.captures[0]
    u = (first.pre_activations - case.layer(first.features)).detach() / 0.04**0.5
    flatness(perturbed)
    flatness.detach()
    phi = case.inputs
    a = torch.linalg.lstsq(phi, torch.linalg.lstsq(case.layer.weight, u.T).solution.T).solution  # u = W A phi
    with torch.no_grad():
        case.layer.weight.copy_(case.layer.weight @ (torch.eye(3) + 0.04**0.5 * a.T))
    torch.testing.assert_close(case.run()[1], perturbed, rtol=1e-8, atol=0)


class Checkpointed(nn.Module):
    """A convolution inside a block that is computed a second time."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.convolution, self.head = nn.Conv2d(2, 4, 3, groups=2), nn.Linear(4, 3)

    def block(self, x: Tensor) -> Tensor:
        return self.convolution(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.block, x, use_reentrant=False) if self.recompute else self.block(x)
        return self.head(h.mean((-1, -2)))


@pytest.mark.parametrize("estimator", ["perturbation", "hessian", "gauss_newton"])
def test_recomputed_convolutions_get_the_same_signs(estimator: str) -> None:
    inputs, labels = torch.randn(3, 2, 5, 5), torch.randint(0, 3, (3,))
    found = []
    plain = Checkpointed(recompute=False)
    for recompute in (False, True):
        model = Checkpointed(recompute)
        model.load_state_dict(plain.state_dict())
        flatness = RelativeFlatness(model, "convolution", estimator)
        flatness.seed(1)
        for _ in range(2):  # the second pass knows the coupling
            model.zero_grad()
            with flatness.capture(0.05):
                loss = F.cross_entropy(model(inputs), labels)
            (loss + 0.05 * flatness(loss)).backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(found[0], found[1])
