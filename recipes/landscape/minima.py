"""The fixed example of a certified local minimum, and how often splitting a neuron makes one by chance.

    python recipes/landscape/minima.py --output recipes/landscape/results --figures docs/img

*fixed*: one tanh neuron without bias learns 2 tanh x - tanh 4x; it is split at several ratios, gradient descent starts
beside the split network, and `escape_path` leaves the local minimum. Split until the layer is extremely wide, the
network goes to the infimum by `path_to_infimum`.

*teachers*: random teachers of four tanh neurons make 64 values; students of two neurons, with and without biases, go
down to a critical point; then each of their neurons gets a certificate.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_fam.landscape import (
    EscapePath,
    HalfSquaredError,
    InfimumPath,
    SplitCertificate,
    escape_path,
    find_critical_point,
    path_to_infimum,
    split_certificate,
    split_neuron,
    widen,
)

RATIOS = [-0.5, 0.25, 0.5, 1.5]
LOSS = HalfSquaredError()


def network(inputs: int, neurons: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, neurons, bias=bias), nn.Tanh(), nn.Linear(neurons, 1, bias=bias)).double()


def fixed(runs: int, steps: int) -> tuple[dict[str, Any], EscapePath]:
    """u, v, L and B; where gradient descent ends from beside each split; the path out."""
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
    y = 2 * x.tanh() - (4 * x).tanh()
    torch.manual_seed(0)
    model = find_critical_point(network(1, 1, bias=False), LOSS, (x, y)).model
    certificate = split_certificate(model, LOSS, (x, y), "0", neuron=0, ratio=0.25)
    u, v = model[0].weight.item(), model[2].weight.item()
    ends = {str(ratio): gradient_descent(model, ratio, x, y, runs, steps) for ratio in RATIOS}
    path = escape_path(model, certificate, LOSS, (x, y))
    numbers = {
        "u": -abs(u),
        "v": -abs(v) if u * v > 0 else abs(v),
        "loss": certificate.loss,
        "B": certificate.B.item(),
        "relative_gradient": certificate.relative_gradient,
        "verdicts": {str(ratio): certificate.judge(ratio).kind for ratio in RATIOS},
        "descent_steps": steps,
        "descent_ends": ends,
        "path": [vars(point) for point in path.points],
    }
    return numbers, path


def gradient_descent(model: nn.Module, ratio: float, x: Tensor, y: Tensor, runs: int, steps: int) -> list[float]:
    """The losses at which descent with a small constant step ends, from perturbations of size 0.01."""
    wide = copy.deepcopy(model)
    split_neuron(wide, "0", 0, ratio)
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in wide.parameters()])
    torch.manual_seed(0)
    starts = weights + 1e-2 * torch.randn(runs, len(weights), dtype=torch.float64)
    u, v = starts.chunk(2, dim=1)
    for _ in range(steps):
        activations = torch.tanh(x * u[:, None])
        residuals = (activations @ v[:, :, None])[:, :, 0] - y[:, 0]
        slope = v * ((residuals * x[:, 0])[:, None] @ (1 - activations**2))[:, 0]
        u, v = u - 0.01 * slope, v - 0.01 * (residuals[:, None] @ activations)[:, 0]
    return sorted((0.5 * residuals.square().sum(1)).tolist())


def to_the_infimum() -> InfimumPath:
    """The path from the local minimum of the fixed example, split until the layer has as many units as items."""
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
    y = 2 * x.tanh() - (4 * x).tanh()
    torch.manual_seed(0)
    small = find_critical_point(network(1, 1, bias=False), LOSS, (x, y)).model
    model = network(1, 1, bias=True)
    with torch.no_grad():
        for layer in (0, 2):
            model[layer].weight.copy_(small[layer].weight)
            model[layer].bias.zero_()
    widen(model, "0", by=40, ratio=0.5)
    return path_to_infimum(model, LOSS, (x, y))


def teachers(count: int, inputs: int, bias: bool, steps: int) -> dict[str, Any]:
    """What the neurons of the students are, for `count` teachers."""
    kinds: Counter[str] = Counter()
    found = neurons = 0
    for seed in range(count):
        torch.manual_seed(seed)
        x = torch.randn(64, inputs, dtype=torch.float64)
        teacher, student = network(inputs, 4, bias), network(inputs, 2, bias)
        for parameter in (*teacher.parameters(), *student.parameters()):
            nn.init.normal_(parameter)
        y = teacher(x).detach()
        critical = find_critical_point(student, LOSS, (x, y), steps=steps)
        if not critical.converged:
            continue
        certificates = [split_certificate(critical.model, LOSS, (x, y), "0", neuron) for neuron in range(2)]
        found += 1
        neurons += len(certificates)
        kinds.update(kind(certificate) for certificate in certificates)
    return {"inputs": inputs, "bias": bias, "teachers": count, "critical": found, "neurons": neurons, "kinds": kinds}


def kind(certificate: SplitCertificate) -> str:
    """Of B; "certified" if it makes a local minimum of a split at 1/2 or at 3/2."""
    if "minimum" in (certificate.judge(0.5).kind, certificate.judge(1.5).kind):
        return "certified"
    low, high = float(certificate.eigenvalues_b[0]), float(certificate.eigenvalues_b[-1])
    bound = certificate.errors.b + certificate.errors.shift_b
    if low > bound or high < -bound:
        return "definite"
    return "indefinite" if low < -bound and high > bound else "zero"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for minima.json")
    parser.add_argument("--figures", type=Path, required=True, help="folder for the pictures of the paths")
    parser.add_argument("--teachers", type=int, default=20)
    parser.add_argument("--runs", type=int, default=20, help="of gradient descent, for each ratio")
    parser.add_argument("--steps", type=int, default=20_000, help="of gradient descent")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    example, path = fixed(options.runs, options.steps)
    rows = []
    for inputs in (1, 2):
        for bias in (False, True):
            start = time.perf_counter()
            rows.append(teachers(options.teachers, inputs, bias, steps=300))
            print(rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    options.figures.mkdir(parents=True, exist_ok=True)
    path.plot(options.figures / "escape_path.png")
    infimum = to_the_infimum()
    infimum.plot(options.figures / "infimum_path.png")
    example["infimum"] = {
        "start": infimum.losses[0],
        "end": infimum.losses[-1],
        "ranks": [infimum.conditions[0].rank, infimum.conditions[0].needed],
    }
    results = {"fixed": example, "teachers": rows, "versions": {"torch": torch.__version__}}
    (options.output / "minima.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
