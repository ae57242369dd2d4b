"""What FAM costs on a GPU: time, memory and kernels of training steps beside plain training, SAM and NEFTune.

    python -m recipes.gpu.cost --rows bert,llama_1b --output out/gpu

The contenders of a row share one model and its optimizer, and take turns. `floor_ms` of plain training are its
operations over the card's rate in bfloat16. That of a term are its operations over the card's rate in float32, in
which it computes, or the bytes that it must at least move over the card's bandwidth, whichever takes longer. Rates and
bandwidth are measured first.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .contenders import make_contenders
from .measuring import interleaved_seconds, kernels, operations, peak_memory, quartiles, rates
from .rows import ROWS, Row

# Steps before those that count: a term looks at the loss in steps 0, 1, 2, 4, ...
WARMUP = 6
BLOCK = 4


def measure_row(
    row: Row, device: torch.device, tiny: bool, seconds: float, card: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return what each contender of a row costs."""
    torch.manual_seed(0)
    with torch.device(device):
        model = row.model(tiny)
    batches = [{name: t.to(device) for name, t in row.batch(tiny).items()} for _ in range(2 if tiny else 4)]
    given = {**row.given, "use_cpu": device.type == "cpu"}
    contenders = make_contenders(model, row.fam, row.others, given)
    found: dict[str, dict[str, Any]] = {}
    for name, step in contenders.items():
        first = peak_memory(step, batches[0], device)
        for k in range(1, WARMUP):
            step(batches[k % len(batches)])
        memory = peak_memory(step, batches[0], device)
        found[name] = {"memory": memory, "memory_of_first_step": first, "operations": operations(step, batches[0])}
    most = 3 if tiny else 40
    times = interleaved_seconds(contenders, batches, device, 1 if tiny else BLOCK, seconds, most)
    for name, step in contenders.items():
        found[name]["kernels"] = kernels(step, batches[0], device)
    plain = found["plain"]
    bytes_of_head = _bytes_of_head(model, batches[0])
    results = []
    for name, values in found.items():
        ratios = [other / mine for other, mine in zip(times[name], times["plain"], strict=True)]
        extra = values["operations"] - plain["operations"]
        if name in ("plain", "sam", "neftune"):
            floor = values["operations"] / card["bfloat16"]
        else:
            at_head = name in ("head", "row_probes", "exact")
            floor = max(extra / card["float32"], bytes_of_head / card["bytes"] if at_head else 0.0)
        results.append({
            "contender": name, "rounds": len(ratios), "ms": [1e3 * t for t in quartiles(times[name])],
            "ratio": quartiles(ratios), "total_ratio": sum(times[name]) / sum(times["plain"]),
            "memory_ratio": values["memory"] / plain["memory"] if values["memory"] else None,
            "floor_ms": 1e3 * floor, **values,
        })  # fmt: skip
    return results


def _bytes_of_head(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Return the bytes that a head's term must move: the gradients of logits and W read and written, and W read."""
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    head = heads[-1].weight
    rows = batch["labels"].numel()
    return (2 * rows * head.shape[0] + 3 * head.numel()) * head.element_size()


def describe(device: torch.device) -> dict[str, Any]:
    """Return the card and the versions."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"card": card, "torch": torch.__version__, "transformers": transformers.__version__}


def line(row: str, result: Mapping[str, Any]) -> str:
    """Return a line of the summary."""
    low, median, high = result["ratio"]
    memory = "" if result["memory"] is None else f"{result['memory'] / 2**30:7.2f} GiB x{result['memory_ratio']:.3f}"
    return (
        f"{row:16} {result['contender']:15} {result['ms'][1]:9.2f} ms  x{median:.3f} ({low:.3f} to {high:.3f})  "
        f"{memory}  {result['kernels']['count']:5} kernels  floor {result['floor_ms']:.2f} ms"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/gpu"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rows", default=",".join(ROWS), help="names, separated by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=240, help="time of all rows (default: 240)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: checks the script")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    device = torch.device(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    end, names, summary = time.monotonic() + options.seconds, options.rows.split(","), []
    with open(options.output / "cost.jsonl", "a", encoding="utf-8") as file:

        def write(**entry: Any) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        card = rates(device, options.tiny)
        write(row="card", **describe(device), **card)
        print({**describe(device), **{name: f"{rate:.3g}" for name, rate in card.items()}}, flush=True)
        for number, name in enumerate(names):
            left = end - time.monotonic()
            row = ROWS[name]
            memory = torch.cuda.mem_get_info(device)[1] / 2**30 if device.type == "cuda" else float("inf")
            if left < 5 or memory < row.memory:
                write(row=name, not_run="no time left" if left < 5 else f"needs {row.memory:.0f} GiB")
                print(f"{name}: not run", flush=True)
                continue
            try:
                # Half of a row's time goes into making the model, the first steps and the profiler.
                for result in measure_row(row, device, options.tiny, left / (len(names) - number) / 2, card):
                    write(row=name, **result)
                    summary.append(line(name, result))
                    print(summary[-1], flush=True)
            except Exception as error:
                write(row=name, error=f"{type(error).__name__}: {error}"[:500])
                traceback.print_exc(limit=-5)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print("", *summary, sep="\n")


if __name__ == "__main__":
    main()
