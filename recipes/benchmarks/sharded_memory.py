"""Peak memory of a process under FSDP2, with the flatness term and without, on CPUs.

    python recipes/benchmarks/sharded_memory.py --output docs/generated/sharded_memory.md

A Llama with random weights, which transformers shards over the processes when it loads it, trained by FAMTrainer. Every
method gets processes of its own. Peaks are above what a process held before the training, and the largest of all
processes: of torch's own allocations, by its profiler, which is exact; and of the resident set (cost/memory.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from cost.memory import peak_allocation, peak_resident

from hf_fam.processes.leaving import leave

HIDDEN = "model.layers.1.mlp.down_proj"
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"fam_lambda": 0.0},
    "head, row probes": {"fam_estimator": "row_probes"},
    "head, exact": {"fam_estimator": "closed_form"},
    "hidden layer, perturbation": {"fam_layer": HIDDEN},
}
# A first training fills caches; both are measured in trainings of this many steps.
STEPS = 3


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--items", type=int, default=4, help="of each process in a step (default: 4)")
    parser.add_argument("--tokens", type=int, default=256, help="of an item (default: 256)")
    parser.add_argument("--output", type=Path, help="write the table into this file, too")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def save_model(folder: Path, options: argparse.Namespace) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=options.tokens,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_trainer(options: argparse.Namespace) -> Any:
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    from hf_fam import FAMTrainer, FAMTrainingArguments

    args = FAMTrainingArguments(
        output_dir=str(options.model / "out"),
        use_cpu=True,
        max_steps=STEPS,
        per_device_train_batch_size=options.items,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        **{"fam_lambda": 0.003, **METHODS[options.measure]},
    )
    model = LlamaForCausalLM.from_pretrained(
        options.model, distributed_config=DistributedConfig(fsdp_size=options.processes)
    )
    draw = torch.Generator().manual_seed(1)
    count = STEPS * options.items * options.processes
    rows = torch.randint(options.vocabulary, (count, options.tokens), generator=draw).tolist()
    return FAMTrainer(model=model, args=args, train_dataset=[{"input_ids": row, "labels": row} for row in rows])


def measure(options: argparse.Namespace) -> None:
    """Print the peaks of this method as JSON, in the first process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trainer = make_trainer(options)
    assert (trainer.relative_flatness is None) == (options.measure == "plain")
    assert trainer.args.world_size == options.processes
    before = peak_resident()
    trainer.train()
    resident = peak_resident() - before
    trainer = make_trainer(options)
    allocated = peak_allocation(trainer.train)
    peaks = trainer.accelerator.gather(torch.tensor([[allocated, resident]], dtype=torch.float64)).amax(0)
    if trainer.accelerator.is_main_process:
        print(json.dumps(peaks.tolist()))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def measured(folder: Path, method: str, options: argparse.Namespace) -> tuple[float, float]:
    """Peaks of one method in bytes: torch's allocations, and the resident set."""
    given = {"measure": method, "model": folder, "processes": options.processes, "vocabulary": options.vocabulary}
    given |= {"width": options.width, "items": options.items, "tokens": options.tokens}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.processes}"]
    command = [*launcher, __file__, *(part for name, value in given.items() for part in (f"--{name}", str(value)))]
    # glibc gives freed blocks back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("["))
    allocated, resident = json.loads(line)
    return allocated, resident


def table(options: argparse.Namespace) -> str:
    """Markdown."""
    tokens = options.items * options.tokens
    logits = 4 * tokens * options.vocabulary / 2**20
    lines = [
        f"{options.processes} processes, {tokens:,} tokens each, vocabulary {options.vocabulary:,}, "
        f"m = {options.width}, float32. One gradient of the logits has {logits:.0f} MiB.",
        "",
        "| | torch's allocations, MiB | more than plain | resident set, MiB | more than plain |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), options)
        plain: tuple[float, float] | None = None
        for method in METHODS:
            peaks = measured(Path(folder), method, options)
            plain = plain or peaks
            cells = [f"{x / 2**20:.0f} | {(x - p) / 2**20:+.0f}" for x, p in zip(peaks, plain, strict=True)]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if options.measure:
        measure(options)
        return
    text = table(options)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
    leave(0)
