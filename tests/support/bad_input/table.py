"""Run all cases, each in a process of its own, and count what happens, by kind.

python tests/support/bad_input/table.py [--only TEXT] [--seconds 60] [--details FILE]
"""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
sys.path.insert(0, str(Path(__file__).parents[2]))

import datasets
import peft
import torch
import transformers

from support.bad_input import calls, catalog, outcome
from support.bad_input.models import make_models

OUTCOMES = ("refused", "accepted", "untidy", "traceback", "crash", "hang")


def in_a_process(run, seconds: float) -> outcome.Outcome:
    """The outcome of a function in a forked process, or its crash or its hang."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            with os.fdopen(writing, "wb") as sink:
                pickle.dump(run(), sink)
        finally:
            os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            with os.fdopen(reading, "rb") as source:
                content = source.read()
            return pickle.loads(content) if content else outcome.Outcome("crash", f"status {status}")
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(reading)
    return outcome.Outcome("hang", f"more than {seconds:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--details", type=Path)
    parser.add_argument("--skip", type=int, default=0)
    options = parser.parse_args()
    del datasets.__doc__, peft.__doc__  # imported for the forks
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    root = Path(tempfile.mkdtemp())
    models = make_models(root / "models")
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    details = []
    for case in [*catalog.all_cases(), *calls.all_calls()][options.skip :]:
        if options.only not in str(case):
            continue
        folder = root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        if isinstance(case, catalog.Case):
            words = case.make(folder, models)
            result = in_a_process(
                lambda w=words, c=case: outcome.of_command(w, c.names, root / "case", c.trains), options.seconds
            )
        else:
            result = in_a_process(lambda c=case: outcome.of_call(c.call, c.names), options.seconds)
        right = result.kind == case.expected
        counts[case.kind][result.kind if right or result.kind != "refused" else "refused in vain"] += 1
        counts[case.kind]["right" if right else "wrong"] += 1
        details.append(f"{'right' if right else 'WRONG'}\t{case}\t{result.kind}\t{result.said!r}")
        if options.details:
            options.details.write_text("\n".join(details) + "\n")
    columns = [*OUTCOMES, "refused in vain", "right", "wrong"]
    print("| kind | cases | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 2) + "|")
    for kind, found in counts.items():
        total = found["right"] + found["wrong"]
        print(f"| {kind} | {total} | " + " | ".join(str(found[name]) for name in columns) + " |")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
