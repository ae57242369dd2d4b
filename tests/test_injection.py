"""The injected term is that of the closed form in the loss, in any loop, compiled or not."""

from __future__ import annotations

import secrets

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness, attach
from hf_fam.flatness.hard_labels import is_hard_label_gradient
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
    model, inputs, y = network().to(dtype), torch.randn(6, 3).to(dtype), torch.randint(0, 4, (6,))
    attached = attach(model, STRENGTH)
    with pytest.warns(UserWarning, match="is not that of softmax cross-entropy with hard labels") as seen:
        for _ in range(3):
            loss_of(model(inputs), y).backward()
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
