"""One clear sentence for what cannot be measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from hf_fam import measure_relative_flatness
from hf_fam.calculus.derivatives import SecondDerivativeError
from support.measured import cross_entropy, mlp, points
from support.tiny import classified, tiny_bert


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layers": "clasifier"}, "did you mean 'classifier'"),
        ({"layers": []}, r"layers=\[\]: give"),
        ({"measures": ("kappa",)}, "measures='kappa'.*'trace'"),
        ({"measures": "trace"}, "measures='trace'.*sequence"),
        ({"estimator": "dense"}, "estimator='dense'.*'hessian'"),
        ({"probes": 0}, "probes=0: give a whole number from 1"),
        ({"relative_error": 5}, "relative_error=5.*below 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_arguments(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        measure_relative_flatness(tiny_bert(), classified(4), **given)


def test_data() -> None:
    model, data = tiny_bert(), classified(4)
    without = [{k: v for k, v in item.items() if k != "labels"} for item in data]
    with pytest.raises(ValueError, match=r"returned no loss.*'input_ids'.*labels"):
        measure_relative_flatness(model, without)
    renamed = [{"tokens": item["input_ids"], "labels": item["labels"]} for item in data]
    with pytest.raises(ValueError, match=r"no column 'input_ids'.*'tokens'"):
        measure_relative_flatness(model, renamed)
    with pytest.raises(ValueError, match="data is empty"):
        measure_relative_flatness(model, [])
    with pytest.raises(ValueError, match=r"outside the classes.*num_labels=3.*Target 7"):
        measure_relative_flatness(model, [*data, {**data[0], "labels": 7}])
    with pytest.raises(ValueError, match=r"from 60 to 61 in a batch of length 2.*vocab_size=50.*positions?_?.*=16"):
        measure_relative_flatness(model, [{"input_ids": [60, 61], "labels": 0}])
    with pytest.raises(TypeError, match="dict.*choose a split"):
        measure_relative_flatness(model, {"train": data})
    with pytest.raises(TypeError, match="int.*Dataset"):
        measure_relative_flatness(model, 3)
    ragged = [*data, {"input_ids": [1, 2], "labels": 0}]
    with pytest.raises(ValueError, match="differ in length.*DataCollatorWithPadding"):
        measure_relative_flatness(model, ragged)


def test_an_empty_iterable_data_set() -> None:
    class Nothing(IterableDataset):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ValueError, match="data is empty"):
        measure_relative_flatness(mlp(), Nothing(), loss_fn=cross_entropy)


def test_losses() -> None:
    with pytest.raises(ValueError, match="batch is a list.*loss_fn"):
        measure_relative_flatness(mlp(), points(4))
    with pytest.raises(ValueError, match=r"scalar tensor, not shape \(4,\)"):
        measure_relative_flatness(mlp(), points(4), loss_fn=lambda model, batch: model(batch[0]).sum(1))


def test_a_layer_without_a_second_derivative() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.exp()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient

    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Once.apply(x)

    model = mlp()
    model[3] = Layer()
    with pytest.raises(SecondDerivativeError, match='no second derivative.*layers="head"'):
        measure_relative_flatness(model, points(4), "2", loss_fn=cross_entropy)
    assert measure_relative_flatness(model, points(4), "head", loss_fn=cross_entropy)[0].kappa > 0


def test_a_layer_that_is_not_called() -> None:
    model = mlp()
    model.register_module("spare", nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="'spare' was not called"):
        measure_relative_flatness(model, points(4), "spare", loss_fn=lambda m, b: cross_entropy(m[:5], b))
