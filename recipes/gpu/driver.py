"""Run all sections one after the other, each in a process of its own and within its time; print a summary.

    bash recipes/gpu/run.sh

The most valuable sections come first. A section that fails or runs out of time does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Section:
    """A part of the run.

    Attributes:
        name: its name, and that of its log.
        command: arguments of Python.
        seconds: most time that it gets.
    """

    name: str
    command: Sequence[str]
    seconds: float


def sections(options: argparse.Namespace) -> list[Section]:
    """The sections in order; together they get less than nine minutes."""
    out, tiny = str(options.output), ["--tiny"] if options.tiny else []
    common = ["--output", out, "--device", options.device, *tiny]
    tests = ["-m", "pytest", "tests/gpu", "-v", "--tb=short", "--maxfail=30", "--no-header", "-rfEs",
             "-p", "no:cacheprovider"]  # fmt: skip
    cost = ["-m", "recipes.gpu.cost", *common]
    encoders = ",".join(("bert", "roberta", "vit", "resnet", "small_resnet", "stored_features"))
    return [
        Section("tests", [*tests, "-k", "not compiled"], 130),
        Section("encoders", [*cost, "--rows", encoders, "--seconds", "100"], 115),
        Section("language_models", [*cost, "--rows", "llama_1b,llama_1b_lora,llama_8b_slice", "--seconds", "120"], 140),
        Section("compiled", [*tests, "-k", "compiled"], 60),
        Section("fashion_mnist", ["-m", "recipes.gpu.fashion_mnist", *common, "--seconds", "60"], 80),
    ]


def run(section: Section, seconds: float, folder: Path) -> dict[str, object]:
    """Run a section, end it with all its children when its time is over, and say how it went."""
    started = time.monotonic()
    with open(folder / f"{section.name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *section.command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | str = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = "out of time"
    return {"section": section.name, "code": code, "seconds": round(time.monotonic() - started, 1)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/gpu"), help="folder for the results")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: checks the scripts")
    parser.add_argument("--seconds", type=float, default=525, help="most time of all sections (default: 525)")
    parser.add_argument("--only", default="", help="names of sections, separated by commas (default: all)")
    options = parser.parse_args(arguments)
    os.environ["GPU_TESTS_DEVICE"] = options.device
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + options.seconds, 0
    wanted = [s for s in sections(options) if not options.only or s.name in options.only.split(",")]
    with open(options.output / "sections.jsonl", "w", encoding="utf-8") as file:
        for section in wanted:
            left = end - time.monotonic()
            if left < 5:
                result: dict[str, object] = {"section": section.name, "code": "no time left", "seconds": 0.0}
            else:
                result = run(section, min(section.seconds, left), options.output)
            failed += result["code"] != 0
            print(f"== {section.name}: {result['code']} after {result['seconds']} s", flush=True)
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(last_lines(options.output / f"{section.name}.log", 60 if result["code"] != 0 else 25), flush=True)
    return int(failed > 0)


def last_lines(path: Path, count: int) -> str:
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


if __name__ == "__main__":
    sys.exit(main())
