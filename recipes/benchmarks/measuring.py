"""What measuring costs, and what its probes save.

    python recipes/benchmarks/measuring.py --output out/measuring.json

Two questions, on a randomly initialised encoder that is first trained for some steps on random labels:

1. relative flatness of the representation layer over all items to 1 % standard error of the probes, against three
   epochs of training over the same items (seconds);
2. products with the Hessian of the data set for 1 % error: our probes, against Hutchinson's estimate of the trace of
   the layer's Hessian, with ||W||^2 in front, as the papers' code measures.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from hf_fam import measure_relative_flatness
from hf_fam.feature_layer import FeatureLayer
from hf_fam.flatness.curvature import gradients
from hf_fam.flatness.row_blocks import layer_product
from hf_fam.measure.forward import Watch, looked_at

SIZES: dict[str, dict[str, Any]] = {
    "bert-base": {},
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="bert-base")
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--length", type=int, default=32, help="tokens of a text (default: 32)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--layer", default="representation")
    parser.add_argument("--hutchinson", type=int, default=20, help="probes for its variance (default: 20)")
    parser.add_argument(
        "--training-batches", type=int, default=0, help="of an epoch; the rest is extrapolated (0: all)"
    )
    parser.add_argument("--output", type=Path, default=Path("out/measuring.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=5, **SIZES[options.size]))
    data = [
        {"input_ids": torch.randint(1000, 20000, (options.length,)), "labels": torch.randint(5, ())}
        for _ in range(options.items)
    ]
    epoch = train(model, data, options.batch_size, options.training_batches)
    result: dict[str, Any] = {
        "settings": {k: str(v) for k, v in vars(options).items()},
        "training_epoch_seconds": epoch,
    }
    probes = 2
    while True:  # as many probes as 1 % takes
        started = time.perf_counter()
        (found,) = measure_relative_flatness(
            model, data, options.layer, ("trace",), probes=probes, batch_size=options.batch_size
        )
        seconds = time.perf_counter() - started
        error = found.standard_error_probes / abs(found.kappa)
        if error <= 0.01 or probes >= 1024:
            break
        probes = max(2 * probes, math.ceil(1.1 * probes * (error / 0.01) ** 2)) if error < 0.1 else 4 * probes
    result["measuring"] = {
        "layer": found.layer, "kappa": found.kappa, "relative_error": error, "probes": probes, "seconds": seconds,
        "seconds_over_three_epochs": seconds / (3 * epoch),
    }  # fmt: skip
    ours = probes * (error / 0.01) ** 2
    theirs = (hutchinson_deviation(model, data, options) / 0.01) ** 2
    result["products_for_one_percent"] = {"ours": ours, "hutchinson_of_the_layer": theirs, "ratio": theirs / ours}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def train(model: nn.Module, data: list[Any], batch_size: int, batches: int) -> float:
    """Seconds of an epoch with AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size)  # type: ignore[arg-type]
    model.train()
    count = min(batches or len(loader), len(loader))
    started = time.perf_counter()
    for _, batch in zip(range(count), loader, strict=False):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return (time.perf_counter() - started) * len(loader) / count


def hutchinson_deviation(model: nn.Module, data: list[Any], options: argparse.Namespace) -> float:
    """Relative standard deviation of one Hutchinson probe of the trace of the layer's Hessian over the data."""
    layer = FeatureLayer(model, options.layer)
    generator = torch.Generator().manual_seed(1)
    shape = (options.hutchinson, *layer.weight.shape)
    signs = torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
    values = torch.zeros(options.hutchinson)
    loader = torch.utils.data.DataLoader(data, batch_size=options.batch_size)  # type: ignore[arg-type]
    with looked_at(model) as seen, Watch(seen, [layer], None) as watch:
        for batch in loader:
            loss, (captured,) = watch(batch)
            z = [c.pre_activations for c in captured]
            phi = [layer.linear_map.feature_rows(c.features).detach().unsqueeze(-2) for c in captured]
            first = gradients(loss, z)
            share = len(batch["labels"]) / len(data)
            for k, v in enumerate(signs):
                values[k] += share * (v * layer_product(first, phi, z, v)).sum()
    return float(values.std() / values.mean().abs())


if __name__ == "__main__":
    main()
