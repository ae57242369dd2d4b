"""What WGANTrainer takes next to a loop written by hand: milliseconds of a critic step.

    python recipes/benchmarks/wgan_trainer.py                  # writes docs/generated/wgan/cost.md

Both train the same perceptrons of three hidden layers on points of the plane with the one-sided penalty, Adam and five
critic steps before each generator step. The loop is plain torch: a DataLoader, ``torch.randn``, the penalty in four
lines.
Arms alternate in random order, one thread; the table has medians and quartiles over rounds, CPU time.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_callback import TrainerCallback

from hf_fam.gan import WGANTrainer, WGANTrainingArguments

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "docs" / "generated" / "wgan" / "cost.md"
LATENT, N_CRITIC, LAMBDA = 4, 5, 10.0


def perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    sizes = [inputs, width, width, width]
    hidden = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def points(count: int) -> Tensor:
    return nn.functional.normalize(torch.randn(count, 2))


def by_hand(width: int, batch: int, steps: int) -> float:
    """Return the CPU seconds of a critic step in a plain loop."""
    torch.manual_seed(0)
    generator, critic = perceptron(LATENT, width, 2), perceptron(2, width, 1)
    loader = DataLoader(points(20 * batch), batch_size=batch, shuffle=True, drop_last=True)
    of_critic = torch.optim.AdamW(critic.parameters(), 1e-4, (0.5, 0.9), weight_decay=0.0)
    of_generator = torch.optim.AdamW(generator.parameters(), 1e-4, (0.5, 0.9), weight_decay=0.0)
    step, start = 0, 0.0
    while step < steps + N_CRITIC:
        for real in loader:
            if step == N_CRITIC:  # the first steps do not count
                start = time.process_time()
            with torch.no_grad():
                fake = generator(torch.randn(batch, LATENT))
            alpha = torch.rand(batch, 1)
            between = (alpha * real + (1 - alpha) * fake).requires_grad_()
            (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = (gradient.norm(dim=1) - 1).relu().square().mean()
            loss = critic(fake).mean() - critic(real).mean() + LAMBDA * penalty
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
            step += 1
            if step % N_CRITIC == 0:
                of_generator.zero_grad()
                (-critic(generator(torch.randn(batch, LATENT))).mean()).backward()
                of_generator.step()
            if step == steps + N_CRITIC:
                break
    return (time.process_time() - start) / steps


class Clock(TrainerCallback):
    """Reads the CPU time after the first steps and at the end."""

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step == N_CRITIC:
            self.start = time.process_time()
        self.end = time.process_time()


def by_trainer(width: int, batch: int, steps: int) -> float:
    """Return the CPU seconds of a critic step of WGANTrainer."""
    torch.manual_seed(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = WGANTrainingArguments(
            folder, latent_size=LATENT, max_steps=steps + N_CRITIC, per_device_train_batch_size=batch, use_cpu=True,
            report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        generator, critic = perceptron(LATENT, width, 2), perceptron(2, width, 1)
        trainer = WGANTrainer(generator, critic, args, train_dataset=points(20 * batch), callbacks=[clock])
        trainer.train()
    return (clock.end - clock.start) / steps


ARMS: dict[str, Callable[[int, int, int], float]] = {"loop": by_hand, "trainer": by_trainer}


def measure(width: int, batch: int, steps: int, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for number in range(rounds):
        order = list(ARMS)
        random.Random(number).shuffle(order)
        for name in order:
            found[name].append(1000 * ARMS[name](width, batch, steps))
    return found


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = ["| width | loop, ms | WGANTrainer, ms | ratio | more, ms |", "| ---: | ---: | ---: | ---: | ---: |"]
    for width in options.widths:
        found = measure(width, options.batch, options.steps, options.rounds)
        pairs = list(zip(found["trainer"], found["loop"], strict=True))
        ratio, more = spread([t / p for t, p in pairs]), spread([t - p for t, p in pairs])
        rows.append(f"| {width} | {spread(found['loop'])} | {spread(found['trainer'])} | {ratio} | {more} |")
        print(rows[-1], flush=True)
    rows += [
        "",
        f"Medians and quartiles over {options.rounds} rounds of {options.steps} critic steps, batches of "
        f"{options.batch}, CPU time of one thread, torch {torch.__version__}.",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
