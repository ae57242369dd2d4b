"""The error of kappa per second: hf_fam's probes, curvlinops, and the papers' released code.

    git clone https://github.com/kampmichael/RelativeFlatnessAndGeneralization
    pip install curvlinops-for-pytorch
    python recipes/benchmarks/error_per_second.py --output docs/generated/error_per_second.md \\
        --released RelativeFlatnessAndGeneralization/CorrelationFlatnessGeneralization

All measure one layer over the same items in one batch and one thread, MiniLM in float32 and the rest in float64:

- hf_fam: ``measure_relative_flatness`` with its Hessian probes, and everything that belongs to a call.
- curvlinops: kappa is the trace of ``R H R``, where R is the square root of ``W W^T`` in every output. Its Hessian
  operator is multiplied by R, and its own ``hutchinson_trace`` and ``hutchpp_trace`` estimate the trace.
- the released code: its function for the whole Hessian of the layer. It is exact. For MiniLM's layer, the Hessian would
  have 590,000 rows.

The error is the root mean square over repetitions, relative to the exact kappa. Seconds are those of the
processor. An estimator with the error e in s seconds needs ``s (e / 1 %)^2`` seconds for 1 %, and at least one call.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from curvlinops import HessianLinearOperator, hutchinson_trace, hutchpp_trace
from error_cases import CASES, Case, loss_fn
from torch import Tensor, nn

from hf_fam import measure_relative_flatness


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/error_per_second.md"))
    parser.add_argument(
        "--released", type=Path, help="folder with the released utils.py; without it, its row is left out"
    )
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="layers (default: all)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    columns = ("layer", "items", "method", "products", "processor seconds", "error", "seconds for 1 %")
    head = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    lines = []
    for name in options.cases:
        torch.manual_seed(0)
        case = CASES[name]()
        for method in methods(case, options.released):
            row = [name, str(len(case.data)), *measured(method, case.kappa, options.repetitions)]
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    text = f"One thread, {options.repetitions} repetitions.\n\n{head}" + "\n".join(lines) + "\n"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")


class Method(NamedTuple):
    """A way to kappa.

    Attributes:
        name: as in the table.
        products: with the Hessian, for one estimate.
        estimate: from a seed to kappa.
        is_exact: whether all seeds give the same.
    """

    name: str
    products: int
    estimate: Callable[[int], float]
    is_exact: bool = False


def methods(case: Case, folder: Path | None) -> list[Method]:
    """Return all methods that the case is small enough for."""
    found = [Method("hf_fam", count, partial(by_hf_fam, case, count)) for count in (4, 16)]
    for title, trace, counts in (
        ("curvlinops, Hutchinson", hutchinson_trace, (4, 16)),
        ("curvlinops, Hutch++", hutchpp_trace, (24,)),
    ):
        found += [Method(title, count, partial(by_curvlinops, case, trace, count)) for count in counts]
    if folder is not None and case.is_small:
        found.append(Method("released code", case.weight.numel(), lambda _: by_release(case, folder), is_exact=True))
    return found


def by_hf_fam(case: Case, probes: int, seed: int) -> float:
    (result,) = measure_relative_flatness(
        case.model, case.data, case.layer, ("trace",), estimator="hessian", probes=probes, batch_size=len(case.data),
        loss_fn=loss_fn, seed=seed, progress=False,
    )  # fmt: skip
    return result.kappa


class Weighted:
    """``R H R`` for a Hessian operator of curvlinops, with all that its trace estimators ask for."""

    def __init__(self, hessian: HessianLinearOperator, weight: Tensor) -> None:
        values, vectors = torch.linalg.eigh(weight @ weight.T)
        self._root = vectors * values.clamp_min(0).sqrt() @ vectors.T
        self._hessian, self.shape, self.dtype, self.device = hessian, hessian.shape, weight.dtype, weight.device
        self._size = weight.shape

    def _times_root(self, matrix: Tensor) -> Tensor:
        return torch.einsum("st,tmk->smk", self._root, matrix.reshape(*self._size, -1)).reshape(matrix.shape)

    def __matmul__(self, matrix: Tensor) -> Tensor:
        return self._times_root(self._hessian @ self._times_root(matrix))


def by_curvlinops(case: Case, trace: Callable[..., Tensor], products: int, seed: int) -> float:
    torch.manual_seed(seed)
    operator = HessianLinearOperator(
        case.model, nn.CrossEntropyLoss(), [case.weight], [case.data.tensors], check_deterministic=False
    )
    return float(trace(Weighted(operator, case.weight.detach()), products))


def by_release(case: Case, folder: Path) -> float:
    """Run the released function on the processor: its calls of ``cuda()`` return a copy."""
    spec = importlib.util.spec_from_file_location("released_utils", folder / "utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    usual, kind = Tensor.cuda, torch.get_default_dtype()
    Tensor.cuda = lambda self, *args, **options: self.clone()  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            kappa, _ = module.calculateNeuronwiseHessians_fc_layer(
                case.weight, loss_fn(case.model, case.data.tensors), None
            )
    finally:
        Tensor.cuda = usual  # type: ignore[method-assign]
        torch.set_default_dtype(kind)
    return float(kappa)


def measured(method: Method, exact: float, repetitions: int) -> list[str]:
    """Return the cells of one row."""
    seconds, errors = [], []
    for seed in range(1 if method.is_exact else repetitions + 1):
        started = time.process_time()
        error = method.estimate(seed) / exact - 1
        if seed or method.is_exact:  # the first call warms up
            seconds.append(time.process_time() - started)
            errors.append(error)
    error, mean = math.sqrt(sum(e**2 for e in errors) / len(errors)), sum(seconds) / len(seconds)
    needed = mean if method.is_exact else mean * max(1.0, (error / 0.01) ** 2)
    return [method.name, str(method.products), f"{mean:.3f}", f"{100 * error:.2g} %", f"{needed:.2g}"]


if __name__ == "__main__":
    main()
