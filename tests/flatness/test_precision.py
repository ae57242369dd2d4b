"""kappa and its gradient in half precision, against float64 on the same captured features and logits."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness, attach
from hf_fam.flatness.batch import Seeds
from hf_fam.flatness.directions import draw
from hf_fam.flatness.estimators.gauss_newton import gauss_newton_probe
from hf_fam.flatness.estimators.hessian import hessian_probe
from hf_fam.flatness.softmax_head import softmax_flatness
from hf_fam.layer.kinds import linear_map_of
from support.tiny import fam_trainer, logged, tiny_bert

TOKENS, VOCABULARY, WIDTH = 4096, 1000, 32
HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def language_head(spread: float, confident: bool, seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A trunk and a head whose logits have a given standard deviation, a batch, and its labels."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, WIDTH), nn.Tanh(), nn.Linear(WIDTH, VOCABULARY, bias=False))
    inputs, labels = torch.randn(TOKENS, 16), torch.randint(0, VOCABULARY, (TOKENS,))
    with torch.no_grad():
        model[2].weight.mul_(spread / model(inputs).std())
        labels = model(inputs).argmax(-1) if confident else labels
    labels[::5] = -100
    return model, inputs, labels


@HALVES
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
@pytest.mark.parametrize(("spread", "confident"), [(0.1, False), (1.0, True), (10.0, False), (30.0, True)])
@pytest.mark.filterwarnings("error")  # a rejected closed form warns
def test_closed_form_within_one_percent(half: torch.dtype, autocast: bool, spread: float, confident: bool) -> None:
    model, inputs, labels = language_head(spread, confident)
    if not autocast:
        model, inputs = model.to(half), inputs.to(half)
    flatness = RelativeFlatness(model, estimator="closed_form")
    with torch.autocast("cpu", dtype=half, enabled=autocast):
        with flatness.capture():
            logits = model(inputs)
        captured = flatness.watch.captures
        kappa = flatness(F.cross_entropy(logits, labels))
    assert flatness.estimator == "closed_form"
    assert logits.dtype == half
    weights = (labels != -100).double() / (labels != -100).sum()
    (seen,) = captured
    expected = softmax_flatness(seen.features.double(), logits.double(), model[2].weight.double(), weights)
    assert kappa.item() == pytest.approx(expected.item(), rel=0.01)


@HALVES
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_item_weights_from_the_gradient_within_one_percent(
    half: torch.dtype, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of large vocabularies."""
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 100)
    test_closed_form_within_one_percent(half, True, spread, False)


@HALVES
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_injected_term_within_one_percent(half: torch.dtype, spread: float) -> None:
    """Under a gradient scaler, as float16 needs one; its scale is inside kappa, too."""
    model, inputs, labels = language_head(spread, confident=False)
    seen: list[tuple[Tensor, Tensor]] = []
    model[2].register_forward_hook(lambda module, args, output: seen.append((args[0].detach(), output.detach())))
    attached = attach(model, 0.1)
    scale = 65536.0 if half == torch.float16 else 1.0
    with torch.autocast("cpu", dtype=half):
        loss = F.cross_entropy(model(inputs), labels)
    (scale * loss).backward()
    weights = (labels != -100).double() / (labels != -100).sum()
    phi, z = (t.double() for t in seen[0])
    expected = softmax_flatness(phi, z, model[2].weight.double(), weights)
    assert attached.kappa() / scale == pytest.approx(expected.item(), rel=0.01)


@HALVES
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
@pytest.mark.parametrize(("rows", "share"), [(16, 1.0), (2048, 1 / 2048)])
def test_mean_of_probes_within_three_percent(
    half: torch.dtype, autocast: bool, estimator: str, rows: int, share: float
) -> None:
    """The reference computes the tail again in float64, from the captured z and with the same random signs.

    Once with a share of a mean so small that second derivatives underflow, as those of many classes do.
    """
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 20))
    with torch.no_grad():
        model[4].weight.mul_(4)
    inputs, labels = torch.randn(rows, 8), torch.randint(0, 20, (rows,))
    if not autocast:
        model, inputs = model.to(half), inputs.to(half)
    probes = 32
    flatness = RelativeFlatness(model, "2", estimator, probes=probes)
    flatness.seed(3)
    with torch.autocast("cpu", dtype=half, enabled=autocast):
        with flatness.capture():
            loss = share * F.cross_entropy(model(inputs), labels)
        (seen,) = flatness.watch.captures
        kappa = flatness(loss)
    seeds, coupling = Seeds((3,)), flatness.method.coupling_finder.coupling
    assert coupling.value == "rows"

    tail, layer = copy.deepcopy(model[3:]).double(), copy.deepcopy(model[2]).double()
    phi, z = seen.features.detach().double(), seen.pre_activations.detach().double().requires_grad_()
    assert seen.pre_activations.dtype == half
    logits = tail(z)
    expected = torch.zeros((), dtype=torch.float64)
    numbered = dataclasses.replace(seeds, numbers=(*seeds.numbers, 1))
    for k in range(probes):
        u = draw([phi], linear_map_of(layer), coupling, numbered, k)
        exact = share * F.cross_entropy(logits, labels)
        expected += (
            hessian_probe(exact, [z], u) if estimator == "hessian" else gauss_newton_probe(exact, [z], [logits], u)
        ).detach()
    assert kappa.item() == pytest.approx(expected.item() / probes, rel=0.03)


@HALVES
@pytest.mark.parametrize(("layer", "estimator"), [("4", "closed_form"), ("2", "gauss_newton"), ("2", "hessian")])
def test_gradient_of_the_term_agrees_in_direction_and_norm(half: torch.dtype, layer: str, estimator: str) -> None:
    """Of all weights, against the same model in float64; float16 under a loss scale, as always."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 20))
    with torch.no_grad():
        model[4].weight.mul_(4)
    inputs, labels = torch.randn(512, 8), torch.randint(0, 20, (512,))

    def gradient(model: nn.Sequential, inputs: Tensor, scale: float) -> Tensor:
        flatness = RelativeFlatness(model, layer, estimator, probes=4)
        flatness.seed(5)
        with flatness.capture():
            loss = F.cross_entropy(model(inputs), labels)
        term = 0.01 * flatness(loss)
        found = torch.autograd.grad(scale * term, list(model.parameters()), materialize_grads=True)
        return torch.cat([g.flatten().double() for g in found]) / scale

    exact = gradient(copy.deepcopy(model).double(), inputs.double(), 1.0)
    with torch.autocast("cpu", dtype=half):
        found = gradient(model, inputs, 65536.0 if half == torch.float16 else 1.0)
    assert F.cosine_similarity(found, exact, dim=0) > 0.99
    assert found.norm().item() == pytest.approx(exact.norm().item(), rel=0.03)


class SteppedTwice(torch.optim.SGD):
    """Counts its steps."""

    steps = 0

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        self.steps += 1
        return super().step(closure)


@pytest.mark.parametrize("way", ["loss", "injection"])
def test_a_step_that_the_gradient_scaler_skips_is_skipped_for_both_terms(way: str) -> None:
    """The first scale overflows: the weights stay; the next step is that of float32 without a scaler, to rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    inputs, labels = torch.randn(16, 3), torch.randint(0, 4, (16,))
    exact = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, backoff_factor=2.0**-10)

    def backward(model: nn.Module, context: contextlib.AbstractContextManager[None], scale: Tensor | float) -> None:
        flatness = RelativeFlatness(model) if way == "loss" else None
        attached = attach(model, 0.1) if way == "injection" else None
        with context, flatness.capture() if flatness else contextlib.nullcontext():
            loss = F.cross_entropy(model(inputs), labels)
        total = loss if flatness is None else loss + 0.1 * flatness(loss)
        (total * scale).backward()
        for hooked in (flatness, attached):
            if hooked is not None:
                hooked.detach()

    optimizer = SteppedTwice(model.parameters(), lr=0.5)
    before = copy.deepcopy(model.state_dict())
    for skipped in (True, False):
        backward(model, torch.autocast("cpu", dtype=torch.float16), scaler.scale(torch.ones(())))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert optimizer.steps == (0 if skipped else 1)
        if skipped:
            assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    reference = torch.optim.SGD(exact.parameters(), lr=0.5)
    backward(exact, contextlib.nullcontext(), 1.0)
    reference.step()
    for name, weight in exact.state_dict().items():
        moved, expected = model.state_dict()[name] - before[name], weight - before[name]
        assert (moved - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.parametrize("given", [{}, {"fam_layer": "representation"}], ids=["head", "hidden"])
def test_trainer_in_bf16_logs_what_it_logs_in_float32(tmp_path: Path, given: dict[str, str]) -> None:
    """``bf16=True``: the same first steps, to the precision of bfloat16."""
    runs = []
    for bf16 in (False, True):
        trainer = fam_trainer(
            tmp_path, tiny_bert(dropout=0.0), fam_lambda=0.1, bf16=bf16, learning_rate=1e-3, max_steps=3, **given
        )
        seen = set()
        trainer.model.classifier.register_forward_hook(lambda module, args, output, seen=seen: seen.add(output.dtype))
        trainer.train()
        assert seen == {torch.bfloat16 if bf16 else torch.float32}
        runs.append((logged(trainer, "fam_kappa"), logged(trainer, "loss")))
    (kappa, loss), (kappa_bf16, loss_bf16) = runs
    assert kappa_bf16 == pytest.approx(kappa, rel=0.03)
    assert loss_bf16 == pytest.approx(loss, rel=0.01)


@HALVES
def test_gradient_ratio_of_many_tokens(half: torch.dtype) -> None:
    model, inputs, labels = language_head(1.0, confident=False)

    def ratio(model: nn.Module, inputs: Tensor) -> float:
        flatness = RelativeFlatness(model)
        with flatness.capture():
            loss = F.cross_entropy(model(inputs), labels) / 64
        of_kappa, of_loss = flatness.gradient_squares(loss, flatness(loss)).tolist()
        return (of_kappa / of_loss) ** 0.5

    exact = ratio(copy.deepcopy(model).double(), inputs.double())
    with torch.autocast("cpu", dtype=half):
        assert ratio(model, inputs) == pytest.approx(exact, rel=0.03)
