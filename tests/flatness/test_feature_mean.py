"""Centered features: the same function, another kappa; a running mean that does not depend on how a step is cut."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import FAMTrainer, RelativeFlatness
from hf_fam.flatness.estimators.dense import dense_flatness
from hf_fam.flatness.feature_mean import MEMORY, FeatureMean
from support.tiny import fam_trainer, logged, tiny_bert


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def shifted(model: nn.Sequential, by: Tensor) -> nn.Sequential:
    """The same function of x as ``model`` is of ``x - by``."""
    other = copy.deepcopy(model)
    other[0].bias.data -= other[0].weight.data @ by
    return other


def kappa_and_gradient(model: nn.Sequential, flatness: RelativeFlatness, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """The gradient by the weight above the layer."""
    flatness.seed(7)
    with flatness.capture():
        loss = F.cross_entropy(model(x), y)
    kappa = flatness(loss)
    return float(kappa.detach()), torch.autograd.grad(kappa, model[2].weight)[0]


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
def test_centred_kappa_is_that_of_centred_features(estimator: str) -> None:
    """With c taken off the inputs and given to the bias: the same function, and kappa as the papers define it."""
    x, y = 3 + torch.randn(8, 5).double(), torch.randint(4, (8,))
    model, c = network(), x.mean(0)
    other = shifted(model, -c)
    torch.testing.assert_close(other(x - c), model(x))
    centered = RelativeFlatness(model, "0", estimator, center=True)
    with centered.capture():
        loss = F.cross_entropy(model(x), y)
    centered(loss)  # shows the mean
    value, gradient = kappa_and_gradient(model, centered, x, y)
    expected, reference = kappa_and_gradient(other, RelativeFlatness(other, "0", estimator), x - c, y)
    assert value == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient, reference)
    uncentered, _ = kappa_and_gradient(model, RelativeFlatness(model, "0", estimator), x, y)
    assert abs(uncentered - value) > 0.1 * abs(value)


def test_closed_form_of_centred_features() -> None:
    x, y = 3 + torch.randn(8, 5).double(), torch.randint(4, (8,))
    head = nn.Sequential(nn.Linear(5, 4)).double()
    flatness = RelativeFlatness(head, center=True)
    assert flatness.estimator == "closed_form"
    for _ in range(2):
        with flatness.capture():
            logits = head(x)
        kappa = flatness(F.cross_entropy(logits, y))
    p, w = logits.softmax(-1), head[0].weight
    variance = p @ w.square().sum(-1) - (p @ w).square().sum(-1)
    expected = ((x - x.mean(0)).square().sum(-1) * variance).mean()
    torch.testing.assert_close(kappa, expected)
    found, reference = (torch.autograd.grad(k, w, retain_graph=True)[0] for k in (kappa, expected))
    torch.testing.assert_close(found, reference)


def test_mean_of_probes_is_the_definition_at_centred_features() -> None:
    torch.manual_seed(1)
    x, y = 2 + torch.randn(6, 5).double(), torch.randint(4, (6,))
    model = network()
    flatness = RelativeFlatness(model, "0", "hessian", probes=4000, center=True)
    for _ in range(2):
        with flatness.capture():
            loss = F.cross_entropy(model(x), y)
        kappa = flatness(loss)
    c = x.mean(0)
    other = shifted(model, -c)
    expected = float(dense_flatness(F.cross_entropy(other(x - c), y), other[0].weight).kappa.detach())
    assert float(kappa.detach()) == pytest.approx(expected, rel=0.1)


class Shift(nn.Module):
    """phi - c."""

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.by = by

    def forward(self, features: Tensor) -> Tensor:
        return features - self.by


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton", "perturbation"])
def test_gradient_reaches_what_is_below_a_centred_layer(estimator: str) -> None:
    """As in the same function with c taken off the features by hand, c held constant."""
    x, y = 1 + torch.randn(8, 3).double(), torch.randint(4, (8,))
    body, tail = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid()).double(), network()
    model = nn.Sequential(body, tail)
    c = body(x).detach().mean(0)
    centered = RelativeFlatness(model, "1.0", estimator, center=True)
    other = nn.Sequential(body, Shift(c), shifted(tail, -c))
    gradients = []
    for net, flatness in ((model, centered), (other, RelativeFlatness(other, "2.0", estimator))):
        with flatness.capture(strength=0.5):  # shows the mean, and that items are not coupled
            loss = F.cross_entropy(net(x), y)
        flatness(loss)
        flatness.seed(7)
        with flatness.capture(strength=0.5):
            loss = F.cross_entropy(net(x), y)
        (loss + 0.5 * flatness(loss)).backward()
        gradients.append(body[0].weight.grad.clone())
        net.zero_grad()
    torch.testing.assert_close(gradients[0], gradients[1])
    F.cross_entropy(model(x), y).backward()
    assert (gradients[0] - body[0].weight.grad).abs().max() > 0.01 * gradients[0].abs().max()


def test_gradient_of_the_closed_form_of_centred_features_that_are_trained() -> None:
    x, y = 1 + torch.randn(8, 5).double(), torch.randint(4, (8,))
    model = network()
    flatness = RelativeFlatness(model, center=True)
    for _ in range(2):
        with flatness.capture():
            logits = model(x)
        kappa = flatness(F.cross_entropy(logits, y))
    phi, p, w = model[:2](x), logits.softmax(-1), model[2].weight
    variance = p @ w.square().sum(-1) - (p @ w).square().sum(-1)
    expected = ((phi - phi.detach().mean(0)).square().sum(-1) * variance).mean()
    parameters = [*model.parameters()]
    found, reference = (torch.autograd.grad(k, parameters, retain_graph=True) for k in (kappa, expected))
    for one, other in zip(found, reference, strict=True):
        torch.testing.assert_close(one, other)


def test_first_batch_has_a_value_and_no_gradient() -> None:
    model, x, y = network(), torch.randn(8, 5).double(), torch.randint(4, (8,))
    flatness = RelativeFlatness(model, "0", center=True)
    with flatness.capture():
        loss = F.cross_entropy(model(x), y)
    kappa = flatness(loss)
    assert kappa > 0 and not kappa.requires_grad
    (loss + kappa).backward()


def test_perturbation_moves_features_around_their_mean() -> None:
    """Items that are alike are the mean, so that nothing moves."""
    model, x, y = network(), torch.ones(8, 5).double(), torch.randint(4, (8,))
    flatness = RelativeFlatness(model, "0", "perturbation", center=True)
    seen = []
    for _ in range(2):
        with flatness.capture(strength=1.0):
            seen.append(model(x).detach())
        flatness(F.cross_entropy(model(x), y))
    torch.testing.assert_close(seen[0], model(x).detach())
    torch.testing.assert_close(seen[1], model(x).detach())
    other = RelativeFlatness(model, "0", "perturbation")
    with other.capture(strength=1.0):
        assert not torch.allclose(model(x), seen[0])


def test_mean_does_not_depend_on_how_a_step_is_cut() -> None:
    steps = [torch.randn(12, 3).double() for _ in range(40)]
    whole, cut = FeatureMean(), FeatureMean()
    for step in steps:
        whole.add([step])
        for part in (step[:1], step[1:7].view(2, 3, 3), step[7:]):
            cut.add([part])
        for mean in (whole, cut):
            mean.end_step()
    torch.testing.assert_close(whole.value, cut.value)
    # By hand: a plain mean over the first twenty steps, then a twentieth of what is new.
    expected = torch.stack(steps[:20]).mean((0, 1))
    for step in steps[20:]:
        expected = (1 - MEMORY) * expected + MEMORY * step.mean(0)
    torch.testing.assert_close(whole.value, expected)
    mean = FeatureMean()
    mean.load(json.loads(json.dumps(whole.state())), steps[0])
    assert mean.value is not None and torch.equal(mean.value, whole.value)


def test_sum_over_processes() -> None:
    one, other, both = FeatureMean(), FeatureMean(), FeatureMean()
    x = torch.randn(9, 3)
    one.add([x[:2]])
    other.add([x[2:]])
    both.add([x])
    both.end_step()
    totals: list[Tensor] = []

    def remember(total: Tensor) -> Tensor:
        totals.append(total)
        return total

    other.end_step(remember)
    one.end_step(lambda total: total + totals[0])
    torch.testing.assert_close(one.value, both.value)


@pytest.mark.parametrize(
    "layer, estimator, says", [("0", "auto", "convolution"), ("head", "dense", "dense"), ("head", "row_probes", "row")]
)
def test_what_cannot_be_centred_is_refused(layer: str, estimator: str, says: str) -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"center=True \(fam_center\)") as error:
        RelativeFlatness(model, layer, estimator, center=True)
    assert says in str(error.value)


class TiedHead(nn.Module):
    """A head whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 5), nn.Linear(5, 6)
        self.head.weight = self.embedding.weight


def frozen_below(head: nn.Module) -> nn.Module:
    body = nn.Sequential(nn.Linear(5, 5), nn.Tanh()).requires_grad_(False)
    return nn.Sequential(*body, head)


@pytest.mark.parametrize(
    ("model", "layer", "estimator", "centered"),
    [
        (nn.Linear(5, 3), "auto", "auto", True),  # stored features
        (frozen_below(nn.Linear(5, 3)), "auto", "auto", True),
        (frozen_below(nn.Linear(5, 3)), "2", "perturbation", True),
        (frozen_below(nn.Linear(5, 3)), "auto", "dense", False),
        (frozen_below(nn.Linear(5, 5000)), "auto", "auto", False),
        (frozen_below(nn.Linear(5, 3, bias=False)), "auto", "auto", False),  # nothing would take up the mean
        (nn.Sequential(nn.Conv2d(2, 4, 3).requires_grad_(False), nn.Conv2d(4, 3, 1)), "auto", "auto", False),
        (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), "auto", "auto", False),
        (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3).requires_grad_(False)), "0", "auto", False),
        (TiedHead(), "head", "auto", False),
    ],
)
def test_center_by_default(model: nn.Module, layer: str, estimator: str, centered: bool) -> None:
    assert (RelativeFlatness(model, layer, estimator, center=None).mean is not None) == centered
    assert RelativeFlatness(model, layer, estimator).mean is None


def test_trainer_centres_where_the_head_alone_is_trained(tmp_path: Path) -> None:
    model = tiny_bert()

    def trained(trainer: FAMTrainer) -> tuple[bool, int]:
        trainer.train()
        return trainer.relative_flatness.mean is not None, len(logged(trainer, "fam_kappa"))

    trainer = fam_trainer(tmp_path, model, max_steps=2)
    assert trainer.relative_flatness.mean is None
    model.base_model.requires_grad_(False)  # afterwards, as users do
    assert trained(trainer) == (True, 1)  # the first step shows the mean
    assert trained(fam_trainer(tmp_path, model, max_steps=2, fam_center=False)) == (False, 2)
    model.base_model.requires_grad_(True)
    assert trained(trainer) == (False, 2)


def test_an_estimator_that_takes_over_does_not_change_the_default() -> None:
    """Else a Trainer would make the estimator anew, and warn, at every training."""
    flatness = RelativeFlatness(frozen_below(nn.Linear(5, 5000)), center=None)
    with flatness.capture():
        logits = flatness._model(torch.randn(4, 5))
    with pytest.warns(UserWarning, match="Using Hessian probes"):
        flatness(logits.logsumexp(-1).square().mean())
    assert flatness.estimator == "hessian" and not flatness.centers_by_default
