"""What flatness-aware training of language models costs, as a function of what makes it expensive.

    python recipes/benchmarks/scaling.py --output out/scaling --threads 1 [--smollm2 out/smollm2]
    python recipes/benchmarks/plot_scaling.py out/scaling

Time and peak memory against plain training, over batch, tokens, width, vocabulary, depth of the layer, probes and
processes; for heads alone of up to 150,000 x 4,096; and for SmolLM2-135M (recipes/benchmarks/smollm2.py saves it).
Every measured row is appended to out/scaling/scaling.csv; interrupt it when you like, the same command carries on.

Time: one step of plain training and one of each method on the same batch in turns, on one model with one optimizer; the
ratio is taken within each round. Memory: a fresh process for every row, torch's own allocations and the resident set
(see cost/memory.py). Processes: all of this inside `accelerate launch`, against plain training with as many processes.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from cost.language_models import Method, Point, make_batches, make_model, make_optimizer, points
from cost.memory import in_fresh_process, measure_peaks
from cost.report import circumstances
from cost.steps import Steps
from cost.timing import compare, interleaved

PLAIN = "plain"
SIZES = ["axis", "model", "batch", "tokens", "width", "vocabulary", "layers", "processes"]
COLUMNS = [
    *SIZES, "method", "pairs", "plain_ms", "extra_ms", "time_ratio", "time_q25", "time_q75", "total_ratio",
    "torch_mb", "torch_ratio", "rss_mb", "rss_ratio",
]  # fmt: skip


def make_steps(point: Point, method: Method | None, model: Any, optimizer: Any) -> Steps:
    return Steps(model, None if method is None else method.arguments(point.layers), optimizer=optimizer)


def measure_time(point: Point, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each method."""
    model = make_model(point, options.smollm2)
    optimizer = make_optimizer(point, model)
    timed = []
    for method in (None, *point.methods):
        if point.processes > 1:  # two wrappers cannot share a model's gradients
            model = make_model(point, options.smollm2)
            optimizer = make_optimizer(point, model)
        timed.append(make_steps(point, method, model, optimizer))
    slow = point.model != "llama"
    pairs = max(2, options.pairs // 3) if slow else options.pairs
    times = interleaved(timed, make_batches(point, 4), pairs, options.warmup)
    return [compare(times[[0, k + 1]]) for k in range(len(point.methods))]


def measure_memory(point: Point, name: str, options: argparse.Namespace) -> dict[str, float]:
    """Peaks of a method's first three steps, in this process."""
    method = next((m for m in point.methods if m.name == name), None)

    def make() -> Steps:
        model = make_model(point, options.smollm2)
        return make_steps(point, method, model, make_optimizer(point, model))

    return measure_peaks(make, make_batches(point, 3), profiled=3)


def identify(point: Point) -> str:
    return ",".join(f"{k}={v}" for k, v in point.columns().items())


def run(point: Point, options: argparse.Namespace, done: set[tuple[str, str]]) -> list[dict[str, Any]]:
    name = identify(point)
    missing = [m for m in point.methods if (name, m.name) not in done]
    if not missing:
        return []
    print(name, file=sys.stderr, flush=True)
    common = ["--point", name, *(["--quick"] if options.quick else [])]
    common += ["--smollm2", options.smollm2] if options.smollm2 else []
    memory = {}
    if options.memory and point.processes == 1:
        for method in (PLAIN, *(m.name for m in missing)):
            memory[method] = in_fresh_process(__file__, [*common, "--memory-of", method])
    rows = time_in_processes(point, common, options) if point.processes > 1 else measure_time(point, options)
    found = []
    for method, row in zip(point.methods, rows, strict=True):
        if method not in missing:
            continue
        own = memory.get(method.name, {})
        ratios = {key.replace("_mb", "_ratio"): own[key] / memory[PLAIN][key] for key in own}
        found.append({**point.columns(), "method": method.name, **row, **own, **ratios})
    return found


def time_in_processes(point: Point, common: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launch += ["--num_processes", str(point.processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", __file__, *common, "--threads", "1", "--pairs", str(options.pairs)]
    done = subprocess.run(launch, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"accelerate launch failed:\n{done.stderr[-3000:]}")
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("ROWS "))
    answer = json.loads(line[5:])
    assert answer["processes"] == point.processes
    return answer["rows"]


def finished(path: Path) -> set[tuple[str, str]]:
    if not path.is_file():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        return {(",".join(f"{k}={row[k]}" for k in SIZES), row["method"]) for row in csv.DictReader(file)}


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/scaling"), help="folder for scaling.csv")
    parser.add_argument("--pairs", type=int, default=15, help="rounds of steps (default 15; large models a third)")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before the first that counts (default 2)")
    parser.add_argument("--smollm2", help="folder with SmolLM2-135M; without it these rows are left out")
    parser.add_argument("--axes", default="", help="regular expression: only axes in whose name it is found")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="measure time alone")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's)")
    parser.add_argument("--quick", action="store_true", help="one tiny point an axis: checks the script")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.pairs, options.warmup = 2, 1
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    if options.threads:
        torch.set_num_threads(options.threads)
    every = list(points(options.quick, options.smollm2))
    if options.point:
        point = next(p for p in every if identify(p) == options.point)
        if options.memory_of:
            print(json.dumps(measure_memory(point, options.memory_of, options)))
            return
        rows = measure_time(point, options)
        distributed = torch.distributed.is_initialized()
        if not distributed or torch.distributed.get_rank() == 0:
            world = torch.distributed.get_world_size() if distributed else 1
            print("ROWS " + json.dumps({"processes": world, "rows": rows}), flush=True)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "scaling.csv"
    for point in every:
        if re.search(options.axes, point.axis):
            append(path, run(point, options, finished(path)))
    (options.output / "circumstances.txt").write_text(circumstances() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
