"""Train a layer that one process does not call; started by test_two_processes_skipped_layer.py."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from hf_fam import FAMTrainer, RelativeFlatness
from support.leaving import leave_together
from support.skipping import Skipping, examples
from support.tiny import arguments


def trained(folder: Path, model: Skipping, **given: object) -> list[dict[str, float]]:
    args = arguments(
        folder, fam_layer="experts.0", ddp_find_unused_parameters=True, per_device_train_batch_size=2, **given
    )
    trainer = FAMTrainer(model=model, args=args, train_dataset=examples(32))
    model.calls_expert = tuple(bool((step + trainer.args.process_index) % 2) for step in range(2))
    trainer.train()
    return [entry for entry in trainer.state.log_history if "fam_kappa" in entry]


def main(folder: Path) -> None:
    model = Skipping(True)
    initial = copy.deepcopy(model)
    (logged,) = trained(folder, model, fam_estimator="dense", fam_lambda=0.3, max_steps=1)
    calls = model.calls_expert[0]
    expected = torch.zeros((), dtype=torch.float64)
    if calls:
        initial.calls_expert = (True,)
        flatness = RelativeFlatness(initial, "experts.0", "dense")
        with flatness.capture():
            loss = initial(*model.inputs[0])["loss"]
        expected = flatness(loss).detach()
    dist.all_reduce(expected)
    centered = Skipping(True)
    of_steps = trained(folder, centered, fam_estimator="hessian", fam_center=True, fam_lambda=0.3, max_steps=5)
    weights = torch.cat([p.detach().flatten() for p in centered.parameters()])
    others = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(others, weights)
    if dist.get_rank() == 0:
        result = {
            "logged": logged["fam_kappa"],
            "expected": expected.item() / dist.get_world_size(),
            "kappas": [entry["fam_kappa"] for entry in of_steps],
            "same": all(torch.equal(weights, other) for other in others),
        }
        (folder / "found.json").write_text(json.dumps(result))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
