"""What measuring costs, and what its probes save.

    python recipes/benchmarks/measuring.py --output out/measuring.json

Two questions, on a randomly initialized encoder after some steps of training on random labels:

1. relative flatness of the representation layer over all items to 1 % standard error (of the probes: kappa of exactly
   these items), against three epochs of training over the same items, in seconds; an epoch is extrapolated from some
   of its steps;
2. Hessian-vector products for 1 % standard error: our probes of kappa, against Hutchinson's estimate of the trace of
   the layer's Hessian with ||W||^2 in front (its relative error is that of the trace), as the papers' code measures.

A product is one Hessian-vector product of the loss of one batch, for both, counted where torch computes them. Ours
contain those that find out which rows are coupled. Layers whose rows are coupled, such as
`--layer bert.encoder.layer.10.output.dense`, share one random matrix, and the gain is smaller there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from hf_fam import measure_relative_flatness
from hf_fam.calculus.derivatives import gradients
from hf_fam.flatness.row_blocks import layer_product
from hf_fam.layer.feature_layer import FeatureLayer
from hf_fam.measure import LayerFlatness
from hf_fam.measure.forward import CapturingForward, frozen_for_evaluation

SIZES: dict[str, dict[str, Any]] = {
    "bert-base": {},
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
ERROR = 0.01


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=5, **SIZES[options.size]))
    data = [
        {"input_ids": torch.randint(1000, 20000, (options.length,)), "labels": torch.randint(5, ())}
        for _ in range(options.items)
    ]
    epoch = epoch_seconds(model, data, options.batch_size, options.training_steps)
    found, counted, seconds = measured(model, data, options)
    error = found.standard_error_probes / abs(found.kappa)
    result: dict[str, Any] = {
        "settings": {**{k: str(v) for k, v in vars(options).items()}, "threads": torch.get_num_threads()},
        "training": {"epoch_seconds": epoch, "timed_steps": options.training_steps},
        "measuring": {
            "layer": found.layer, "size": [found.out_features, found.in_features], "kappa": found.kappa,
            "relative_error": error, "probes": found.probes, "coupling": found.coupling, "seconds": seconds,
            "part_of_three_epochs": seconds / (3 * epoch),
        },
    }  # fmt: skip
    exact = " (exact: as many products as outputs)" if found.probes == 0 else f", {found.probes} probes"
    print(
        f"1. '{found.layer}', {found.out_features} x {found.in_features}, {found.num_items} items: kappa to "
        f"{100 * error:.2g} %{exact} in {seconds:.0f} s.\n   Three epochs of training take {3 * epoch:.0f} s "
        f"(extrapolated from {options.training_steps} steps): measuring takes {seconds / (3 * epoch):.2g} of that.",
        flush=True,
    )
    result["products_for_one_percent"] = products = compare(model, data, options, found, counted)
    print(
        f"2. Products of a batch for 1 %: ours {products['ours']:.0f}, Hutchinson's {products['hutchinson']:.0f}: "
        f"{products['ratio']:.3g} times as many, 95 % interval {products['ratio_low']:.3g} to "
        f"{products['ratio_high']:.3g}."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {options.output}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="bert-base")
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--length", type=int, default=32, help="tokens of a text (default: 32)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--layer", default="representation")
    parser.add_argument("--hutchinson", type=int, default=100, help="vectors, for its variance (default: 100)")
    parser.add_argument("--training-steps", type=int, default=5, help="that are timed, after a first (default: 5)")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's)")
    parser.add_argument("--output", type=Path, default=Path("out/measuring.json"))
    return parser.parse_args(arguments)


def epoch_seconds(model: nn.Module, data: list[Any], batch_size: int, steps: int) -> float:
    """Seconds of an epoch with AdamW, from some steps after a first one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    loader = DataLoader(data, batch_size=batch_size)  # type: ignore[arg-type]
    model.train()
    for step, batch in enumerate(loader):
        if step == 1:
            started = time.perf_counter()
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        if step == steps:
            break
    if step == 0:
        raise SystemExit("--items and --batch-size leave one batch: at least two are needed, the first is not timed.")
    return (time.perf_counter() - started) / step * len(loader)


@contextlib.contextmanager
def counted_products() -> Iterator[list[int]]:
    """The Hessian-vector products that torch computes inside the block: derivatives of what is no scalar, each."""
    found: list[int] = []
    plain = torch.autograd.grad

    def counting(outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        several = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        if any(o.dim() for o in several):
            found.append(len(grad_outputs[0]) if kwargs.get("is_grads_batched") else 1)
        return plain(outputs, inputs, grad_outputs, *args, **kwargs)

    torch.autograd.grad = counting
    try:
        yield found
    finally:
        torch.autograd.grad = plain


def measured(model: nn.Module, data: list[Any], options: argparse.Namespace) -> tuple[LayerFlatness, int, float]:
    """kappa to the wanted error, its products, and all seconds: those of the pilot that finds the probes included."""
    started = time.perf_counter()

    def measure(items: list[Any], probes: int) -> LayerFlatness:
        (found,) = measure_relative_flatness(
            model, items, options.layer, ("trace",), probes=probes, batch_size=options.batch_size
        )
        return found

    pilot_items, probes = data[: 4 * options.batch_size], 16
    pilot = measure(pilot_items, probes)
    while True:
        if pilot.probes:
            error = pilot.standard_error_probes / abs(pilot.kappa) * math.sqrt(pilot.num_items / len(data))
            probes = max(2, math.ceil(1.2 * pilot.probes * (error / ERROR) ** 2))
        with counted_products() as products:
            found = measure(data, probes)
        if found.standard_error_probes <= ERROR * abs(found.kappa):
            return found, sum(products), time.perf_counter() - started
        pilot = found  # the few items of the pilot were not like the rest


def compare(
    model: nn.Module, data: list[Any], options: argparse.Namespace, found: LayerFlatness, counted: int
) -> dict[str, float]:
    """Products of a batch that the wanted error takes, by our probes and by Hutchinson's vectors.

    Both are extrapolated from what was taken: the variance falls with the number of products.
    """
    batches = math.ceil(len(data) / options.batch_size)
    error = found.standard_error_probes / abs(found.kappa)
    look = counted - found.products  # at the first batch, for coupled rows
    ours = look + found.products * ((error / ERROR) ** 2 if found.probes else 1.0)
    with counted_products() as products:
        deviation = hutchinson_deviation(model, data, options)
    theirs = batches * (deviation / ERROR) ** 2
    free = options.hutchinson - 1
    low, high = (free / stats.chi2.ppf(q, free) for q in (0.975, 0.025))  # of a variance from so many vectors
    return {
        "ours": ours, "hutchinson": theirs, "ratio": theirs / ours, "ratio_low": low * theirs / ours,
        "ratio_high": high * theirs / ours, "batches": batches, "ours_taken": counted,
        "hutchinson_taken": sum(products), "hutchinson_relative_deviation": deviation,
    }  # fmt: skip


def hutchinson_deviation(model: nn.Module, data: list[Any], options: argparse.Namespace) -> float:
    """Relative standard deviation of ``v^T H v``, v random signs, H the layer's Hessian of the loss over the data."""
    layer = FeatureLayer(model, options.layer)
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (options.hutchinson, *layer.weight.shape), generator=generator, dtype=torch.int8)
    values = torch.zeros(options.hutchinson, dtype=torch.float64)
    loader = DataLoader(data, batch_size=options.batch_size)  # type: ignore[arg-type]
    with frozen_for_evaluation(model) as seen, CapturingForward(seen, [layer], None) as watch:
        for batch in loader:
            loss, (captured,) = watch(batch)
            z = [c.pre_activations for c in captured]
            phi = [layer.linear_map.feature_rows(c.features).detach().unsqueeze(-2) for c in captured]
            first = gradients(loss, z)
            share = len(batch["labels"]) / len(data)
            for k in range(options.hutchinson):
                v = (2 * signs[k] - 1).float()
                values[k] += share * float((v * layer_product(first, phi, z, v)).sum())
    return float(values.std() / values.mean().abs())


if __name__ == "__main__":
    main()
