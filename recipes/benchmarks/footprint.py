"""What hf_fam adds to an environment: the size of its wheel, and the time to import it.

    python -m build --wheel && python recipes/benchmarks/footprint.py dist/*.whl

Times are medians over fresh processes; that of an empty program is taken off.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BASE = "import transformers.trainer"
PROGRAMS = {
    "import hf_fam": "import hf_fam",
    "transformers' Trainer": BASE,
    "... and then FAMTrainer": f"{BASE}; from hf_fam import FAMTrainer",
}


def seconds(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - start


def import_times(runs: int) -> dict[str, float]:
    """Median seconds of each program; they take turns, so that a busy machine disturbs all alike."""
    programs = {"nothing": "pass", **PROGRAMS}
    seen: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(runs):
        for name, program in programs.items():
            seen[name].append(seconds(program))
    empty = statistics.median(seen.pop("nothing"))
    return {name: statistics.median(times) - empty for name, times in seen.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="?", help="say how large it is, too")
    parser.add_argument("--runs", type=int, default=15, help="processes for each time (default: 15)")
    options = parser.parse_args(argv)
    print("| | |\n| --- | ---: |")
    if options.wheel is not None:
        print(f"| wheel | {options.wheel.stat().st_size / 1000:.0f} kB |")
    for name, time_ in import_times(options.runs).items():
        print(f"| {name} | {time_:.3f} s |")


if __name__ == "__main__":
    main()
