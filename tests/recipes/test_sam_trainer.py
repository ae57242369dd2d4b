"""The SAM of the recipes is SAM: by hand, with accumulation, with batch normalization."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("datasets")
pytest.importorskip("pytorch_optimizer")

from hf_fam.recipes.common.arguments import MethodArguments
from hf_fam.recipes.common.methods import make_trainer
from support.tiny import arguments

RHO, RATE = 0.3, 0.05


class Net(nn.Module):
    """A classifier in float64; its normalization couples the rows of a batch."""

    def __init__(self, normalized: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(5) if normalized else nn.Identity()
        self.layers = nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3)).double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(x)
        loss = nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def rows(count: int) -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(4, dtype=torch.float64), "labels": torch.tensor(k % 3)} for k in range(count)]


def trained(folder: Path, net: nn.Module, data: list[dict[str, Tensor]], **given: Any) -> nn.Module:
    args = arguments(folder, **{"max_steps": 3, "learning_rate": RATE, "max_grad_norm": 0.0, **given})
    args.train_sampling_strategy = "sequential"
    args.lr_scheduler_type = "constant"
    trainer = make_trainer(MethodArguments(method="sam", sam_rho=RHO), args, model=net, train_dataset=data)
    trainer.train()
    return net


def by_hand(net: nn.Module, data: list[dict[str, Tensor]], batch: int, steps: int, optimizer: Any) -> nn.Module:
    """Foret et al. 2021, equation 2 and algorithm 1; running statistics are those of the first pass."""
    weights = [*net.parameters()]

    def gradient() -> None:
        optimizer.zero_grad()
        net(**{name: torch.stack([row[name] for row in part]) for name in part[0]})["loss"].backward()

    for step in range(steps):
        part = data[step * batch : (step + 1) * batch]
        gradient()
        before = [w.detach().clone() for w in weights]
        norm = torch.stack([w.grad.norm() for w in weights]).norm()
        with torch.no_grad():
            for w in weights:
                w += RHO * w.grad / norm
        statistics = [b.clone() for b in net.buffers()]
        gradient()
        with torch.no_grad():
            for w, old in zip(weights, before, strict=True):
                w.copy_(old)
            for b, old in zip(net.buffers(), statistics, strict=True):
                b.copy_(old)
        optimizer.step()
    return net


def assert_same(one: nn.Module, other: nn.Module, tolerance: float) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_by_hand(tmp_path: Path, optim: str, normalized: bool) -> None:
    net, data = Net(normalized), rows(24)
    reference = copy.deepcopy(net)
    given: dict[str, Any] = {"optim": optim, "per_device_train_batch_size": 8}
    if optim == "sgd":
        given["optim_args"] = "momentum=0.9,nesterov=true"
        base: Any = torch.optim.SGD(reference.parameters(), RATE, momentum=0.9, nesterov=True)
    else:
        base = torch.optim.AdamW(reference.parameters(), RATE, weight_decay=0.0)
    expected = by_hand(reference, data, 8, 3, base)
    assert_same(trained(tmp_path, net, data, **given), expected, 1e-6)  # the norm is taken in float32


def test_accumulated_batches_are_one_batch(tmp_path: Path) -> None:
    net, data = Net(False), rows(24)
    other = copy.deepcopy(net)
    trained(tmp_path / "a", net, data, per_device_train_batch_size=8)
    trained(tmp_path / "b", other, data, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(net, other, 1e-9)


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SAM is made around AdamW or sgd"):
        trained(tmp_path, Net(False), rows(8), optim="adafactor")
