"""Backward hooks on modules add identities to the autograd graph; kappa and all gradients stay what they are."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules._functions import BackwardHookFunction

from hf_fam import RelativeFlatness, attach
from hf_fam.calculus.autograd_graph import TailGraph
from hf_fam.flatness.loss_graph import is_cross_entropy
from hf_fam.flatness.vocabulary import is_large
from support.arrangements import large_llama, llama
from support.tiny import fam_trainer, largest_difference, logged, texts, weights

ROWS, SMALL, LARGE = 6, 3, 4_200
STRENGTH = 0.3


class Net(nn.Module):
    """Returns the hidden units with the logits, so a hook on it is one node for two outputs."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).tanh()
        return self.head(hidden), hidden


class Criterion(nn.Module):
    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits, labels)


PLACES = ("model", "body", "head", "loss")


def hook(model: nn.Module, criterion: nn.Module, place: str, kind: str) -> list[int]:
    """Register a hook on a module, or on all, and return a list that grows with its calls."""
    modules = [model, model.body, model.head, criterion] if place == "all" else []
    modules = modules or [criterion if place == "loss" else model if place == "model" else model.get_submodule(place)]
    calls: list[int] = []
    for module in modules:
        getattr(module, f"register_full_backward_{kind}")(lambda *given: calls.append(1))
    return calls


def step(
    classes: int, loss: Callable[[Tensor, Tensor], Tensor], place: str | None, kind: str, run: Callable[..., Any]
) -> tuple[list[Tensor], Any]:
    """The gradients of one step, and what `run` returned; always of the same weights and items."""
    torch.manual_seed(step.seed)
    model, criterion = Net(classes).double(), Criterion(loss)
    x, y = torch.randn(ROWS, 4).double(), torch.randint(classes, (ROWS,))
    calls = [] if place is None else hook(model, criterion, place, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Full backward hook is firing")  # torch's, of a model with data as its input
        result = run(model, criterion, x, y)
    assert place is None or calls, "the hook was called"
    return [p.grad for p in model.parameters()], result


@pytest.fixture(autouse=True)
def seed() -> None:
    step.seed = secrets.randbits(32)


def with_flatness(sharded: bool = False, **given: Any) -> Callable[..., Any]:
    """A step with `RelativeFlatness`, which returns the estimator's name and kappa."""

    def run(model: Net, criterion: nn.Module, x: Tensor, y: Tensor) -> tuple[str, Tensor]:
        flatness = RelativeFlatness(model, **given)
        if sharded:
            flatness.adapt_to_sharding()
        flatness.seed(7)
        with flatness.capture(STRENGTH):
            logits, _ = model(x)
        loss = criterion(logits, y)
        kappa = flatness(loss)
        (2 * (loss + STRENGTH * kappa)).backward()
        return flatness.estimator, kappa.detach()

    return run


def with_attach(model: Net, criterion: nn.Module, x: Tensor, y: Tensor) -> tuple[str, Tensor]:
    attached = attach(model, STRENGTH)
    (2 * criterion(model(x)[0], y)).backward()
    return "attach", torch.tensor(attached.kappa() / 2)


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def binary(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, logits.shape[-1]).to(logits.dtype))


STEPS = {
    "attach": (SMALL, F.cross_entropy, with_attach),
    "closed form": (SMALL, F.cross_entropy, with_flatness()),
    "label smoothing": (SMALL, smoothed, with_flatness()),
    "smoothed kappa": (SMALL, F.cross_entropy, with_flatness(smoothing=0.1)),
    "smoothed kappa, sigmoids": (SMALL, binary, with_flatness(smoothing=0.1)),
    "large, in the loss": (LARGE, F.cross_entropy, with_flatness(gradient="weights_only", smoothing=0.1)),
    "large, in the backward pass": (LARGE, F.cross_entropy, with_flatness()),
    "sharded head": (SMALL, F.cross_entropy, with_flatness(sharded=True)),
    "hidden, Hessian": (SMALL, F.cross_entropy, with_flatness(layer="body", estimator="hessian")),
    "hidden, Gauss-Newton": (SMALL, F.cross_entropy, with_flatness(layer="body", estimator="gauss_newton")),
    "hidden, dense": (SMALL, F.cross_entropy, with_flatness(layer="body", estimator="dense")),
    "hidden, perturbation": (SMALL, F.cross_entropy, with_flatness(layer="body", estimator="perturbation")),
}


@pytest.mark.parametrize("kind", ["hook", "pre_hook"])
@pytest.mark.parametrize("place", [*PLACES, "all"])
@pytest.mark.parametrize("name", STEPS)
def test_hooks_change_nothing(name: str, place: str, kind: str) -> None:
    """Neither the estimator, nor kappa, nor a gradient, and nothing is warned of."""
    classes, loss, run = STEPS[name]
    assert is_large(classes) == (classes == LARGE)
    expected, (estimator, kappa) = step(classes, loss, None, kind, run)
    actual, (other_estimator, other_kappa) = step(classes, loss, place, kind, run)
    assert other_estimator == estimator and kappa != 0
    torch.testing.assert_close(other_kappa, kappa, rtol=1e-12, atol=0.0)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-14)


def test_logits_that_a_hook_passed_on() -> None:
    """As a layer returns them that contains a module with a hook, such as a LoRA layer without its adapter."""
    z = 2 * torch.randn(ROWS, SMALL, requires_grad=True)
    (passed_on,) = BackwardHookFunction.apply(z)
    loss = F.cross_entropy(passed_on, torch.zeros(ROWS, dtype=torch.long))
    graph = TailGraph(loss, [passed_on])
    assert graph.is_reached and not graph.passes_by([passed_on])
    assert is_cross_entropy(loss, passed_on)


@pytest.mark.parametrize("model", [llama, large_llama])
def test_trainer(tmp_path: Path, model: Callable[[], nn.Module]) -> None:
    """Hooks on every module, as a debugger registers them."""

    def trained(hooked: bool) -> tuple[dict[str, Tensor], list[float], int]:
        calls: list[int] = []
        network = model().double()
        if hooked:
            for module in network.modules():
                module.register_full_backward_hook(lambda *given: calls.append(1))
        trainer = fam_trainer(tmp_path / str(hooked), network, train_dataset=texts(), fam_lambda=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings(
                "ignore", "(Full backward hook is firing|For backward hooks to be called)"
            )  # torch's
            trainer.train()
        return weights(network), logged(trainer, "fam_kappa"), len(calls)

    (plain, kappas, _), (hooked, other_kappas, calls) = trained(False), trained(True)
    assert calls > 0 and all(kappa > 0 for kappa in kappas)
    assert other_kappas == pytest.approx(kappas, rel=1e-12)
    assert largest_difference(plain, hooked) < 1e-12
