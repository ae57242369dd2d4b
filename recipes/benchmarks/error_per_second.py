"""The error of kappa per second: hf_fam's probes, curvlinops, and the papers' released code.

    git clone https://github.com/kampmichael/RelativeFlatnessAndGeneralization
    pip install curvlinops-for-pytorch
    python recipes/benchmarks/error_per_second.py --output docs/generated/error_per_second.md \\
        --released RelativeFlatnessAndGeneralization/CorrelationFlatnessGeneralization

All measure one layer over the same items in one batch, in float64 and one thread:

- hf_fam: ``measure_relative_flatness`` with its Hessian probes, and everything that belongs to a call.
- curvlinops: kappa is the trace of ``R H R``, where R is the square root of ``W W^T`` in every output. Its Hessian
  operator is multiplied by R, and its own ``hutchinson_trace`` and ``hutchpp_trace`` estimate the trace.
- the released code: its function for the whole Hessian of the layer. It is exact.

The error is the root mean square over repetitions, relative to kappa by the whole Hessian. Seconds are those of the
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
from pathlib import Path
from typing import Any

import torch
from curvlinops import HessianLinearOperator, hutchinson_trace, hutchpp_trace
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from hf_fam import measure_relative_flatness
from hf_fam.flatness.estimators.dense import dense_flatness

ITEMS = 64


class Classifier(nn.Module):
    """A model of transformers as a function of token numbers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        self.bert = BertForSequenceClassification(
            BertConfig(vocab_size=50, num_labels=3, attn_implementation="eager", **sizes)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bert(input_ids=tokens).logits


def independent_rows() -> tuple[nn.Module, str, TensorDataset]:
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    return model, "2", TensorDataset(torch.randn(ITEMS, 20).double(), torch.randint(10, (ITEMS,)))


def below_batch_normalization() -> tuple[nn.Module, str, TensorDataset]:
    layers = (nn.Linear(20, 32), nn.BatchNorm1d(32, track_running_stats=False), nn.Tanh(), nn.Linear(32, 10))
    return nn.Sequential(*layers), "0", TensorDataset(torch.randn(ITEMS, 20).double(), torch.randint(10, (ITEMS,)))


def below_attention() -> tuple[nn.Module, str, TensorDataset]:
    data = TensorDataset(torch.randint(50, (ITEMS, 12)), torch.randint(3, (ITEMS,)))
    return Classifier(), "bert.bert.encoder.layer.0.output.dense", data


CASES: dict[str, Callable[[], tuple[nn.Module, str, TensorDataset]]] = {
    "MLP, independent rows": independent_rows,
    "below batch normalization": below_batch_normalization,
    "below attention": below_attention,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/error_per_second.md"))
    parser.add_argument(
        "--released", type=Path, help="folder with the released utils.py; without it, its row is left out"
    )
    parser.add_argument("--repetitions", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("layer", "method", "products", "processor seconds", "error", "seconds for 1 %")
    head = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    lines = []
    for name, make in CASES.items():
        torch.manual_seed(0)
        model, layer, data = make()
        trained(model.double(), data)
        for method in methods(model.eval(), layer, data, options.released):
            row = measured(*method, options.repetitions)
            lines.append(f"| {name} | {' | '.join(row)} |")
            print(lines[-1], flush=True)
    text = f"{ITEMS} items, one thread, {options.repetitions} repetitions.\n\n{head}" + "\n".join(lines) + "\n"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")


def trained(model: nn.Module, data: TensorDataset) -> None:
    """Train for some steps, so that the Hessian is not that of random weights."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss_fn(model, data.tensors).backward()
        optimizer.step()


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


Method = tuple[str, str, Callable[[int], float], float, bool]


def methods(model: nn.Module, layer: str, data: TensorDataset, folder: Path | None) -> list[Method]:
    """Return name, products, estimate of a seed, exact value, and whether the method is exact."""
    weight = model.get_parameter(f"{layer}.weight")
    exact = float(dense_flatness(loss_fn(model, data.tensors), weight).kappa.detach())
    vectors = (4, 16)
    found: list[Method] = []
    for count in vectors:
        found.append(("hf_fam", str(count), lambda seed, k=count: by_hf_fam(model, layer, data, k, seed), exact, False))
    for title, trace, counts in (
        ("curvlinops, Hutchinson", hutchinson_trace, vectors),
        ("curvlinops, Hutch++", hutchpp_trace, (24,)),
    ):
        for count in counts:
            found.append(
                (
                    title,
                    str(count),
                    lambda seed, k=count, t=trace: by_curvlinops(model, weight, data, t, k, seed),
                    exact,
                    False,
                )
            )
    if folder is not None:
        found.append(
            ("released code", str(weight.numel()), lambda seed: by_release(model, weight, data, folder), exact, True)
        )
    return found


def by_hf_fam(model: nn.Module, layer: str, data: TensorDataset, probes: int, seed: int) -> float:
    (result,) = measure_relative_flatness(
        model, data, layer, ("trace",), estimator="hessian", probes=probes, batch_size=ITEMS, loss_fn=loss_fn,
        seed=seed, progress=False,
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


def by_curvlinops(
    model: nn.Module, weight: Tensor, data: TensorDataset, trace: Callable[..., Tensor], products: int, seed: int
) -> float:
    torch.manual_seed(seed)
    operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), [weight], [data.tensors], check_deterministic=False)
    return float(trace(Weighted(operator, weight.detach()), products))


def by_release(model: nn.Module, weight: Tensor, data: TensorDataset, folder: Path) -> float:
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
            kappa, _ = module.calculateNeuronwiseHessians_fc_layer(weight, loss_fn(model, data.tensors), None)
    finally:
        Tensor.cuda = usual  # type: ignore[method-assign]
        torch.set_default_dtype(kind)
    return float(kappa)


def measured(
    title: str, products: str, estimate: Callable[[int], float], exact: float, is_exact: bool, repetitions: int
) -> list[str]:
    """Return the cells of one row."""
    seconds, errors = [], []
    for seed in range(1 if is_exact else repetitions + 1):
        started = time.process_time()
        error = estimate(seed) / exact - 1
        if seed or is_exact:  # the first call warms up
            seconds.append(time.process_time() - started)
            errors.append(error)
    error, mean = math.sqrt(sum(e**2 for e in errors) / len(errors)), sum(seconds) / len(seconds)
    needed = mean if is_exact else mean * max(1.0, (error / 0.01) ** 2)
    return [title, products, f"{mean:.3f}", f"{100 * error:.2g} %", f"{needed:.2g}"]


if __name__ == "__main__":
    main()
