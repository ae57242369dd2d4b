"""measure_relative_flatness against the dense reference, curvlinops, and itself under other batches and seeds."""

from __future__ import annotations

import math
import secrets

import pytest
import torch
from curvlinops import HessianLinearOperator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_fam import measure_relative_flatness
from hf_fam.flatness.estimators.dense import dense_flatness, weight_hessian
from hf_fam.measure.running_sums import RunningMean
from support.arrangements import llama
from support.measured import cross_entropy, mlp, points, reference
from support.tails import TAILS, make
from support.tiny import classified, hook_count, random_states, texts, tiny_bert

EVERYTHING = ("trace", "max_eigenvalue", "layerwise", "hessian_max_eigenvalue")


def test_head_is_exact_with_an_unequal_last_batch() -> None:
    model, data = mlp(secrets.randbits(32)), points(37)
    (result,) = measure_relative_flatness(model, data, "head", EVERYTHING, loss_fn=cross_entropy, batch_size=8)
    true = reference(model, data, 4)
    assert result.estimator == "closed_form" and result.num_items == 37
    assert result.kappa == pytest.approx(true.kappa.item(), rel=1e-10)
    assert result.kappa_max == pytest.approx(true.kappa_max.item(), rel=1e-8)
    assert result.layerwise == pytest.approx(true.layerwise.item(), rel=1e-10)
    assert result.loss == pytest.approx(cross_entropy(model, data.tensors).item(), rel=1e-12)
    assert sum(result.item_kappas) / 37 == pytest.approx(result.kappa, rel=1e-12)


@pytest.mark.parametrize("index", [0, 2, 4])
def test_equals_curvlinops(index: int) -> None:
    """The Hessian of independent software, with the eigenvalues of LAPACK."""
    model, data = mlp(secrets.randbits(32)), points(20)
    weight = model[index].weight
    (result,) = measure_relative_flatness(
        model, data, str(index), EVERYTHING, loss_fn=cross_entropy, batch_size=6, probes=300
    )
    d, m = weight.shape
    batches = [(x, y) for x, y in DataLoader(data, batch_size=20)]
    h = HessianLinearOperator(model, nn.CrossEntropyLoss(), [weight], batches) @ torch.eye(d * m, dtype=torch.float64)
    blocks = torch.stack([h.view(d, m, d, m)[s, :, s] for s in range(d)])
    kappa_max = (weight.square().sum(1) * torch.linalg.eigvalsh(blocks)[:, -1]).sum().item()
    kappa = torch.einsum("si,ti,sjtj->", weight, weight, h.view(d, m, d, m)).item()
    assert result.kappa_max == pytest.approx(kappa_max, rel=1e-8)
    assert result.hessian_max_eigenvalue == pytest.approx(torch.linalg.eigvalsh(h)[-1].item(), rel=1e-5)
    assert result.kappa == pytest.approx(kappa, rel=1e-8)  # no more probes than outputs are needed: it is exact
    assert result.standard_error_probes == 0
    layerwise = (weight.square().sum() * h.trace()).item()
    assert result.layerwise == pytest.approx(layerwise, rel=1e-8)
    assert result.hessian_trace == pytest.approx(h.trace().item(), rel=1e-9)


@pytest.mark.parametrize("tail", TAILS)
def test_every_kind_of_tail_agrees_with_dense(tail: str) -> None:
    """Coupled rows, several rows an item, normalizations in evaluation mode: within the probes' error."""
    case = make(tail, secrets.randbits(32))
    case.model.eval()
    data = TensorDataset(case.inputs, torch.zeros(len(case.inputs)))
    (result,) = measure_relative_flatness(
        case.model,
        data,
        case.layer,
        ("trace", "layerwise", "max_eigenvalue"),
        loss_fn=lambda model, batch: case.loss(model(batch[0])),
        probes=600,
        batch_size=6,
    )
    true = dense_flatness(case.run(), case.layer.weight)
    assert abs(result.kappa - true.kappa.item()) < 4.5 * result.standard_error_probes + 1e-12
    if not math.isnan(result.hessian_trace_error):  # items are coupled, so there is one unit, and no error
        error = result.weight_norm**2 * result.hessian_trace_error
        assert abs(result.layerwise - true.layerwise.item()) < 4.5 * error
    assert result.kappa_max == pytest.approx(true.kappa_max.item(), rel=1e-5)


def test_probe_error_is_calibrated() -> None:
    """Kappa over 60 seeds scatters by the standard error that is reported for the probes."""
    model, data = mlp(3), points(30)
    results = [
        measure_relative_flatness(model, data, "0", ("trace",), loss_fn=cross_entropy, seed=seed, batch_size=30)[0]
        for seed in range(60)
    ]
    true = reference(model, data, 0).kappa.item()
    scores = torch.tensor([(r.kappa - true) / r.standard_error_probes for r in results])
    assert 0.7 < scores.std().item() < 1.5
    assert abs(scores.mean().item()) < 4 / math.sqrt(60)
    total = torch.tensor([r.standard_error for r in results]).mean()
    of_items = [0.0 if math.isnan(r.standard_error_items) else r.standard_error_items for r in results]  # NaN: hidden
    parts = torch.tensor(
        [math.hypot(e, r.standard_error_probes) for e, r in zip(of_items, results, strict=True)]
    ).mean()
    torch.testing.assert_close(total, parts, rtol=0.1, atol=0)


def test_item_error_is_calibrated() -> None:
    """Closed form: over independent samples of 40 items kappa scatters by the standard error."""
    model = mlp(4)
    results = [
        measure_relative_flatness(model, points(40, seed), "head", ("trace",), loss_fn=cross_entropy)[0]
        for seed in range(80)
    ]
    scatter = torch.tensor([r.kappa for r in results]).std().item()
    reported = torch.tensor([r.standard_error for r in results]).mean().item()
    assert reported == pytest.approx(scatter, rel=0.35)
    assert all(r.standard_error_probes == 0 for r in results)


def test_gauss_newton_is_not_negative_and_equals_hessian_where_the_tail_is_piecewise_linear() -> None:
    model, data = mlp(5, nn.ReLU), points(20)
    two = [
        measure_relative_flatness(model, data, "2", ("trace",), loss_fn=cross_entropy, estimator=name)[0]
        for name in ("hessian", "gauss_newton")
    ]
    assert two[0].kappa == pytest.approx(two[1].kappa, rel=1e-9) and two[1].kappa > 0
    tanh = mlp(5)
    (newton,) = measure_relative_flatness(tanh, data, "2", ("trace",), loss_fn=cross_entropy, estimator="gauss_newton")
    (hessian,) = measure_relative_flatness(tanh, data, "2", ("trace",), loss_fn=cross_entropy, estimator="hessian")
    assert newton.kappa != pytest.approx(hessian.kappa, rel=1e-3)


def test_fewer_products_than_hutchinson_on_the_whole_hessian() -> None:
    """At equal error at least ten times fewer products with the data set's Hessian than Hutchinson's for Tr H takes.

    Probes of single items average out over the items; one vector for the whole weight does not.
    """
    model, data = mlp(6), points(2000)
    loss, weight = cross_entropy(model, data.tensors), model[2].weight
    hessian = weight_hessian(loss, weight).detach().flatten(2).flatten(0, 1)
    signs = torch.randint(0, 2, (4000, len(hessian)), dtype=torch.float64) * 2 - 1
    hutchinson = (signs @ hessian * signs).sum(1)
    theirs = (hutchinson.std() / hutchinson.mean()).item()
    ours = [
        measure_relative_flatness(
            model, data, "2", ("trace",), loss_fn=cross_entropy, batch_size=500, probes=1, seed=seed
        )[0].kappa
        for seed in range(40)
    ]
    one_probe = (torch.tensor(ours).std() / reference(model, data, 2).kappa).item()
    assert (theirs / one_probe) ** 2 >= 10


def test_normalised_features_equal_folding_them_into_the_weights() -> None:
    model, data = mlp(7), points(30)
    (result,) = measure_relative_flatness(
        model, data, "head", EVERYTHING, loss_fn=cross_entropy, batch_size=8, normalize_features=True
    )
    with torch.no_grad():
        sigma = model[:4](data.tensors[0]).std(0, correction=0)
        tail = nn.Linear(6, 3).double()
        tail.weight.copy_(model[4].weight * sigma)
        tail.bias.copy_(model[4].bias)
        phi = model[:4](data.tensors[0]) / sigma
    true = dense_flatness(F.cross_entropy(tail(phi), data.tensors[1]), tail.weight)
    assert result.kappa == pytest.approx(true.kappa.item(), rel=1e-9)
    assert result.kappa_max == pytest.approx(true.kappa_max.item(), rel=1e-8)
    assert result.layerwise == pytest.approx(true.layerwise.item(), rel=1e-9)
    assert result.weight_norm == pytest.approx(tail.weight.norm().item(), rel=1e-9)


def test_normalised_hidden_layer_does_not_depend_on_the_scale_of_single_features() -> None:
    model, data = mlp(8, nn.ReLU), points(30)
    options = {"loss_fn": cross_entropy, "normalize_features": True, "batch_size": 11}
    (before,) = measure_relative_flatness(model, data, "2", **options)
    with torch.no_grad():
        factors = torch.rand(7, dtype=torch.float64) * 9 + 0.5
        model[0].weight.mul_(factors[:, None])
        model[0].bias.mul_(factors)
        model[2].weight.div_(factors)
    (after,) = measure_relative_flatness(model, data, "2", **options)
    assert after.kappa == pytest.approx(before.kappa, rel=1e-9)
    assert after.kappa_max == pytest.approx(before.kappa_max, rel=1e-8)


def test_weight_decay_is_a_part_of_the_objective() -> None:
    model, data, alpha = mlp(9), points(20), 0.03
    weight = model[4].weight
    (result,) = measure_relative_flatness(model, data, "head", EVERYTHING, loss_fn=cross_entropy, weight_decay=alpha)
    true = dense_flatness(cross_entropy(model, data.tensors) + alpha * weight.square().sum(), weight)
    assert result.kappa == pytest.approx(true.kappa.item(), rel=1e-9)
    assert result.kappa_max == pytest.approx(true.kappa_max.item(), rel=1e-8)
    assert result.layerwise == pytest.approx(true.layerwise.item(), rel=1e-9)


@pytest.mark.parametrize("index", [0, 2, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.03])
def test_trace_and_largest_eigenvalue_are_those_of_the_objective(index: int, alpha: float) -> None:
    """The Hessian of loss + alpha ||W||^2 by autograd, as one matrix over the whole data."""
    model, data = mlp(secrets.randbits(32)), points(20)
    (result,) = measure_relative_flatness(
        model, data, str(index), EVERYTHING, loss_fn=cross_entropy, batch_size=6, probes=300, weight_decay=alpha
    )
    weight, (x, y) = model[index].weight.detach(), data.tensors

    def objective(flat: torch.Tensor) -> torch.Tensor:
        given = {f"{index}.weight": flat.view_as(weight)}
        return F.cross_entropy(torch.func.functional_call(model, given, x), y) + alpha * flat.square().sum()

    hessian = torch.autograd.functional.hessian(objective, weight.flatten())
    assert result.hessian_trace == pytest.approx(hessian.trace().item(), rel=1e-9)
    assert result.hessian_max_eigenvalue == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-5)


def test_batches_do_not_matter_for_a_mean_over_tokens() -> None:
    """Items with few labeled tokens count by these; unlike a mean of the batches' means."""
    model = llama().double()  # with its loss in float64: in float32 its rounding depends on the batch and the processor
    one, many = (measure_relative_flatness(model, texts(40), "head", batch_size=size)[0] for size in (40, 7))
    for name in ("kappa", "kappa_max", "layerwise", "standard_error", "loss"):
        assert getattr(many, name) == pytest.approx(getattr(one, name), rel=1e-7), name


def test_batches_do_not_matter_for_gpt2_either() -> None:
    """A causal language model whose class does not say so, with items of different lengths."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    data = texts(20)
    for k, item in enumerate(data):
        item["labels"] = [*item["input_ids"][: 2 + k % 4], *[-100] * (4 - k % 4)]
    model = GPT2LMHeadModel(config).double()
    one, many = (measure_relative_flatness(model, data, "head", ("trace",), batch_size=size)[0] for size in (20, 3))
    assert many.kappa == pytest.approx(one.kappa, rel=1e-6) and many.loss == pytest.approx(one.loss, rel=1e-6)


def test_nothing_is_left_changed() -> None:
    model, data = tiny_bert(), classified(10)
    model.train()
    model.classifier.bias.requires_grad_(False)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    before, states = [p.clone() for p in model.parameters()], random_states()
    measure_relative_flatness(model, DataLoader(torch_items(data), batch_size=4, shuffle=True), "all", ("trace",))
    with pytest.raises(ZeroDivisionError):
        measure_relative_flatness(model, data, loss_fn=lambda model, batch: 1 / 0)
    assert states == random_states()
    assert model.training and all(m.training for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert hook_count(model) == 0
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["classifier.bias"]
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert model.bert.pooler.dense.weight.grad is None


def torch_items(data: list) -> list:
    return [{k: torch.tensor(v) for k, v in item.items()} for item in data]


def test_layers_below_attention_and_frozen_models_can_be_measured() -> None:
    """Attention by torch's fused kernel has no second derivative; measuring takes the one that has."""
    model = tiny_bert().requires_grad_(False)
    assert model.config._attn_implementation == "sdpa"
    name = "bert.encoder.layer.0.attention.self.value"
    result = measure_relative_flatness(model, classified(6), [name, "head"], ("trace",), probes=40)
    assert result[name].coupling == "items" and math.isfinite(result[name].kappa)
    one, both = measure_relative_flatness(model, classified(6), "head"), result["classifier"]
    assert both.kappa == pytest.approx(one[0].kappa, rel=1e-12)


def test_operations_in_place_do_not_change_what_was_captured() -> None:
    model, data = mlp(10, nn.ReLU), points(20)
    plain, in_place = (
        measure_relative_flatness(model, data, "2", loss_fn=cross_entropy)[0].kappa
        for model[3] in (nn.ReLU(), nn.ReLU(inplace=True))
    )
    assert plain == pytest.approx(in_place, rel=1e-12)


def test_stops_at_the_requested_error() -> None:
    model, data = mlp(11), points(3000)
    (result,) = measure_relative_flatness(
        model, data, "head", loss_fn=cross_entropy, relative_error=0.05, batch_size=20
    )
    assert result.num_items < 2000 and result.standard_error <= 0.05 * result.kappa
    part = TensorDataset(*(t[: result.num_items] for t in data.tensors))
    (same,) = measure_relative_flatness(model, part, "head", loss_fn=cross_entropy, batch_size=20)
    assert result.kappa == pytest.approx(same.kappa, rel=1e-12)
    assert result.kappa_max == pytest.approx(same.kappa_max, rel=1e-9)
    with pytest.warns(UserWarning, match="more items"):
        measure_relative_flatness(model, points(20), "head", loss_fn=cross_entropy, relative_error=0.001)


def test_one_item_and_half_precision() -> None:
    (one,) = measure_relative_flatness(mlp(12), points(1), "head", loss_fn=cross_entropy)
    assert one.num_items == 1 and math.isnan(one.standard_error) and one.kappa > 0
    model = tiny_bert()
    (full,) = measure_relative_flatness(model, classified(12), "head", ("trace",))
    (half,) = measure_relative_flatness(model.bfloat16(), classified(12), "head", ("trace",))
    assert half.kappa == pytest.approx(full.kappa, rel=0.1)


def test_float16_stays_in_range() -> None:
    """Second derivatives of a mean over many items are below the smallest number of float16."""
    results = []
    for dtype in (torch.float32, torch.float16):
        model = tiny_bert().to(dtype)
        results.append(measure_relative_flatness(model, classified(64), batch_size=64, probes=1))
    for full, half in zip(*results, strict=True):
        assert half.kappa == pytest.approx(full.kappa, rel=0.1)
        assert half.kappa_max == pytest.approx(full.kappa_max, rel=0.1)


def test_an_error_that_the_probes_hide_is_not_zero() -> None:
    """The variance over items, less that of the probes, is estimated: below zero it is unknown."""
    hidden, shown, exact = RunningMean(), RunningMean(), RunningMean()
    hidden.add(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.ones(2))
    shown.add(torch.tensor([[9.0, 9.1], [1.0, 1.1]]), torch.ones(2))
    exact.add(torch.ones(3, 1), torch.ones(3))
    assert math.isnan(hidden.mean().items_error) and hidden.mean().probes_error > 0
    assert 0 < shown.mean().items_error < shown.mean().error
    assert exact.mean(exact=True).items_error == 0
