"""Measure a tiny BERT and write what came out; started by test_two_processes_measure.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_fam import measure_relative_flatness
from support.leaving import leave_together
from support.tiny import classified, tiny_bert


def main(output: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    model, data = tiny_bert().double(), classified(23)  # an odd number of batches, the last one smaller
    below = "bert.encoder.layer.0.output.dense"
    results = {
        "all": measure_relative_flatness(
            model, data, ["representation", "head", below], ("trace", "layerwise", "max_eigenvalue"),
            batch_size=5, accelerator=accelerator, normalize_features=True,
        ),
        "stopped": measure_relative_flatness(
            model, data, "head", batch_size=2, accelerator=accelerator, relative_error=0.2
        ),
    }  # fmt: skip
    if accelerator.is_main_process:
        found = {name: json.loads(table.to_json(item_kappas=True)) for name, table in results.items()}
        output.write_text(json.dumps({"processes": accelerator.num_processes, **found}))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
