"""Feature densities against scikit-learn and a plain loop; the terms of gap and bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.model_selection import KFold
from sklearn.neighbors import KernelDensity

from hf_fam.measure.feature_density import feature_density, log_kernel_density
from hf_fam.measure.generalization_gap import bound_terms, decompose_gap
from hf_fam.measure.robustness import feature_robustness
from support.measured import cross_entropy, mlp, points
from support.tiny import classified, random_states, tiny_bert


def by_hand(features: np.ndarray, delta: float, folds: int, seed: int) -> tuple[float, float]:
    """Mean log density of held-out items and its standard error, kernel by kernel."""
    result = np.zeros(len(features))
    for fitted, held_out in KFold(folds, shuffle=True, random_state=seed).split(features):
        for i in held_out:
            kernels = [
                norm.logpdf(features[i], center, delta * np.linalg.norm(center) / math.sqrt(len(center))).sum()
                for center in features[fitted]
            ]
            result[i] = logsumexp(kernels) - math.log(len(kernels))
    return result.mean(), result.std(ddof=1) / math.sqrt(len(result))


def test_equal_bandwidths_are_those_of_scikit_learn() -> None:
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    theirs = KernelDensity(bandwidth=0.4).fit(y.numpy()).score_samples(x.numpy())
    ours = log_kernel_density(x, y, torch.full((20,), 0.4, dtype=torch.float64))
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-10, atol=1e-10)


def test_own_bandwidths_by_a_loop_and_far_away_in_log_space() -> None:
    x, y, h = torch.randn(2, 2).double(), torch.randn(5, 2).double(), torch.rand(5).double() + 0.1
    x[1] += 300  # a density of about exp(-10^6), 0 in any other space
    loop = [
        torch.logsumexp(
            torch.stack([torch.distributions.Normal(c, s).log_prob(p).sum() for c, s in zip(y, h, strict=True)]), 0
        ) - math.log(5)
        for p in x
    ]  # fmt: skip
    torch.testing.assert_close(log_kernel_density(x, y, h), torch.stack(loop), rtol=1e-10, atol=1e-10)


def test_held_out_items_choose_a_bandwidth_between_extremes() -> None:
    model, states = mlp(1), random_states()
    result = feature_density(model, points(120), "2", (1e-4, 0.5, 1e4), loss_fn=cross_entropy)
    assert states == random_states()
    assert result.best_delta == 0.5 and result.dimensions == 7 and result.explained_variance == 1
    own = feature_density(model, points(120), "2", (0.5,), loss_fn=cross_entropy, most_dimensions=2)
    assert own.dimensions == 2 and 0.2 < own.explained_variance < 1


def test_densities_and_their_errors_are_those_by_hand() -> None:
    model, data, deltas = mlp(1), points(17), (0.2, 0.5, 2.0)
    result = feature_density(model, data, "2", deltas, folds=4, seed=3, loss_fn=cross_entropy, batch_size=5)
    expected = [by_hand(model[:2](data.tensors[0]).detach().numpy(), delta, 4, 3) for delta in deltas]
    assert result.log_densities == pytest.approx([mean for mean, _ in expected], rel=1e-10)
    assert result.standard_errors == pytest.approx([error for _, error in expected], rel=1e-10)


def test_features_of_an_item_are_the_mean_over_its_tokens() -> None:
    model, data = tiny_bert().double().eval(), classified(12)
    layer = model.bert.encoder.layer[0].output.dense
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(input_ids=torch.tensor([item["input_ids"] for item in data]))
    handle.remove()
    result = feature_density(model, data, layer, (0.1, 1.0), folds=3, batch_size=5)
    assert result.dimensions == result.in_features == 16
    expected = [by_hand(seen[0].mean(1).numpy(), delta, 3, 0) for delta in (0.1, 1.0)]
    assert result.log_densities == pytest.approx([mean for mean, _ in expected], rel=1e-10)
    assert result.standard_errors == pytest.approx([error for _, error in expected], rel=1e-10)


def test_padding_is_no_row_of_an_item() -> None:
    model, texts = tiny_bert().eval(), [[1 + k % 7] * (1 + k % 4) for k in range(12)]

    def padded(texts: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, texts))
        rows = [torch.tensor([t + [0] * (longest - len(t)), [1] * len(t) + [0] * (longest - len(t))]) for t in texts]
        ids, mask = torch.stack(rows).unbind(1)
        return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 2}

    def density(batch_size: int) -> tuple[float, ...]:
        layer = "bert.encoder.layer.0.output.dense"
        result = feature_density(model, texts, layer, (0.1, 1.0), folds=3, batch_size=batch_size, collate_fn=padded)
        return result.log_densities

    assert density(12) == pytest.approx(density(1), rel=1e-5)


def test_rows_of_an_item_are_averaged_and_folds_checked() -> None:
    result = feature_density(tiny_bert(), classified(12), "bert.encoder.layer.0.output.dense", (0.1,), folds=3)
    assert result.num_items == 12 and math.isfinite(result.log_densities[0])
    with pytest.raises(ValueError, match="folds=13.*12"):
        feature_density(tiny_bert(), classified(12), folds=13)


def with_dead(items: int, dead: int) -> tuple[torch.nn.Module, torch.utils.data.TensorDataset]:
    """A ReLU layer that gives 0 for the last items."""
    model, data = mlp(1), points(items)
    x = data.tensors[0].clone()
    x[items - dead :] = 0
    model[0].bias.data.zero_()
    model[1] = torch.nn.ReLU()
    return model, torch.utils.data.TensorDataset(x, *data.tensors[1:])


def test_items_without_features_are_left_out() -> None:
    model, data = with_dead(20, 3)
    with pytest.warns(UserWarning, match="3 of 20 items are left out.*layer '2' are 0"):
        result = feature_density(model, data, "2", (0.2, 0.5), folds=4, loss_fn=cross_entropy)
    first = torch.utils.data.TensorDataset(*(t[:17] for t in data.tensors))
    assert result == feature_density(model, first, "2", (0.2, 0.5), folds=4, loss_fn=cross_entropy)
    model, data = with_dead(20, 20)
    with pytest.raises(ValueError, match="layer '2' are 0 for all 20 items"):
        feature_density(model, data, "2", (0.2, 0.5), loss_fn=cross_entropy)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"deltas": (0.1, float("nan"))}, "deltas="),
        ({"deltas": (math.inf,)}, "deltas="),
        ({"deltas": np.array([0.1, -1.0])}, "deltas="),
        ({"deltas": ()}, "deltas="),
        ({"most_dimensions": 0}, "most_dimensions=0: give a whole number from 1"),
        ({"most_dimensions": -1}, "most_dimensions=-1"),
        ({"folds": 2.5}, "folds=2.5: give a whole number from 2"),
        ({"seed": -1}, "seed=-1: give a whole number from 0"),
    ],
)
def test_arguments_of_the_density(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature_density(mlp(1), points(10), "2", loss_fn=cross_entropy, **given)


def test_one_number_of_components_for_all_folds() -> None:
    arrays = np.array([0.1, 0.5])
    result = feature_density(mlp(1), points(7), "2", arrays, folds=2, most_dimensions=4, loss_fn=cross_entropy)
    assert result.dimensions == 3 and result.deltas == (0.1, 0.5)  # folds of 3 and 4 items


def test_gap_and_bound() -> None:
    result = feature_robustness(mlp(2), points(30), "2", (0.1, 0.5), loss_fn=cross_entropy)
    for term in decompose_gap(result, 0.2, 0.9):
        assert term.robustness + term.representativeness == pytest.approx(0.7)
    terms = bound_terms(result.kappa, result.in_features, 30)
    assert terms.flatness == result.kappa / 14 and terms.rate == pytest.approx(30 ** (-2 / 11))
    assert "C1" in str(terms) and "unknown" in str(terms)
    with pytest.raises(ValueError, match="num_items=0"):
        bound_terms(1.0, 3, 0)
