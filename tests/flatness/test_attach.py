"""The injected term is that of the closed form in the loss, in any loop, compiled or not."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
import secrets
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness, attach
from hf_fam.flatness.hard_labels import is_hard_label_gradient
from hf_fam.flatness.softmax_head import softmax_flatness
from support.layers import kind_case

STRENGTH = 0.3


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def losses() -> dict[str, tuple[tuple[int, ...], object]]:
    y, tokens = torch.randint(0, 4, (6,)), torch.randint(0, 4, (3, 5))
    tokens[:, ::2] = -100
    weights = torch.rand(4, dtype=torch.float64) + 0.1
    return {
        "mean": ((6,), lambda z: F.cross_entropy(z, y)),
        "class weights": ((6,), lambda z: F.cross_entropy(z, y, weight=weights)),
        "tokens": ((3, 5), lambda z: F.cross_entropy(z.view(-1, 4), tokens.view(-1), reduction="sum") / 11),
        "shifted": ((3, 5), lambda z: F.cross_entropy(z[:, :-1].reshape(-1, 4), tokens[:, 1:].reshape(-1))),
        "scaled": ((6,), lambda z: 65536 * F.cross_entropy(z, y)),
    }


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", losses())
def test_gradients_equal_those_of_the_closed_form_in_the_loss(name: str) -> None:
    torch.manual_seed(secrets.randbits(32))
    shape, loss_of = losses()[name]
    model, inputs = network(), torch.randn(*shape, 3, dtype=torch.float64)
    flatness = RelativeFlatness(model)
    with flatness.capture():
        logits = model(inputs)
    loss = loss_of(logits)
    kappa = flatness(loss)
    (loss + STRENGTH * kappa).backward()
    expected = gradients(model)
    flatness.detach()

    attached = attach(model, STRENGTH)
    injected = loss_of(model(inputs))
    injected.backward()
    assert torch.equal(injected, loss), "the value stays the task loss"
    torch.testing.assert_close(gradients(model), expected, rtol=1e-10, atol=1e-12)
    assert attached.kappa() == pytest.approx(kappa.item(), rel=1e-6)


def test_tied_language_model_head() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, vocab_size=30,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    ids = torch.randint(0, 30, (2, 7))
    flatness = RelativeFlatness(model)
    with flatness.capture():
        loss = model(input_ids=ids, labels=ids).loss
    (loss + STRENGTH * flatness(loss)).backward()
    expected = gradients(model)
    flatness.detach()
    attach(model, STRENGTH)
    model(input_ids=ids, labels=ids).loss.backward()
    scale = float(max(g.abs().max() for g in expected))  # the model takes its loss in float32
    for found, true in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-6, atol=1e-6 * scale)


def test_evaluation_is_untouched_and_detach_removes_everything() -> None:
    model, inputs = network(), torch.randn(6, 3, dtype=torch.float64)
    expected = model(inputs)
    attached = attach(model, STRENGTH)
    assert torch.equal(model.eval()(inputs), expected)
    assert "Inject" not in type(model.eval()(inputs).grad_fn).__name__
    attached.detach()
    assert not model[2]._forward_hooks


def test_strength_can_be_changed_and_is_checked() -> None:
    attached = attach(network(), 0.1)
    attached.strength = 0.2
    assert attached.strength == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"strength=-1.0: give a finite lambda of at least 0"):
        attached.strength = -1.0


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every head counts as large, and chunks hold three rows of 30 classes."""
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 1)
    monkeypatch.setattr("hf_fam.flatness.chunks.CHUNK_ELEMENTS", 100)


def in_the_loss(model: nn.Module, run: Callable[[], Tensor], **options: object) -> tuple[list[Tensor], float]:
    """Gradients and kappa of the term added to the loss: captured without a strength."""
    flatness = RelativeFlatness(model, **options)
    flatness.seed(3)
    with flatness.capture():
        loss = run()
    kappa = flatness(loss)
    assert kappa.requires_grad
    (loss + STRENGTH * kappa).backward()
    flatness.detach()
    return gradients(model), kappa.item()


def in_the_backward_pass(model: nn.Module, run: Callable[[], Tensor], scale: float = 1.0, **options: object):
    flatness = RelativeFlatness(model, **options)
    flatness.seed(3)
    with flatness.capture(STRENGTH):
        loss = run()
    kappa = flatness(loss)
    squares = flatness.gradient_squares(loss, kappa)
    assert kappa == 0 and not kappa.requires_grad
    (scale * loss).backward()
    flatness.detach()
    return gradients(model), kappa.item(), squares


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("estimator", ["closed_form", "row_probes"])
@pytest.mark.parametrize("gradient", ["full", "weights_only"])
@pytest.mark.parametrize("name", [*losses(), "one item", "no label"])
@pytest.mark.usefixtures("large")
def test_captured_with_a_strength_a_large_head_acts_in_the_backward_pass(
    name: str, gradient: str, estimator: str, smoothing: float
) -> None:
    torch.manual_seed(secrets.randbits(32))
    one, none = torch.randint(0, 4, (1,)), torch.full((6,), -100)
    shape, loss_of = {
        **losses(),
        "one item": ((1,), lambda z: F.cross_entropy(z, one)),
        "no label": ((6,), lambda z: F.cross_entropy(z, none, reduction="sum") / 7),
    }[name]
    model, inputs = network(), torch.randn(*shape, 3, dtype=torch.float64)
    options = {"gradient": gradient, "estimator": estimator, "smoothing": smoothing}
    if name == "no label":
        found, kappa, squares = in_the_backward_pass(model, lambda: loss_of(model(inputs)), **options)
        assert kappa == 0 and all(not g.any() for g in found) and (squares is None or not squares.any())
        return
    expected, true = in_the_loss(model, lambda: loss_of(model(inputs)), **options)
    for scale in (1.0, 1024.0):
        found, kappa, _ = in_the_backward_pass(model, lambda: loss_of(model(inputs)), scale, **options)
        torch.testing.assert_close([g / scale for g in found], expected, rtol=1e-9, atol=1e-11 * float(true + 1))
        assert kappa == pytest.approx(true, rel=1e-9)


@pytest.mark.usefixtures("large")
def test_the_ratio_of_gradients_is_that_at_the_logits() -> None:
    model, inputs, y = network(), torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    *_, squares = in_the_backward_pass(model, lambda: F.cross_entropy(model(inputs), y), estimator="closed_form")
    flatness = RelativeFlatness(model, estimator="closed_form")
    with flatness.capture():
        z = model(inputs)
    loss = F.cross_entropy(z, y)
    of_kappa, of_loss = (torch.autograd.grad(t, z, retain_graph=True)[0] for t in (flatness(loss), loss))
    torch.testing.assert_close(squares, torch.stack([of_kappa, of_loss]).square().sum((1, 2)))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("frozen", ["head", "trunk"])
def test_frozen_parts_of_a_large_head(frozen: str) -> None:
    model, inputs, y = network(), torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    model[2 if frozen == "head" else 0].requires_grad_(False)
    run = lambda: F.cross_entropy(model(inputs), y)  # noqa: E731
    trainable = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
    flatness = RelativeFlatness(model, estimator="closed_form")
    with flatness.capture():
        loss = run()
    (loss + STRENGTH * flatness(loss)).backward()
    expected = gradients(trainable)
    with flatness.capture(STRENGTH):
        loss = run()
    flatness(loss)
    loss.backward()
    torch.testing.assert_close(gradients(trainable), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", ["smoothing", "focal", "sigmoid"])
def test_a_loss_whose_graph_proves_nothing_gets_the_term_in_the_loss(kind: str) -> None:
    """Focal loss has cross-entropy's direction of gradient: it must not be taken for it."""
    model, inputs, y = network(), torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    ce = lambda z: F.cross_entropy(z, y, reduction="none")  # noqa: E731
    loss_of = {
        "smoothing": lambda z: F.cross_entropy(z, y, label_smoothing=0.1),
        "focal": lambda z: ((1 - torch.exp(-ce(z))) ** 2 * ce(z)).mean(),
        "sigmoid": lambda z: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 4).double()),
    }[kind]
    flatness = RelativeFlatness(model, estimator="closed_form")
    for _ in range(2):
        with flatness.capture(STRENGTH):
            loss = loss_of(model(inputs))
        with (
            pytest.warns(UserWarning, match="Hessian probes")
            if flatness.estimator == "closed_form" and (kind == "focal")
            else contextlib.nullcontext()
        ):
            kappa = flatness(loss)
        assert kappa.requires_grad
        (loss + 0.0 * kappa).backward()
        found = gradients(model)
        flatness.detach()
        loss_of(model(inputs)).backward()
        torch.testing.assert_close(found, gradients(model), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("large")
def test_half_precision_logits(dtype: torch.dtype) -> None:
    """Probabilities are read off a gradient of half precision: kappa within 1 % of float64's on the same numbers."""
    torch.manual_seed(0)
    phi, w = torch.randn(40, 16).to(dtype), (torch.randn(200, 16) / 3).to(dtype)
    y = torch.randint(0, 200, (40,))
    z = phi @ w.T
    c = torch.full((40,), 1 / 40, dtype=torch.float64)
    exact = softmax_flatness(phi.double(), z.double(), w.double(), c).item()
    model = nn.Linear(16, 200, bias=False, dtype=dtype)
    model.weight.data.copy_(w)
    flatness = RelativeFlatness(model, estimator="closed_form")
    with flatness.capture(STRENGTH):
        logits = model(phi)
    loss = F.cross_entropy(logits.float(), y)
    kappa = flatness(loss)
    (1024 * loss).backward()
    assert kappa.item() == pytest.approx(exact, rel=0.01)


@pytest.mark.usefixtures("large")
def test_confident_rows_keep_their_kappa() -> None:
    """1 - p underflows next to 1, and must not when it is read off the gradient."""
    phi, y = torch.eye(4, dtype=torch.float64), torch.arange(4)
    model = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    model.weight.data.copy_(40.0 * torch.eye(4))
    flatness = RelativeFlatness(model, estimator="closed_form")
    with flatness.capture(STRENGTH):
        loss = F.cross_entropy(model(phi), y, reduction="sum")
    kappa = flatness(loss)
    loss.backward()
    true = 4 * 3 * math.exp(-40.0) * 2 * 40.0**2  # ||phi||^2 sum_k p_k ||w_k - w_y||^2
    assert kappa.item() == pytest.approx(true, rel=1e-6)


def test_row_probes_are_checked_and_drawn_anew() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"row_probes=-1: give a whole number from 0"):
        attach(model, STRENGTH, row_probes=-1)
    inputs, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    attached = attach(model, STRENGTH, row_probes=1)
    kappas = set()
    for _ in range(4):
        F.cross_entropy(model(inputs), y).backward()
        kappas.add(attached.kappa())
    assert len(kappas) > 1


@pytest.mark.slow
def test_fully_compiled_with_row_probes() -> None:
    """In the mean over many steps the compiled model's kappa is the exact one."""
    model, inputs, y = network(), torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    exact = attach(model, 0.0)
    F.cross_entropy(model(inputs), y).backward()
    true = exact.kappa()
    exact.detach()
    attached = attach(model, STRENGTH, row_probes=3)
    compiled = torch.compile(model, fullgraph=True)
    kappas = []
    for _ in range(400):
        F.cross_entropy(compiled(inputs), y).backward()
        kappas.append(attached.kappa())
    found = torch.tensor(kappas)
    assert found.std() > 0
    assert abs(found.mean() - true) < 5 * found.std() / len(kappas) ** 0.5


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("estimator", ["closed_form", "row_probes"])
def test_the_weights_gradient_is_written_into_the_one_of_the_loss(estimator: str) -> None:
    """No second buffer of the size of W; and no hook is left on W, with or without a backward pass."""
    model = nn.Linear(3, 4).double()
    flatness = RelativeFlatness(model, estimator=estimator)
    inputs, y, given = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,)), []
    handle = model.weight.register_hook(lambda g: given.append(g.data_ptr()))  # before ours
    for _ in range(2):
        with flatness.capture(STRENGTH):
            loss = F.cross_entropy(model(inputs), y)
        flatness(loss)
    loss.backward()
    assert given == [model.weight.grad.data_ptr()]
    handle.remove()
    assert not model.weight._backward_hooks
    with flatness.capture(STRENGTH):
        F.cross_entropy(model(inputs), y)
    assert model.weight._backward_hooks
    flatness.detach()
    assert not model.weight._backward_hooks


def test_heads_of_other_kinds() -> None:
    """A convolution, GPT-2's linear layer, and an adapter, to whose factors the injected gradient goes."""
    for kind in ("lora", "conv1d", "dora", "lora convolution", "quantized"):
        case = kind_case(kind, secrets.randbits(32), head=True)
        trained = [p for p in case.model.parameters() if p.requires_grad]
        flatness = RelativeFlatness(case.model)
        with flatness.capture():
            loss = case.loss(case.model(case.inputs))
        kappa = flatness(loss)
        expected = torch.autograd.grad(loss + STRENGTH * kappa, trained)
        flatness.detach()
        attached = attach(case.model, STRENGTH)
        found = torch.autograd.grad(case.loss(case.model(case.inputs)), [*trained, attached._strength])
        torch.testing.assert_close(found[:-1], expected, rtol=1e-9, atol=1e-12)
        assert found[-1].item() == pytest.approx(kappa.item(), rel=1e-6)


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.3),
        lambda z, y: F.cross_entropy(z, torch.eye(4, dtype=z.dtype)[y] * 0.6 + 0.1),
        lambda z, y: F.binary_cross_entropy_with_logits(z, torch.eye(4, dtype=z.dtype)[y]),
        lambda z, y: F.mse_loss(z, torch.eye(4, dtype=z.dtype)[y]),
        lambda z, y: F.cross_entropy(30 * torch.tanh(z / 3), y),
        lambda z, y: F.cross_entropy(z[:3], y[:3]) - F.cross_entropy(z[3:], y[3:]),
    ],
    ids=["smoothed", "soft", "sigmoid", "squares", "capped logits", "rejected answers"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_that_it_is_not_for_are_noticed_once(loss_of, dtype: torch.dtype) -> None:
    """In bfloat16 smoothed labels are overlooked in about one random network of twenty, so this one is fixed."""
    if dtype == torch.bfloat16:
        torch.manual_seed(0)
    model = network().to(dtype)
    attached = attach(model, STRENGTH)
    with pytest.warns(UserWarning, match="is not that of softmax cross-entropy with hard labels") as seen:
        for _ in range(3):
            loss_of(model(torch.randn(6, 3).to(dtype)), torch.randint(0, 4, (6,))).backward()
    assert len(seen) == 1
    attached.detach()


@pytest.mark.parametrize("name", losses())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("error")
def test_losses_that_it_is_for_are_not_doubted(name: str, dtype: torch.dtype) -> None:
    """Confident, nearly certain and wrong models included."""
    shape, loss_of = losses()[name]
    for factor in (0.01, 1.0, 30.0, 300.0):
        model, inputs = network().to(dtype), torch.randn(*shape, 3).to(dtype)
        with torch.no_grad():
            model[2].weight.mul_(factor)
        attached = attach(model, STRENGTH)
        if name == "class weights" and dtype != torch.float64:
            F.cross_entropy(model(inputs), torch.randint(0, 4, shape), weight=torch.rand(4).to(dtype)).backward()
        else:
            loss_of(model(inputs)).backward()
        attached.detach()


def test_large_vocabularies_are_not_doubted_and_smoothing_there_is_noticed() -> None:
    z, y = torch.randn(700, 20_000).mul_(3), torch.randint(0, 20_000, (700,))
    z.requires_grad_()
    for smoothing in (0.0, 0.1):
        (g,) = torch.autograd.grad(F.cross_entropy(z, y, label_smoothing=smoothing), z)
        assert is_hard_label_gradient(g, z) == (smoothing == 0)
        assert is_hard_label_gradient(g.bfloat16(), z.bfloat16()) == (smoothing == 0)


def test_a_head_of_one_output_is_refused() -> None:
    with pytest.raises(ValueError, match="layer '2' has one output"):
        attach(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), STRENGTH)


def test_inaction_is_explained() -> None:
    attached = attach(network(), STRENGTH)
    with pytest.warns(UserWarning, match="No backward pass has gone through the flatness term at '2'"):
        assert attached.kappa() == 0.0


def test_a_frozen_trunk_trains_the_head_alone() -> None:
    model, inputs, y = network(), torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    model[0].requires_grad_(False)
    attached = attach(model, STRENGTH)
    F.cross_entropy(model(inputs), y).backward()
    assert attached.kappa() > 0
    assert model[0].weight.grad is None


def test_the_term_is_not_attached_twice() -> None:
    model = network()
    attached = attach(model, STRENGTH)
    with pytest.raises(ValueError, match=r"layer '2' has a flatness term already: detach\(\) the handle"):
        attach(model, STRENGTH)
    attached.detach()
    attach(model, STRENGTH)


def test_copies_of_the_model_do_not_have_the_term() -> None:
    """They would go on adding it wherever they are trained."""
    model = network()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))

    def gradient(of: nn.Module) -> Tensor:
        of.zero_grad()
        F.cross_entropy(of(x), y).backward()
        return gradients(of)[0]

    plain = gradient(model)
    attached = attach(model, 10.0)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert not torch.equal(gradient(model), plain) and all(torch.equal(gradient(c), plain) for c in copies)
    attach(copies[0], 10.0).detach()  # as on any other model
    attached.detach()
