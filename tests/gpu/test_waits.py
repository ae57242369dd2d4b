"""A step without a look never makes the host wait for the GPU; layer, head and loss may be on different devices."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback

from hf_fam import FAMCallback, RelativeFlatness, attach
from support.tiny import fam_trainer, tiny_bert

ROWS, WIDTH, CLASSES = 16, 8, 5
LAYER = {"layer": "2"}
TERMS: dict[str, dict[str, Any]] = {
    "closed form": {},
    "closed form, weights only": {"gradient": "weights_only"},
    "closed form, centered": {"center": True},
    "closed form, smoothed": {"smoothing": 0.1},
    "row probes": {"estimator": "row_probes"},
    "large head": {"estimator": "closed_form"},
    "large head, row probes": {"estimator": "row_probes"},
    "hessian": {**LAYER, "estimator": "hessian"},
    "gauss_newton": {**LAYER, "probes": 2},
    "gauss_newton, centered": {**LAYER, "center": True},
    "perturbation": {**LAYER, "estimator": "perturbation"},
    "dense": {**LAYER, "estimator": "dense"},
}


@pytest.fixture
def forbidden(cuda: torch.device) -> Iterator[Callable[[bool], None]]:
    """Function that makes a wait an error, or allows it again."""
    yield lambda on: torch.cuda.set_sync_debug_mode("error" if on else "default")
    torch.cuda.set_sync_debug_mode("default")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)
    )


def data(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, WIDTH, device=device), torch.randint(CLASSES, (ROWS,), device=device)


@pytest.mark.parametrize("name", TERMS)
def test_the_term_alone(
    name: str, cuda: torch.device, forbidden: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("large"):
        monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", CLASSES - 1)
    model, (inputs, labels) = network().to(cuda), data(cuda)
    flatness = RelativeFlatness(model, **TERMS[name])
    for step in range(8):
        model.zero_grad()
        forbidden(step in (3, 5, 6, 7))  # the others are looked at
        with flatness.capture(0.1):
            loss = F.cross_entropy(model(inputs), labels)
        (loss + 0.1 * flatness(loss)).backward()
        forbidden(False)


def test_attach(cuda: torch.device, forbidden: Callable[[bool], None]) -> None:
    model, (inputs, labels) = network().to(cuda), data(cuda)
    attached = attach(model, 0.1)
    for step in range(8):
        model.zero_grad()
        forbidden(step in (3, 5, 6, 7))
        F.cross_entropy(model(inputs), labels).backward()
        forbidden(False)
    assert attached.kappa() > 0


class Recorder(TrainerCallback):
    """Counts waits of every step: torch warns at each."""

    def __init__(self, seen: list[Any]) -> None:
        self._seen = seen
        self.waits: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seen.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.waits.append(sum("synchroniz" in str(w.message) for w in self._seen))


@pytest.mark.parametrize("name", ["head", "pooler", "callback"])
def test_a_step_of_the_trainer_waits_as_often_as_plain_training(name: str, tmp_path: Path, cuda: torch.device) -> None:
    found = []
    for is_plain in (True, False):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            recorder = Recorder(seen)
            callbacks: list[TrainerCallback] = [recorder]
            if name == "callback" and not is_plain:
                callbacks.append(FAMCallback())
            options: dict[str, Any] = {"fam_layer": "representation"} if name == "pooler" else {}
            strength = {"fam_lambda": 0.0} if is_plain or name == "callback" else {}
            trainer = fam_trainer(
                tmp_path / str(is_plain), tiny_bert(dropout=0.0), callbacks=callbacks, max_steps=8, logging_steps=100,
                use_cpu=False, **options, **strength,
            )  # fmt: skip
            torch.cuda.set_sync_debug_mode("warn")
            trainer.train()
            torch.cuda.set_sync_debug_mode("default")
        found.append(recorder.waits)
    plain, fam = found
    assert min(plain) > 0, "the counter does not count"
    assert [fam[k] for k in (3, 5, 6, 7)] == [plain[k] for k in (3, 5, 6, 7)], found


class TwoDevices(nn.Module):
    """The trunk on one device, the head on another, as with ``device_map``."""

    def __init__(self, trunk: torch.device, head: torch.device) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).double().to(trunk)
        self.classifier = nn.Linear(WIDTH, CLASSES).double().to(head)
        self.device_of_head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.trunk(x).to(self.device_of_head).tanh())


APART: dict[str, dict[str, Any]] = {
    "closed form": {},
    "hessian": {"layer": "trunk.2", "estimator": "hessian", "probes": 2},
    "gauss_newton": {"layer": "trunk.2", "center": True},
    "perturbation": {"layer": "trunk.2", "estimator": "perturbation"},
}


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("place", ["head apart", "loss apart"])
def test_devices_may_differ(name: str, place: str, device: torch.device) -> None:
    host = torch.device("cpu")
    inputs, labels = torch.randn(ROWS, WIDTH).double(), torch.randint(CLASSES, (ROWS,))
    found = []
    placements = ((host, host, host), (host, device, device) if place == "head apart" else (device, device, host))
    for trunk, head, loss_device in placements:
        model = TwoDevices(trunk, head)
        flatness = RelativeFlatness(model, **APART[name])
        for _ in range(2):  # the second batch has a mean
            model.zero_grad()
            with flatness.capture(0.1):
                loss = F.cross_entropy(model(inputs.to(trunk)).to(loss_device), labels.to(loss_device))
            kappa = flatness(loss)
            flatness.gradient_squares(loss, kappa)
            (loss + 0.1 * kappa).backward()
        found.append([p.grad.cpu() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
