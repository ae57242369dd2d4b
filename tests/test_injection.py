"""The injected term is that of the closed form in the loss, in any loop, compiled or not."""

from __future__ import annotations

import secrets

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.injection import attach
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


@pytest.mark.slow
def test_fully_compiled_model() -> None:
    model, inputs, labels = network(), torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    attach(model, STRENGTH)
    F.cross_entropy(model(inputs), labels).backward()
    expected = gradients(model)
    compiled = torch.compile(model, fullgraph=True)
    F.cross_entropy(compiled(inputs), labels).backward()
    torch.testing.assert_close(gradients(model), expected, rtol=1e-12, atol=1e-14)


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
