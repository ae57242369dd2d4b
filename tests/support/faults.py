"""Trainings in which something goes wrong in one process; launched by tests/distributed/test_faults.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_fam import FAMTrainer
from hf_fam.processes.decisions import NonFiniteFlatnessError
from support.arrangements import IN_ORDER
from support.leaving import leave_together
from support.tiny import arguments, fam_trainer, tiny_bert, weights

STEPS, SAVED, STOPS_AT = 6, 2, 3  # saved every second step; what stops comes in the fourth


class At(TrainerCallback):
    """Something that happens when a step begins."""

    def __init__(self, what: str, folder: Path) -> None:
        self.what, self.folder = what, folder

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != STOPS_AT:
            return
        if self.what == "killed" and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "waits":
            (self.folder / f"{args.process_index}.pid").write_text(str(os.getpid()))
            time.sleep(600)


def run(folder: Path, what: str, resume: bool = False) -> dict[str, Tensor]:
    """Probes, a running mean, warm-up, dropout and a shuffled order: all that a resumption has to get right."""
    trainer = fam_trainer(
        folder,
        tiny_bert(seed=int(resume)),
        callbacks=[At(what, folder)],
        fam_layer="representation",
        fam_estimator="gauss_newton",
        fam_lambda=5.0,
        fam_center=True,
        fam_warmup_steps=5,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVED,
        per_device_train_batch_size=2,
    )
    trainer.train(resume_from_checkpoint=True if resume else None)
    return weights(trainer.model)


class Net(nn.Module):
    """A classifier, or a regression without labels that are numbers, of items that contain numbers."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.loss = nn.Linear(4, 6), nn.Linear(6, 3 if loss == "classes" else 1), loss

    def forward(self, x: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        logits = self.head(self.body(x).tanh())
        if self.loss == "squares":
            return {"loss": nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype)), "logits": logits}
        each = nn.functional.cross_entropy(logits, labels.long().clamp_min(0), reduction="none")
        # Ignores num_items_in_batch; of items without a label, 0.
        return {"loss": (each * (labels >= 0)).mean(), "logits": logits}


def items(count: int, loss: str) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(4)
    xs, ys = torch.randn(count, 4, generator=draw), torch.randint(3, (count,), generator=draw)
    return [{"x": x, "labels": y.float() if loss == "squares" else y} for x, y in zip(xs, ys, strict=True)]


def net_trainer(folder: Path, data: list[Any], loss: str, batch: int, **given: Any) -> FAMTrainer:
    settings = {"max_steps": 4, "fam_lambda": 0.1, "optim": "sgd", "max_grad_norm": 0.0, "fam_layer": "head"}
    settings |= IN_ORDER
    args = arguments(folder, per_device_train_batch_size=batch, **{**settings, **given})
    return FAMTrainer(model=Net(loss), args=args, train_dataset=data)


def without_first_labels() -> list[dict[str, Tensor]]:
    """The first four items, all that process 0 gets at first, have no label."""
    data = items(32, "classes")
    return [{**item, "labels": torch.tensor(-1)} if k < 4 else item for k, item in enumerate(data)]


# Bad numbers in the 13th item, which process 1 gets in the second step; in the features, or in the label.
NOT_A_NUMBER = {
    "features, closed form": ("classes", "x", {}),
    "features, perturbation": ("classes", "x", {"fam_layer": "body", "fam_estimator": "perturbation"}),
    "features, Hessian, accumulation": (
        "classes",
        "x",
        {"fam_layer": "body", "fam_estimator": "hessian", "gradient_accumulation_steps": 2},
    ),
    "label": ("squares", "labels", {}),
}


def spoiled(name: str) -> tuple[list[dict[str, Tensor]], str, dict[str, Any]]:
    loss, key, given = NOT_A_NUMBER[name]
    data = items(64, loss)
    data[12][key] = data[12][key] * float("nan")
    return data, loss, given


def stop(folder: Path, name: str) -> dict[str, Any]:
    """Train on bad numbers and say what happened in this process."""
    data, loss, given = spoiled(name)
    trainer = net_trainer(folder, data, loss, 4, save_strategy="steps", save_steps=1, **given)
    said = "nothing"
    try:
        trainer.train()
    except NonFiniteFlatnessError as error:
        said = f"{type(error).__name__}: {error}"
    finite = all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    saved = sorted(path.name for path in (folder).glob("checkpoint-*"))
    return {"said": said, "finite": finite, "step": trainer.state.global_step, "saved": saved}


def main(what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if what in ("killed", "waits"):
        run(folder, what)
        return
    found: dict[str, Any] = {}
    if what == "resumed":
        for kind in ("killed", "waits"):
            found[kind] = run(folder / kind, "nothing", resume=True)
        found["uninterrupted"] = run(folder / "uninterrupted", "nothing")
    if what == "together":
        trainer = net_trainer(folder / "scaling", without_first_labels(), "classes", 4)
        trainer.train()
        found["scaling"] = weights(trainer.model), trainer.loss_is_scaled_for_ga
        for name in NOT_A_NUMBER:
            found[name] = stop(folder / name.replace(" ", "-"), name)
        # Numbers that only one process can measure: the other's losses are constant.
        data = items(32, "classes")
        data = [{**item, "labels": torch.tensor(-1)} if k % 8 >= 4 else item for k, item in enumerate(data)]
        constant = net_trainer(folder / "constant", data, "classes", 4, fam_warmup_steps=2)
        constant.train()
        found["constant"] = weights(constant.model), constant.state.log_history
    accelerator = Accelerator(cpu=True)
    found["processes"] = accelerator.num_processes
    torch.save(found, folder / f"{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if what == "together":
        data, loss, given = spoiled("features, closed form")
        net_trainer(folder / "uncaught", data, loss, 4, **given).train()
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
