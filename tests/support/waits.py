"""Steps on a simulated accelerator; tests/invariants/test_waits.py starts this file in a process of its own.

It writes as JSON how often the host waited for the device in each step, and whether the numbers are those of the CPU.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before accelerate is imported
    os.environ["ACCELERATE_TORCH_DEVICE"] = "card:0"

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback

from hf_fam import FAMCallback, RelativeFlatness, attach
from hf_fam.calculus.recheck_schedule import RecheckSchedule
from hf_fam.train.log import FlatnessLog
from hf_fam.train.trainer import with_gradient_of
from support.card import Card, install
from support.tails import Attention, Residual
from support.tiny import classified, fam_trainer, texts, tiny_bert, tiny_llama

# More than are looked at in a row: 0, 1, 2, 4.
STEPS = 8

CPU = torch.device("cpu")
# Doctests import this module in a process of other tests, which a new type of device would break.
CARD = install() if __name__ == "__main__" else CPU
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double()


def tokens() -> nn.Module:
    """The same for items of four tokens, which attention couples."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), Residual(Attention(4)), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double()


class Image(nn.Module):
    """A convolution below a classifier, for items that come as rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
        self.classifier = nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.convolution(x).tanh().mean((-1, -2)))


def cross_entropy(z: Tensor) -> Tensor:
    return F.cross_entropy(z, LABELS.to(z.device))


def token_loss(z: Tensor) -> Tensor:
    labels = LABELS.repeat(z.shape[0] * z.shape[1] // len(LABELS)).to(z.device)
    return F.cross_entropy(z.flatten(0, 1), torch.where(labels == 0, -100, labels))


ROWS, ITEMS, IMAGES = (8, 4), (8, 4, 4), (8, 2, 5, 5)
# The options of `RelativeFlatness`, the model, the shape of its inputs, the loss, and whether the head counts as large.
TERMS: dict[str, tuple[dict[str, Any], Callable[[], nn.Module], tuple[int, ...], Callable[[Tensor], Tensor], bool]] = {
    "closed form": ({}, network, ROWS, cross_entropy, False),
    "closed form, weights only": ({"gradient": "weights_only"}, network, ROWS, cross_entropy, False),
    "closed form, centered": ({"center": True}, network, ROWS, cross_entropy, False),
    "closed form of tokens": ({}, tokens, ITEMS, token_loss, False),
    "closed form, smoothing": ({}, network, ROWS, lambda z: smoothed(z), False),
    "closed form, squared error": ({}, network, ROWS, lambda z: z.square().mean(), False),
    "row probes": ({"estimator": "row_probes"}, network, ROWS, cross_entropy, False),
    "large head": ({"estimator": "closed_form"}, tokens, ITEMS, token_loss, True),
    "large head, row probes": ({}, tokens, ITEMS, token_loss, True),
    "hessian": ({"layer": "2", "estimator": "hessian"}, network, ROWS, cross_entropy, False),
    "hessian of coupled tokens": ({"layer": "0", "estimator": "hessian"}, tokens, ITEMS, token_loss, False),
    "hessian, weights only": (
        {"layer": "2", "estimator": "hessian", "gradient": "weights_only"}, network, ROWS, cross_entropy, False,
    ),
    "gauss_newton": ({"layer": "2", "probes": 2}, network, ROWS, cross_entropy, False),
    "gauss_newton, centered": ({"layer": "2", "center": True}, network, ROWS, cross_entropy, False),
    "gauss_newton of a convolution": ({"layer": "convolution"}, Image, IMAGES, cross_entropy, False),
    "perturbation": ({"layer": "2", "estimator": "perturbation"}, network, ROWS, cross_entropy, False),
    "perturbation of coupled tokens": ({"layer": "0", "estimator": "perturbation"}, tokens, ITEMS, token_loss, False),
    "dense": ({"layer": "2", "estimator": "dense"}, network, ROWS, cross_entropy, False),
}  # fmt: skip


def smoothed(z: Tensor) -> Tensor:
    return F.cross_entropy(z, LABELS.to(z.device), label_smoothing=0.1)


def is_looked_at(step: int) -> bool:
    schedule = RecheckSchedule()
    return [schedule.is_due() for _ in range(step + 1)][-1]


def steps_of(name: str, device: torch.device, card: Card) -> dict[str, Any]:
    """Waits of the term alone, of each step, and its kappas and gradients."""
    options, make, shape, loss_of, is_large = TERMS[name]
    set_large(is_large)
    model = make().to(device)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)
    flatness, strength, waits, kappas = RelativeFlatness(model, **options), 0.1, [], []
    for step in range(STEPS):
        model.zero_grad()
        card.clear()
        with flatness.capture(strength):
            logits = model(inputs)
        loss = loss_of(logits)
        card.clear()  # the labels
        kappa = flatness(loss)
        (loss + strength * kappa).backward()
        if step % 3 == 0:
            flatness.seed(step)
        waits.append(dict(card.waits))
        kappas.append(kappa.detach())
    flatness.detach()
    gradients = [p.grad.to("cpu") for p in model.parameters() if p.grad is not None]
    return {"waits": waits, "kappas": torch.stack(kappas).to("cpu"), "gradients": gradients}


def set_large(is_large: bool) -> None:
    import hf_fam.flatness.vocabulary as vocabulary

    vocabulary.LARGE_VOCABULARY = 2 if is_large else 4096


def term_alone(name: str) -> dict[str, Any]:
    with Card() as card:
        found = steps_of(name, CARD, card)
        expected = steps_of(name, CPU, card)
    pairs = zip([found["kappas"], *found["gradients"]], [expected["kappas"], *expected["gradients"]], strict=True)
    error = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)
    size = float(found["kappas"].abs().min())
    return {"waits": found["waits"], "error": error, "smallest_kappa": size}


def attached_alone() -> list[dict[str, int]]:
    """Waits of `attach`, which checks the first three backward passes."""
    waits = []
    with Card() as card:
        model = network().to(CARD)
        inputs = torch.randn(8, 4, dtype=torch.float64).to(CARD)
        attached = attach(model, 0.1)
        for _ in range(STEPS):
            loss = cross_entropy(model(inputs))
            card.clear()
            loss.backward()
            waits.append(dict(card.waits))
        attached.detach()
    return waits


class Recorder(TrainerCallback):
    """Records waits and launches of every step."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self.waits: list[int] = []
        self.launches: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._card.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.waits.append(self._card.waits.total())
        self.launches.append(self._card.launches.total())


def frozen_bert() -> nn.Module:
    model = tiny_bert(dropout=0.0)
    model.bert.requires_grad_(False)
    return model


TRAININGS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], bool]] = {
    "head": (lambda: tiny_bert(dropout=0.0), {}, False),
    "pooler": (lambda: tiny_bert(dropout=0.0), {"fam_layer": "representation"}, False),
    "perturbation": (
        lambda: tiny_bert(dropout=0.0), {"fam_layer": "representation", "fam_estimator": "perturbation"}, False,
    ),
    "frozen backbone": (frozen_bert, {}, False),
    "accumulation": (lambda: tiny_bert(dropout=0.0), {"gradient_accumulation_steps": 2}, False),
    "large head": (tiny_llama, {"fam_lambda": 1e-3}, True),
    "large head, exact": (tiny_llama, {"fam_lambda": 1e-3, "fam_estimator": "closed_form"}, True),
    "callback": (lambda: tiny_bert(dropout=0.0), {}, False),
}  # fmt: skip


def training(name: str, folder: Path) -> dict[str, Any]:
    """Waits and launches of the steps of plain training and of FAM."""
    make, options, is_large = TRAININGS[name]
    set_large(is_large)
    found: dict[str, Any] = {}
    for kind in ("plain", "fam"):
        with Card() as card:
            recorder = Recorder(card)
            callbacks: list[Any] = [recorder]
            given = {**options, **({"fam_lambda": 0.0} if kind == "plain" or name == "callback" else {})}
            if name == "callback" and kind == "fam":
                callbacks.append(FAMCallback())
            data = texts() if is_large else classified()
            trainer = fam_trainer(
                folder / name / kind, make(), train_dataset=data, callbacks=callbacks, use_cpu=False,
                dataloader_pin_memory=False, max_steps=STEPS, logging_steps=100, **given,
            )  # fmt: skip
            trainer.train()
        found[kind] = {"waits": recorder.waits, "launches": recorder.launches}
    return found


class TwoDevices(nn.Module):
    """The trunk on one device, the head on another, as with ``device_map``."""

    def __init__(self, trunk: torch.device, head: torch.device) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double().to(trunk)
        self.classifier = nn.Linear(5, 3).double().to(head)
        self.device_of_head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.trunk(x).to(self.device_of_head).tanh())


# Devices of the trunk, of the head and of the loss.
PLACES = {"head apart": (CPU, CARD, CARD), "head on its own": (CPU, CARD, CPU), "loss apart": (CARD, CARD, CPU)}
APART: dict[str, tuple[dict[str, Any], bool]] = {
    "closed form": ({}, False),
    "closed form, centered": ({"center": True}, False),
    "large head": ({"estimator": "closed_form"}, True),
    "hessian": ({"layer": "trunk.2", "estimator": "hessian", "probes": 2}, False),
    "gauss_newton": ({"layer": "trunk.2", "center": True}, False),
    "perturbation": ({"layer": "trunk.2", "estimator": "perturbation"}, False),
    "dense": ({"layer": "trunk.2", "estimator": "dense"}, False),
}


def apart(name: str, place: tuple[torch.device, ...]) -> float:
    """Largest relative error of gradients and logged numbers against one device."""
    options, is_large = APART[name]
    set_large(is_large)
    found: list[list[Tensor]] = []
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for trunk, head, loss_device in ((CPU, CPU, CPU), place):
        with Card(is_strict=True):
            model, log = TwoDevices(trunk, head), FlatnessLog()
            flatness = RelativeFlatness(model, **options)
            for step in range(2):  # the second batch has a mean
                model.zero_grad()
                with flatness.capture(0.1):
                    loss = cross_entropy(model(inputs.to(trunk)).to(loss_device))
                kappa = flatness(loss)
                squares = flatness.gradient_squares(loss, kappa)
                log.add(step, loss.detach(), kappa.detach(), 1.0, 0.1, squares)
                with_gradient_of(loss, kappa, 0.1).backward()
            assert log.problem() is None
            logged = torch.tensor([*log.drain(5, lambda t: t).values()])
            found.append([logged, *(p.grad.to(CPU) for p in model.parameters() if p.grad is not None)])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    found = {
        "looked at": [k for k in range(STEPS) if is_looked_at(k)],
        "terms": {name: term_alone(name) for name in TERMS},
        "attached": attached_alone(),
        "trainings": {name: training(name, folder) for name in TRAININGS},
        "apart": {f"{name}, {where}": apart(name, place) for name in APART for where, place in PLACES.items()},
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # torch's threads may abort while a device type written in Python is taken down
