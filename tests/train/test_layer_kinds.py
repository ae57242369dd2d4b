"""Layers of every kind through FAMTrainer: GPT-2's, shared blocks, convolutions, adapters and quantized weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_fam import RelativeFlatness
from support.tiny import classified, fam_trainer, hook_count, logged, texts, tiny_bert, tiny_llama, weights

ESTIMATORS = ["hessian", "gauss_newton", "perturbation"]


def gpt2() -> tuple[nn.Module, list[Any], str]:
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 16}
    config = GPT2Config(**sizes, num_labels=3, pad_token_id=0, attn_implementation="eager")
    return GPT2ForSequenceClassification(config), classified(), "transformer.h.1.mlp.c_fc"


def albert() -> tuple[nn.Module, list[Any], str]:
    sizes = {"vocab_size": 50, "embedding_size": 8, "hidden_size": 16, "intermediate_size": 16}
    config = AlbertConfig(
        **sizes, num_hidden_layers=3, num_attention_heads=2, num_labels=3, attn_implementation="eager"
    )
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output"
    return AlbertForSequenceClassification(config), classified(), layer


def resnet() -> tuple[nn.Module, list[Any], str]:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3)
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = [{"pixel_values": image, "labels": k % 3} for k, image in enumerate(images)]
    return ResNetForImageClassification(config), data, "resnet.encoder.stages.1.layers.0.layer.1.convolution"


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("build", [gpt2, albert, resnet])
def test_a_step_of_the_trainer(build: Any, estimator: str, tmp_path: Path) -> None:
    """The term moves the weights, and kappa is that of the estimator on the same batch."""
    torch.manual_seed(0)
    model, data, layer = build()
    initial, hooks = weights(model), hook_count(model)
    found = []
    for strength in (0.0, 0.1):
        model.load_state_dict(initial)
        trainer = fam_trainer(
            tmp_path, model, train_dataset=data, fam_layer=layer, fam_estimator=estimator, fam_lambda=strength,
            max_steps=1,
        )  # fmt: skip
        trainer.train()
        found.append(weights(model))
    assert any(not torch.equal(found[0][name], found[1][name]) for name in initial)
    assert all(value.isfinite().all() for value in found[1].values())
    assert torch.tensor(logged(trainer, "fam_kappa")).isfinite().all()
    assert hook_count(model) == hooks


def lora(**config: Any) -> nn.Module:
    given = {"r": 2, "target_modules": ["query", "pooler.dense"], "lora_dropout": 0.3, **config}
    return get_peft_model(tiny_bert(), LoraConfig(task_type=TaskType.SEQ_CLS, **given))


@pytest.mark.parametrize(
    ("layer", "estimator"),
    [("classifier", "closed_form"), *(("bert.pooler.dense", estimator) for estimator in ESTIMATORS)],
)
def test_adapters_learn_and_the_base_stays(layer: str, estimator: str, tmp_path: Path) -> None:
    model = lora()
    before = weights(model)
    trainer = fam_trainer(tmp_path, model, fam_layer=layer, fam_estimator=estimator, fam_lambda=0.1)
    trainer.train()
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name or "modules_to_save" in name for name in changed), changed
    assert {name for name, p in model.named_parameters() if p.requires_grad} == changed
    assert trainer.relative_flatness.layer.name.startswith("base_model.model.")


def test_the_term_alone_reaches_both_factors() -> None:
    model = lora()
    layer = RelativeFlatness(model, "bert.pooler.dense", "hessian").layer
    nn.init.normal_(layer.module.lora_B["default"].weight)
    flatness = RelativeFlatness(model, "bert.pooler.dense", "hessian", gradient="weights_only")
    with flatness.capture():
        loss = model(input_ids=torch.randint(3, 50, (4, 5)), labels=torch.arange(4) % 3).loss
    flatness(loss).backward()
    reached = {name.split(".")[-3] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"lora_A", "lora_B"}


def test_adapters_of_a_language_model_head(tmp_path: Path) -> None:
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=["lm_head", "q_proj"], lora_dropout=0.1)
    model = get_peft_model(tiny_llama(), config)
    before = weights(model)
    trainer = fam_trainer(tmp_path, model, train_dataset=texts(), fam_lambda=0.1, max_steps=2)
    trainer.train()
    assert trainer.relative_flatness.layer.name == "base_model.model.lm_head"
    assert trainer.relative_flatness.estimator == "closed_form"
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


class Wide(nn.Module):
    """A classifier whose layers are wide enough for bitsandbytes' blocks."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.embedding, self.layer, self.classifier = nn.Embedding(50, 64), linear(64, 64), nn.Linear(64, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(self.layer(self.embedding(input_ids).mean(1)).tanh())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_on_quantised_weights(bits: int, estimator: str, tmp_path: Path) -> None:
    """bitsandbytes on the CPU: forward, backward, twice differentiated, with adapters and without."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    nn4, nn8 = bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt
    plain = Wide(nn.Linear)
    model = Wide(nn4 if bits == 4 else lambda m, d: nn8(m, d, has_fp16_weights=False))
    model.load_state_dict(plain.state_dict())
    model = model.to("cpu")
    layer = model.layer
    codes = layer.weight.detach().clone()
    kappas = []
    for network in (plain, model):
        flatness = RelativeFlatness(network, "layer", "gauss_newton", probes=50)
        with flatness.capture():
            loss = network(torch.arange(20).view(4, 5), torch.arange(4) % 3)["loss"]
        kappas.append(flatness(loss).item())
    assert kappas[0] == pytest.approx(kappas[1], rel=0.1), "the same signs, nearly the same weight"
    setattr(model, f"is_loaded_in_{bits}bit", True)  # as transformers says it to PEFT
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["layer"], modules_to_save=["classifier"]))
    assert type(model.base_model.model.layer).__name__ == type(layer).__name__, "PEFT's wrapper for this quantization"
    trainer = fam_trainer(tmp_path, model, fam_layer="layer", fam_estimator=estimator, fam_lambda=0.1)
    trainer.train()
    assert torch.equal(layer.weight, codes)
    assert all(factor.weight.any() for factor in model.base_model.model.layer.lora_B.values())
