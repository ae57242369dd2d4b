"""The critic's log: means as by hand, and no memory that grows between two logs."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from torch import Tensor

from hf_fam.gan.training_log import CriticLog


def live_tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, Tensor) for thing in gc.get_objects())


def test_means_are_those_of_all_micro_batches() -> None:
    """A penalty every third step, in steps of one to three micro-batches; a generator step every second."""
    draw, log = random.Random(1), CriticLog()
    for _ in range(2):  # the second time on a log that was emptied
        estimates, penalties, terms, losses, largest = [], [], [], [], 0.0
        steps = 500
        for step in range(steps):
            parts = draw.randint(1, 3)
            for _part in range(parts):
                estimate, penalty = torch.tensor(draw.gauss(0, 1)), torch.tensor(draw.random())
                norms = torch.tensor([draw.random(), draw.random() * 5])
                estimates.append(float(estimate) / parts)
                if step % 3 == 0:
                    penalties.append(float(penalty) / parts)
                    terms.append(30 * float(penalty) / parts)
                    largest = max(largest, float(norms.max()))
                    log.add_critic(step, 1 / parts, estimate, penalty, norms, 30.0)
                else:
                    log.add_critic(step, 1 / parts, estimate)
            if step % 2 == 0:
                loss = torch.tensor(draw.random())
                losses.append(float(loss))
                log.add_generator(step, 1.0, loss)
        expected = {
            "wasserstein_estimate": sum(estimates) / steps,
            "gradient_penalty": sum(penalties) / len(range(0, steps, 3)),
            "penalty_term": sum(terms) / steps,
            "generator_loss": sum(losses) / len(losses),
            "gradient_violation": largest - 1.5,
        }
        assert log.drain(1.5, lambda t: t, lambda t: t) == pytest.approx(expected, rel=1e-6)


def test_memory_does_not_grow_between_logs() -> None:
    log, counts = CriticLog(), []
    for step in range(400):
        log.add_critic(step, 1.0, torch.tensor(1.0), torch.tensor(1.0), torch.ones(3), 10.0)
        log.add_generator(step, 1.0, torch.tensor(1.0))
        if step % 100 == 99:
            counts.append(live_tensors())
    assert max(counts) == min(counts), counts
