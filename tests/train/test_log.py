"""The log of the term: means as by hand, and no memory that grows between two logs."""

from __future__ import annotations

import gc
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from hf_fam import FAMCallback
from hf_fam.train.log import FlatnessLog
from support.tiny import classified, fam_trainer, plain_arguments, tiny_bert


def live_tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, Tensor) for thing in gc.get_objects())


def entries(count: int, seed: int) -> list[dict[str, Any]]:
    """Micro-batches of steps of one to three of them, with a strength that rises and ratios now and then."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    step = draw.randrange(5)
    while len(found) < count:
        parts = draw.randint(1, 3)
        for _ in range(parts):
            squares = torch.tensor([draw.random(), draw.random()]) if draw.random() < 0.2 else None
            found.append(
                {
                    "step": step,
                    "loss": torch.tensor(draw.random()),
                    "kappa": torch.tensor(draw.gauss(1, 2)),
                    "share": 1 / parts,
                    "strength": 0.01 * min(1, (step + 1) / 50),
                    "squares": squares,
                }
            )
        step += 1
    return found[:count]


def means_by_hand(kept: list[dict[str, Any]], in_features: int) -> dict[str, float]:
    """In float64, from the list of all micro-batches."""
    steps = len({e["step"] for e in kept})
    strength = sum(e["strength"] for e in kept) / len(kept)
    measured = [e for e in kept if e["squares"] is not None]
    term = sum(float(e["squares"][0]) * e["strength"] ** 2 for e in measured)
    loss = sum(float(e["squares"][1]) for e in measured)
    return {
        "fam_kappa": sum(float(e["kappa"]) * e["share"] for e in kept) / steps,
        "fam_term": sum(float(e["kappa"]) * e["share"] * e["strength"] for e in kept) / steps,
        "fam_lambda": strength,
        "fam_grad_ratio": math.sqrt(term / loss),
        "fam_delta": math.sqrt(2 * in_features * strength),
    }


@pytest.mark.parametrize("count", [30, 63, 64, 65, 129, 1000])
def test_means_are_those_of_all_micro_batches(count: int) -> None:
    log = FlatnessLog()
    for seed in (1, 2):  # the second time on a log that was emptied
        kept = entries(count, seed)
        for entry in kept:
            log.add(**entry)
        assert log.drain(7, lambda t: t) == pytest.approx(means_by_hand(kept, 7), rel=1e-6)
    assert log.drain(7, lambda t: t) == {}


@pytest.mark.parametrize("count", [10, 200])
def test_skipped_steps_are_left_out(count: int) -> None:
    """Those of a gradient scaler, whose kappa is not finite; of such a step there is one micro-batch."""
    log, kept = FlatnessLog(), []
    for number, entry in enumerate(entries(count, 3)):
        entry |= {"step": number, "share": 1.0}
        if number % 4 == 1:
            entry |= {"kappa": torch.tensor(float("inf" if number % 8 == 1 else "nan")), "squares": None}
        else:
            kept.append(entry)
        log.add(**entry)
    assert log.drain(7, lambda t: t) == pytest.approx(means_by_hand(kept, 7), rel=1e-6)


def test_nothing_is_logged_if_all_steps_were_skipped() -> None:
    log = FlatnessLog()
    log.add(0, torch.tensor(1.0), torch.tensor(float("nan")), 1.0, 0.1, None)
    assert log.drain(7, lambda t: t) == {}


@pytest.mark.parametrize("last", [5, 63, 64, 500])
@pytest.mark.parametrize("name", ["kappa", "loss"])
def test_first_problem_is_found_whether_it_was_summed_or_not(name: str, last: int) -> None:
    log = FlatnessLog()
    for step in range(last + 1):
        values = {"kappa": torch.tensor(1.0), "loss": torch.tensor(2.0)}
        if step in (4, 5, 300):
            values[name] = torch.tensor(float("nan"))
        log.add(step, values["loss"], values["kappa"], 1.0, 0.25, None)
    said = log.problem()
    assert said is not None
    assert said.startswith(f"{'relative flatness' if name == 'kappa' else 'the loss'} is nan at step 4: ")
    assert "fam_lambda=0.25" in said
    assert log.problem() is None, "it is reported once"


def test_batch_without_labels_is_no_problem() -> None:
    """Its mean loss is NaN, and its kappa 0."""
    log = FlatnessLog()
    for step in range(100):
        log.add(step, torch.tensor(float("nan")), torch.tensor(0.0), 1.0, 0.1, None)
    assert log.problem() is None


def test_memory_does_not_grow_between_logs() -> None:
    log, counts = FlatnessLog(), []
    for step in range(2048):
        log.add(step, torch.tensor(1.0), torch.tensor(1.0), 1.0, 0.1, torch.tensor([1.0, 1.0]))
        if step % 256 == 255:
            counts.append(live_tensors())
    assert max(counts) == min(counts), counts


class Counting(TrainerCallback):
    """How many tensors are alive at the end of some steps."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (128, 320):
            self.counts[state.global_step] = live_tensors()


@pytest.mark.parametrize("with_callback", [False, True])
def test_training_that_never_logs_keeps_nothing(tmp_path: Path, with_callback: bool) -> None:
    counting = Counting()
    given: dict[str, Any] = {"max_steps": 320, "logging_steps": 10**9, "per_device_train_batch_size": 2}
    model = tiny_bert(num_hidden_layers=1)
    if with_callback:
        callbacks = [FAMCallback(0.1), counting]
        args = plain_arguments(tmp_path, **given)
        Trainer(model=model, args=args, train_dataset=classified(), callbacks=callbacks).train()
    else:
        fam_trainer(tmp_path, model, fam_lambda=0.1, callbacks=[counting], **given).train()
    assert abs(counting.counts[320] - counting.counts[128]) < 20, counting.counts
