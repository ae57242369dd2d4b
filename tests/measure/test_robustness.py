"""Feature robustness: conventions of the random matrices, second order equal to kappa, kinks found."""

from __future__ import annotations

import math
import secrets

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hf_fam.layer.feature_layer import FeatureLayer
from hf_fam.measure import measure_relative_flatness
from hf_fam.measure.feature_perturbation import MATRICES, perturbed, random_matrix
from hf_fam.measure.robustness import feature_robustness
from support.arrangements import llama
from support.measured import cross_entropy, mlp, points, reference
from support.tiny import classified, hook_count, random_states, texts, tiny_bert


@pytest.mark.parametrize("kind", MATRICES)
def test_entries_have_variance_one_over_m(kind: str) -> None:
    generator = torch.Generator().manual_seed(secrets.randbits(32))
    drawn = torch.stack([random_matrix(kind, 6, generator) for _ in range(6000)]).flatten(1)
    covariance = drawn.T @ drawn / len(drawn)
    torch.testing.assert_close(covariance, torch.eye(36, dtype=torch.float64) / 6, rtol=0, atol=0.02)
    assert drawn.mean(0).abs().max() < 0.03


def test_orthogonal_matrices_are_uniformly_distributed() -> None:
    """The plain factor of QR has a positive trace bias; Haar's has E[trace] = 0 and E[trace^2] = 1."""
    generator = torch.Generator().manual_seed(0)
    traces = torch.stack([random_matrix("orthogonal", 5, generator).trace() for _ in range(4000)])
    assert abs(traces.mean()) < 4 / math.sqrt(4000) and traces.square().mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("index", [0, 2, 4])
def test_second_order_is_kappa_of_the_dense_reference(kind: str, index: int) -> None:
    # One seed: how often the comparison with kappa raises a false alarm is that of its standard errors.
    torch.manual_seed(7)
    model, data = mlp(index), points(30)
    result = feature_robustness(
        model, data, str(index), (0.001, 0.01), matrices=kind, samples=60, loss_fn=cross_entropy, batch_size=30
    )
    kappa = reference(model, data, index).kappa.item()
    for delta, rise, error in zip(result.deltas, result.measured, result.standard_errors, strict=True):
        assert abs(rise - delta**2 / (2 * result.in_features) * kappa) < 4.5 * error
    assert result.piecewise_linear is False and result.diverges_at is None


def test_a_short_last_batch_counts_by_its_items() -> None:
    """37 items in batches of 8 are those 37 items, and prediction and loss are the dense reference's."""
    model, data, deltas = mlp(3), points(37), (0.1, 0.5)
    one, many = (
        feature_robustness(model, data, "head", deltas, samples=3, loss_fn=cross_entropy, batch_size=size)
        for size in (37, 8)
    )
    kappa = reference(model, data, 4).kappa.item()
    for result in (one, many):
        assert result.num_items == 37 and result.in_features == 6
        assert result.loss == pytest.approx(cross_entropy(model, data.tensors).item(), rel=1e-12)
        assert result.kappa == pytest.approx(kappa, rel=1e-9)
        assert result.predicted == pytest.approx([delta**2 / 12 * kappa for delta in deltas], rel=1e-9)
        assert result.predicted_errors == (0.0, 0.0)  # closed form: there are no probes
    assert many.measured == pytest.approx(one.measured, rel=1e-9)
    assert many.standard_errors == pytest.approx(one.standard_errors, rel=1e-9)


def test_batches_of_texts_count_by_their_tokens() -> None:
    model = llama().double()
    one, many = (feature_robustness(model, texts(24), "head", (0.2, 1.0), samples=2, batch_size=n) for n in (24, 7))
    assert many.loss == pytest.approx(one.loss, rel=1e-9)
    assert many.measured == pytest.approx(one.measured, rel=1e-9)
    assert many.standard_errors == pytest.approx(one.standard_errors, rel=1e-9)
    assert many.predicted == pytest.approx(one.predicted, rel=1e-9)


def test_errors_of_the_prediction_are_those_of_the_probes() -> None:
    """Twenty outputs are more than there are probes, so that kappa is an estimate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    data, deltas = points(30), (0.1, 0.5)
    result = feature_robustness(model, data, "0", deltas, samples=2, loss_fn=cross_entropy, seed=5)
    (flat,) = measure_relative_flatness(model, data, "0", ("trace",), loss_fn=cross_entropy, probes=8, seed=5)
    assert flat.standard_error_probes > 0
    errors = [delta**2 / 8 * flat.standard_error_probes for delta in deltas]
    assert result.predicted_errors == pytest.approx(errors, rel=1e-12)
    kappa = reference(model, data, 0).kappa.item()
    for delta, predicted, error in zip(deltas, result.predicted, errors, strict=True):
        assert abs(predicted - delta**2 / 8 * kappa) < 4.5 * error


def test_perturbation_is_what_it_says() -> None:
    model, x = mlp(1), torch.randn(5, 4, dtype=torch.float64)
    layer, a = FeatureLayer(model, "2"), torch.randn(1, 7, 7, dtype=torch.float64)
    with perturbed(layer, a):
        moved = model(x)
    phi = model[:2](x)
    torch.testing.assert_close(moved, model[2:](phi + phi @ a[0].T), rtol=1e-12, atol=1e-12)
    assert hook_count(model) == 0


def test_convolution_rows_are_perturbed_patch_by_patch() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, 3, groups=2, padding=1).double()
    model = nn.Sequential(conv)
    x, a = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, 9, 9, dtype=torch.float64)
    with perturbed(FeatureLayer(model, conv), a):
        moved = model(x)
    patches = nn.functional.unfold(x, 3, padding=1).view(2, 2, 9, 16)
    patches = patches + torch.einsum("gij,bgjt->bgit", a, patches)
    expected = torch.einsum("gom,bgmt->bgot", conv.weight.view(2, 2, 9), patches).reshape(2, 4, 4, 4)
    torch.testing.assert_close(moved, expected + conv.bias.view(-1, 1, 1), rtol=1e-10, atol=1e-10)


def test_kinks_are_found_and_named() -> None:
    """|z| has no curvature but a kink: kappa is 0 there, the loss rises all the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 3)).double()
    with torch.no_grad():
        model[0].weight.mul_(0.05)  # pre-activations close to the kink
        model[0].bias.zero_()
        model[2].weight.mul_(20)
    result = feature_robustness(model, points(60), "0", (0.05, 0.5), samples=20, loss_fn=cross_entropy)
    assert result.piecewise_linear is True
    assert result.diverges_at is not None and "kinks" in result.verdict and "kinks" in str(result)
    model[1] = nn.Identity()  # piecewise linear, but in one piece
    affine = feature_robustness(model, points(60), "0", (0.05, 5.0), samples=5, loss_fn=cross_entropy)
    assert affine.piecewise_linear is False
    smooth = feature_robustness(mlp(2), points(60), "head", (0.01, 30.0), samples=20, loss_fn=cross_entropy)
    assert smooth.diverges_at == 30.0 and "higher orders" in smooth.verdict


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_not_taken_for_higher_orders(dtype: torch.dtype) -> None:
    """The rises here are some 1e-5 at most, and a loss of 1.1 in float16 is known to 1e-3."""
    result = feature_robustness(tiny_bert(dropout=0.0).to(dtype), classified(64), "head", (0.1, 1.0), samples=4)
    assert result.diverges_at is None and result.unresolved_up_to == 1.0
    assert result.rounding == pytest.approx(torch.finfo(dtype).eps * result.loss, rel=1e-6)
    assert "precision of the loss" in result.verdict and "higher orders" not in str(result)
    precise = feature_robustness(tiny_bert(dropout=0.0).double(), classified(64), "head", (0.1, 1.0), samples=4)
    assert precise.unresolved_up_to is None and "precision" not in precise.verdict


def test_transformers_and_figure(tmp_path) -> None:
    model, states = tiny_bert(), random_states()
    result = feature_robustness(model, classified(8), deltas=(0.1, 1.0), samples=3)
    result.plot(tmp_path / "curve.png")
    assert result.layer == "bert.pooler.dense" and (tmp_path / "curve.png").stat().st_size > 1000
    assert states == random_states() and model.training and hook_count(model) == 0
    assert '"diverges_at"' in result.to_json()


def test_bad_arguments() -> None:
    model, data = mlp(), TensorDataset(*points(4).tensors)
    for given, words in (
        ({"matrices": "normal"}, "matrices='normal'.*'gaussian'"),
        ({"deltas": (0.1, 0.01)}, "increasing"),
        ({"deltas": (0.0, 0.1)}, "positive"),
        ({"samples": 1}, "samples=1.*from 2"),
    ):
        with pytest.raises(ValueError, match=words):
            feature_robustness(model, data, "head", loss_fn=cross_entropy, **given)
