"""The certificate of transformers: dict batches, tokens as rows, shared blocks, Conv1D, attention above the layer."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertForMaskedLM, GPT2Config, GPT2LMHeadModel

from hf_fam.landscape import split_certificate, split_neuron
from hf_fam.landscape.objective import Objective, float64_copy, move
from support.tiny import classified, tiny_bert


def test_transformer_with_its_own_loss() -> None:
    """Dict batches; every token is a row; attention above the layer, in a kernel without second derivatives."""
    model = tiny_bert(dropout=0.5)
    rows = classified(6)
    batches = [
        {"input_ids": torch.tensor([r["input_ids"] for r in part]), "labels": torch.tensor([r["labels"] for r in part])}
        for part in (rows[:4], rows[4:])
    ]
    layer = "bert.encoder.layer.0.intermediate.dense"
    result = split_certificate(model, None, batches, layer, neuron=3)
    assert result.next_layer == "bert.encoder.layer.0.output.dense"
    assert result.B.shape == (17, 17) and result.D.shape == (17, 16) and result.verdict.kind == "undecided"
    own = split_certificate(model, lambda outputs, batch: outputs.loss, batches, layer, neuron=3)
    torch.testing.assert_close(result.B, own.B)
    assert_derivatives(model, batches, result)


def gpt2() -> nn.Module:
    """Conv1D, which stores its weight the other way round."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=16, **ids))


def causal_loss(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    """transformers' own casts the logits to float32."""
    return nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def albert() -> nn.Module:
    """One block that is run twice: the neuron sees every row twice."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    return AlbertForMaskedLM(AlbertConfig(vocab_size=50, num_hidden_layers=2, **sizes))


@pytest.mark.parametrize(
    ("build", "layer", "loss"),
    [
        (gpt2, "transformer.h.0.mlp.c_fc", causal_loss),
        (albert, "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn", None),
    ],
)
def test_other_transformers(build: Any, layer: str, loss: Any) -> None:
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 5  # far from linear
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    batches = [{"input_ids": tokens, "labels": tokens.flip(0)}]
    assert_derivatives(model, batches, split_certificate(model, loss, batches, layer, neuron=3), loss)


def test_loss_in_float32_is_refused() -> None:
    tokens = torch.tensor([[5, 6, 7, 8]])
    data = [{"input_ids": tokens, "labels": tokens}]
    with pytest.raises(ValueError, match="computed in torch.float32, which is not precise enough.*outputs.logits"):
        split_certificate(gpt2(), None, data, "transformer.h.0.mlp.c_fc", 0)


def assert_derivatives(model: nn.Module, batches: list[dict[str, Tensor]], result: Any, loss_of: Any = None) -> None:
    """D and ratio (1 - ratio) B as finite differences of the loss of a network that was split by hand."""
    ratio, step, i, s = 0.3, 1e-3, 2, 5
    wide = float64_copy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its configuration cannot describe it
        new = split_neuron(wide, result.layer, result.neuron, ratio)
    conv1d = isinstance(model, GPT2LMHeadModel)
    first, second = (
        weight.T if conv1d else weight
        for weight in (wide.get_submodule(name).weight.data for name in (result.layer, result.next_layer))
    )
    objective = Objective(loss_of, batches)

    def loss(q: float, w: float) -> float:
        with torch.no_grad():
            first[result.neuron, i] += (1 - ratio) * q
            first[new, i] -= ratio * q
            second[s, result.neuron] += w
            second[s, new] -= w
            value = objective.value(wide)
            first[result.neuron, i] -= (1 - ratio) * q
            first[new, i] += ratio * q
            second[s, result.neuron] -= w
            second[s, new] += w
        return value

    mixed = (loss(step, step) - loss(step, -step) - loss(-step, step) + loss(-step, -step)) / (4 * step**2)
    twice = (loss(step, 0) - 2 * loss(0, 0) + loss(-step, 0)) / step**2
    assert mixed == pytest.approx(result.D[i, s].item(), rel=1e-3)
    assert twice == pytest.approx(ratio * (1 - ratio) * result.B[i, i].item(), rel=1e-3)


def test_second_derivatives_through_attention() -> None:
    """The fused kernels that transformers chooses by itself have none."""
    model = float64_copy(tiny_bert())
    assert model.config._attn_implementation == "sdpa"
    rows = classified(3)
    batch = {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}
    objective = Objective(None, [batch])
    torch.manual_seed(0)
    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    product = objective.hessian_product(model, vector)
    step = 1e-5
    move(model, step * vector)
    ahead = objective.value_and_gradient(model)[1]
    move(model, -2 * step * vector)
    behind = objective.value_and_gradient(model)[1]
    torch.testing.assert_close(
        product, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-6 * product.abs().max().item()
    )
