"""A hand-written Accelerate loop: RelativeFlatness and attach, accumulation, an unequal last batch."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hf_fam import RelativeFlatness, attach
from support.tiny import assert_same_weights, classified, tiny_bert, weights

# The last of three batches is a smaller one.
ITEMS = classified(20)


def loop(
    way: str, batch: int = 8, accumulated: int = 1, strength: float = 0.5, layer: str = "classifier", items: int = 20
) -> nn.Module:
    """One epoch."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    model = tiny_bert(dropout=0.0)
    loader = DataLoader(ITEMS[:items], batch_size=batch, collate_fn=default_data_collator)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    model.train()
    flatness = RelativeFlatness(model, layer, "hessian" if layer != "classifier" else "auto") if way == "loss" else None
    attached = attach(model, strength) if way == "attach" else None
    for step, inputs in enumerate(loader):
        with accelerator.accumulate(model):
            if flatness is not None:
                flatness.seed(1, step)
                with flatness.capture():
                    loss = model(**inputs).loss
                accelerator.backward(loss + strength * flatness(loss))
            else:
                accelerator.backward(model(**inputs).loss)
            optimizer.step()
            optimizer.zero_grad()
    for hooked in (flatness, attached):
        if hooked is not None:
            hooked.detach()
    return accelerator.unwrap_model(model)


def assert_close(one: nn.Module, other: nn.Module) -> None:
    expected = weights(other)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["loss", "attach"])
def test_accumulation_is_one_batch(way: str) -> None:
    assert_close(loop(way, 4, 2, items=16), loop(way, items=16))


def test_both_ways_take_the_same_steps_and_others_than_plain_training() -> None:
    plain, in_loss, attached = (loop(way) for way in ("plain", "loss", "attach"))
    assert_close(in_loss, attached)
    assert (plain.classifier.weight - attached.classifier.weight).abs().max() > 1e-4


@pytest.mark.parametrize("way", ["loss", "attach"])
def test_strength_zero_is_plain_training(way: str) -> None:
    assert_same_weights(loop("plain"), loop(way, strength=0.0))


def test_hidden_layer_moves_the_weights() -> None:
    plain, hidden = loop("plain"), loop("loss", strength=10.0, layer="bert.pooler.dense")
    assert (plain.bert.pooler.dense.weight - hidden.bert.pooler.dense.weight).abs().max() > 1e-5


def test_models_trained_in_a_loop_can_be_copied() -> None:
    copy.deepcopy(loop("attach"))
