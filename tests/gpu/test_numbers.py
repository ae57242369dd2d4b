"""kappa and all its gradients on a GPU, in every precision, against float64 on the CPU."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_fam import RelativeFlatness, attach
from hf_fam.calculus.derivatives import SecondDerivativeError

ROWS, WIDTH, CLASSES, STRENGTH = 32, 64, 16, 0.5
# Largest distance of gradients from the reference, relative to their size. The matrix units keep 10 bits in TF32 and
# float16, and 7 in bfloat16; several of their errors add up.
TOLERANCES = {"float32": 2e-5, "tf32": 1e-2, "bfloat16": 6e-2, "float16": 1e-2}


class Image(nn.Module):
    """Convolutions with their channels last, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1, stride=2)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.classifier(self.second(self.first(x).tanh()).tanh().mean((-1, -2)))


class Tokens(nn.Module):
    """Attention above a layer and below another."""

    def __init__(self, attention: Callable[..., Tensor] = F.scaled_dot_product_attention) -> None:
        super().__init__()
        self.below = nn.Linear(WIDTH, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.above = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)
        self._attention = attention

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.below(x).tanh()).unflatten(-1, (3, 2, WIDTH // 2))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        attended = self._attention(q, k, v).transpose(1, 2).flatten(-2)
        return self.classifier(self.above(attended).tanh())


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)
    )


@dataclass(frozen=True)
class Case:
    """Options of `RelativeFlatness`, the model, and the shape of its inputs."""

    options: dict[str, Any] = field(default_factory=dict)
    make: Callable[[], nn.Module] = network
    shape: tuple[int, ...] = (ROWS, WIDTH)
    is_large: bool = False
    smoothing: float = 0.0


LAYER = {"layer": "2"}
CASES = {
    "closed form": Case(),
    "closed form, weights only": Case({"gradient": "weights_only"}),
    "closed form, centered": Case({"center": True}),
    "closed form, smoothed labels": Case(smoothing=0.1),
    "closed form, smoothed flatness": Case({"smoothing": 0.1}),
    "row probes": Case({"estimator": "row_probes"}),
    "large head": Case({"estimator": "closed_form"}, is_large=True),
    "large head, row probes": Case({"estimator": "row_probes"}, is_large=True),
    "hessian": Case({**LAYER, "estimator": "hessian"}),
    "hessian, weights only": Case({**LAYER, "estimator": "hessian", "gradient": "weights_only"}),
    "gauss_newton": Case({**LAYER, "estimator": "gauss_newton", "probes": 2}),
    "gauss_newton, centered": Case({**LAYER, "estimator": "gauss_newton", "center": True}),
    "perturbation": Case({**LAYER, "estimator": "perturbation"}),
    "dense": Case({"layer": "convolution", "estimator": "dense"}, lambda: Small(), (8, 4, 5)),
    "head of a convolutional network": Case({}, Image, (16, 8, 9, 9)),
    "gauss_newton of a convolution": Case({"layer": "second"}, Image, (16, 8, 9, 9)),
    "hessian of a convolution": Case({"layer": "second", "estimator": "hessian"}, Image, (16, 8, 9, 9)),
    "perturbation of a convolution": Case({"layer": "second", "estimator": "perturbation"}, Image, (16, 8, 9, 9)),
}


SIGNED = ("hessian", "perturbation", "dense")


class Small(nn.Module):
    """A layer of few weights, whose full Hessian can be had."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(4, 3, 1)
        self.classifier = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.convolution(x).tanh().mean(-1))


def batch(case: Case) -> tuple[Tensor, Tensor]:
    """Fresh inputs and labels, a tenth of which is ignored."""
    inputs, items = torch.randn(*case.shape), case.shape[: 2 if case.make is Tokens else 1]
    labels = torch.randint(CLASSES, items)
    return inputs, labels.masked_fill(torch.rand(items) < 0.1, -100)


def gradients(
    model: nn.Module,
    case: Case,
    inputs: Tensor,
    labels: Tensor,
    autocast: torch.dtype | None = None,
    scale: float = 1.0,
) -> list[Tensor]:
    """Gradients of ``loss + lambda kappa`` minus those of the loss, and kappa, in float64 on the CPU."""
    found = []
    flatness, kind = RelativeFlatness(model, **case.options), inputs.device.type
    for strength in (0.0, STRENGTH, STRENGTH):  # the second batch has a mean
        model.zero_grad()
        flatness.seed(7)
        with flatness.capture(strength), torch.autocast(kind, autocast, enabled=autocast is not None):
            logits = model(inputs)
            loss = F.cross_entropy(
                logits.float().flatten(0, -2) if autocast else logits.flatten(0, -2), labels.flatten(),
                label_smoothing=case.smoothing,
            )  # fmt: skip
        kappa = flatness(loss)
        (scale * (loss + strength * kappa if strength else loss + 0 * kappa)).backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        found.append([*(p.double().cpu() / scale for p in parts), kappa.detach().double().cpu()])
    flatness.detach()
    plain, _, total = found
    return [*(t - p for t, p in zip(total[:-1], plain[:-1], strict=True)), total[-1]]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Of all tensors together, relative to their size."""
    one, other = (torch.cat([t.flatten() for t in tensors]) for tensors in (found, expected))
    assert one.isfinite().all() and other.norm() > 0
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_kappa_and_gradients(name: str, precision: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both draw the same signs."""
    case = CASES[name]
    if case.is_large:
        monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", CLASSES - 1)
    model = case.make()
    inputs, labels = batch(case)
    expected = gradients(copy.deepcopy(model).double(), case, inputs.double(), labels)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    autocast = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    if device.type == "cuda":
        model = model.to(device, memory_format=torch.channels_last) if case.make is Image else model.to(device)
    scale = 1024.0 if precision == "float16" else 1.0
    found = gradients(model, case, inputs.to(device), labels.to(device), autocast, scale)
    assert distance(found[:-1], expected[:-1]) < TOLERANCES[precision]
    if not name.startswith(SIGNED):  # sums of numbers of both signs may cancel
        assert distance(found[-1:], expected[-1:]) < TOLERANCES[precision]


def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v)


BACKENDS = {
    "math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layer", ["below", "above", "classifier"])
@pytest.mark.parametrize("backend", [*BACKENDS, "flex"])
def test_attention_above_and_below_the_layer(backend: str, layer: str, device: torch.device) -> None:
    """Right, or refused in a sentence that says what to do."""
    if device.type == "cpu" and backend in ("memory-efficient", "flex"):
        pytest.skip(f"a CPU has no {backend} attention, or cannot train it")
    case = Case({"layer": layer, **({} if layer == "classifier" else {"estimator": "hessian"})}, Tokens, (4, 16, WIDTH))
    model, (inputs, labels) = Tokens(), batch(case)
    with sdpa_kernel(SDPBackend.MATH):
        expected = gradients(copy.deepcopy(model).double(), case, inputs.double(), labels)
    if backend == "flex":
        attended = Tokens(flex)
        attended.load_state_dict(model.state_dict())
        model = attended
    # On a GPU, flash attention takes half precision alone.
    autocast = torch.bfloat16 if backend == "flash" and device.type == "cuda" else None
    context = contextlib.nullcontext() if backend == "flex" else sdpa_kernel(BACKENDS[backend])
    with context:
        try:
            found = gradients(model.to(device), case, inputs.to(device), labels.to(device), autocast)
        except SecondDerivativeError as error:
            assert layer == "below" and "needs second derivatives" in str(error) and "eager" in str(error)
            return
    tolerance = TOLERANCES["bfloat16" if autocast else "float32"]
    assert distance(found[:-1], expected[:-1]) < 3 * tolerance  # softmax attention adds to the errors of the layers


@pytest.mark.parametrize("is_attached", [False, True])
def test_a_skipped_step_is_skipped_for_both_terms(is_attached: bool, device: torch.device) -> None:
    """The first scale overflows float16. The scaler skips that step, halves the scale, and goes on."""
    model = network().to(device)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**40, growth_interval=1000)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    flatness = None if is_attached else RelativeFlatness(model)
    attached = attach(model, STRENGTH) if is_attached else None
    inputs, labels = torch.randn(ROWS, WIDTH, device=device), torch.randint(CLASSES, (ROWS,), device=device)
    skipped = 0
    for _ in range(40):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16), flatness.capture(STRENGTH) if flatness else _nothing():
            loss = F.cross_entropy(model(inputs).float(), labels)
        total = loss if flatness is None else loss + STRENGTH * flatness(loss)
        scaler.scale(total).backward()
        overflowed = not all(p.grad.isfinite().all() for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        unchanged = all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert unchanged == overflowed
        assert all(p.isfinite().all() for p in model.parameters())
        skipped += overflowed
    assert 0 < skipped < 30
    if attached is not None:
        attached.detach()


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
