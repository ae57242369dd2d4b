"""PEFT's trainable_token_indices with a tied head: W has the trained rows, and the term reaches them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_fam import FAMTrainer, RelativeFlatness
from hf_fam.layer.feature_layer import FeatureLayer
from support.tiny import arguments, logged, texts, weights

ROWS = [3, 7]


def tiny_gpt2(vocabulary: int = 50, tied: bool = True) -> nn.Module:
    """In float64 it computes everything in float64, which a Llama does not."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = GPT2Config(vocab_size=vocabulary, tie_word_embeddings=tied, **sizes, **dropout)
    return GPT2LMHeadModel(config)


def adapted(vocabulary: int = 50) -> nn.Module:
    config = LoraConfig(target_modules=["c_attn"], trainable_token_indices=ROWS, fan_in_fan_out=True)
    model = get_peft_model(tiny_gpt2(vocabulary), config)
    with torch.no_grad():
        delta(model).add_(0.3 * torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
    return model.double()


def delta(model: nn.Module) -> nn.Parameter:
    (parameter,) = [p for name, p in model.named_parameters() if "trainable_tokens_delta" in name]
    return parameter


def kappa_of(model: nn.Module, estimator: str) -> Tensor:
    batch = torch.tensor([[3, 7, 9, 3], [4, 7, 7, 5]])
    flatness = RelativeFlatness(model, estimator=estimator)
    with flatness.capture():
        logits = model(input_ids=batch).logits  # the model's own loss is in float32
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
    kappa = flatness(loss)
    flatness.detach()
    return kappa


@pytest.mark.parametrize(
    "name", ["head", "lm_head", "base_model.model.lm_head", "base_model.model.lm_head.token_adapter"]
)
def test_the_weight_has_the_trained_rows(name: str) -> None:
    model = adapted()
    layer = FeatureLayer(model, name)
    table = model.get_submodule("base_model.model.transformer.wte.token_adapter.base_layer").weight
    assert torch.equal(layer.weight[ROWS], delta(model))
    others = [k for k in range(50) if k not in ROWS]
    assert torch.equal(layer.weight[others], table[others])
    with model.disable_adapter():
        assert torch.equal(layer.weight, table)


def plain(model: nn.Module) -> nn.Module:
    """The same function as a model without adapters, whose head has its own weight."""
    same = tiny_gpt2(tied=False).double()
    table = FeatureLayer(model, "head").weight.detach()
    with torch.no_grad():
        same.transformer.wte.weight.copy_(table)
        same.lm_head.weight.copy_(table)
    return same


def test_value_and_gradient_by_the_trained_rows() -> None:
    """Against the full Hessian and finite differences of it."""
    model = adapted()
    kappa = kappa_of(model, "closed_form")
    assert kappa.item() == pytest.approx(kappa_of(plain(model), "dense").item(), rel=1e-10)
    (gradient,) = torch.autograd.grad(kappa, delta(model))
    for row, column in ((0, 2), (1, 11)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                delta(model)[row, column] += step
            values.append(kappa_of(plain(model), "dense").item())
            with torch.no_grad():
                delta(model)[row, column] -= step
        assert gradient[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("vocabulary", [50, 4200])
def test_the_trainer_trains_it(tmp_path: Path, vocabulary: int) -> None:
    """A large head's term acts in the backward pass, where W is no leaf."""
    trained = []
    for strength in (0.0, 1.0):
        model = adapted(vocabulary).float()
        trainer = FAMTrainer(model=model, args=arguments(tmp_path, fam_lambda=strength), train_dataset=texts())
        trainer.train()
        trained.append(weights(model))
    assert all(kappa > 0 for kappa in logged(trainer, "fam_kappa"))
    name = next(name for name in trained[0] if "trainable_tokens_delta" in name)
    assert not torch.equal(trained[0][name], trained[1][name])
