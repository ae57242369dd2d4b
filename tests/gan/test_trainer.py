"""What a step of WGANTrainer does, against a loop that is written out; settings of each network; mixed precision."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import HfArgumentParser, TrainerCallback

from hf_fam.gan import (
    CriticSchedule,
    ItemRandomNumbers,
    LinePoints,
    WGANTrainer,
    WGANTrainingArguments,
    collate_samples,
    gradient_penalty,
)
from support.gans import InOrder, everything, points, tiny_critic, tiny_generator, wgan_arguments, wgan_trainer
from support.tiny import logged


def latents(purpose: str, step: int, count: int, seed: int = 42) -> Tensor:
    return ItemRandomNumbers((seed, purpose, step), 0, count).normal((count, 3))


def written_out(generator: nn.Module, critic: nn.Module, data: Tensor, steps: int, n_critic: int) -> list[float]:
    """Gulrajani et al. 2017, algorithm 1, with the one-sided penalty, plain Adam twice."""
    of_critic = torch.optim.Adam(critic.parameters(), 1e-2, (0.5, 0.9))
    of_generator = torch.optim.Adam(generator.parameters(), 2e-3, (0.4, 0.8))
    estimates = []
    for step in range(steps):
        real = data.roll(-8 * step, 0)[:8]
        fake = generator(latents("critic", step, 8)).detach()
        where = LinePoints()(real, fake, generator=ItemRandomNumbers((42, "points", step), 0, 8))
        estimate = critic(real).mean() - critic(fake).mean()
        estimates.append(estimate.item())
        of_critic.zero_grad()
        (-estimate + 3.0 * gradient_penalty(critic, where, target=0.01)).backward()
        of_critic.step()
        if (step + 1) % n_critic == 0:
            of_generator.zero_grad()
            (-critic(generator(latents("generator", step, 8))).mean()).backward()
            of_generator.step()
    return estimates


def test_training_is_the_written_out_loop(tmp_path: Path) -> None:
    """In float64; two torch optimizers there, one with two groups here."""
    own, reference = ((tiny_generator().double(), tiny_critic().double()) for _ in range(2))
    data = points(48).double()
    estimates = written_out(*reference, data, steps=6, n_critic=2)
    own_settings = {"generator_learning_rate": 2e-3, "generator_adam_beta1": 0.4, "generator_adam_beta2": 0.8}
    trainer = wgan_trainer(tmp_path, *own, train_dataset=data, kind=InOrder, penalty_lambda=3.0, **own_settings)
    trainer.train()
    for network, expected in zip(own, reference, strict=True):
        for result, wanted in zip(network.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-12)
    assert logged(trainer, "wasserstein_estimate") == pytest.approx(estimates, rel=1e-6)
    assert logged(trainer, "loss") == pytest.approx(
        [t - e for t, e in zip(logged(trainer, "penalty_term"), estimates, strict=True)], rel=1e-4
    )


class CriticWeights(TrainerCallback):
    """Keeps the critic's weights at the event at which the generator steps.

    Callbacks run in the order in which they were added: before or after the generator's step.
    """

    def __init__(self, critic: nn.Module) -> None:
        self.critic, self.kept = critic, []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.kept.append(copy.deepcopy(self.critic.state_dict()))


def test_generator_steps_leave_the_critic_alone(tmp_path: Path) -> None:
    """Weights, optimizer state, and the flags of frozen layers."""
    critic = tiny_critic()
    critic[0].weight.requires_grad_(False)
    before = critic[0].weight.clone()
    before_step, after_step = CriticWeights(critic), CriticWeights(critic)
    trainer = wgan_trainer(tmp_path, critic=critic, callbacks=[before_step], n_critic=1, max_steps=3)
    trainer.add_callback(after_step)
    trainer.train()
    assert len(before_step.kept) == 3 and torch.equal(critic[0].weight, before)
    for earlier, later in zip(before_step.kept, after_step.kept, strict=True):
        assert all(torch.equal(weight, earlier[name]) for name, weight in later.items())
    assert not torch.equal(after_step.kept[0]["5.weight"], after_step.kept[1]["5.weight"])
    assert [p.requires_grad for p in critic.parameters()] == [False, *[True] * 5]
    steps = {group["network"]: trainer.optimizer.state[group["params"][0]]["step"].item()
             for group in trainer.optimizer.param_groups}  # fmt: skip
    assert steps == {"critic": 3, "generator": 3}


def test_average_of_the_generator(tmp_path: Path) -> None:
    trainer = wgan_trainer(tmp_path, ema_decay=0.75, n_critic=1, max_steps=1)
    start = copy.deepcopy(trainer.generator)
    trainer.train()
    assert trainer.ema_generator is not None
    triples = zip(trainer.ema_generator.parameters(), start.parameters(), trainer.generator.parameters(), strict=True)
    for average, first, last in triples:
        torch.testing.assert_close(average, 0.75 * first + 0.25 * last)
        assert not average.requires_grad


def test_uniform_latent_codes_are_on_minus_one_to_one(tmp_path: Path) -> None:
    """What the generator sees in steps of either network."""
    scipy_stats = pytest.importorskip("scipy.stats")
    generator, seen = tiny_generator().double(), []
    trainer = wgan_trainer(
        tmp_path, generator, tiny_critic().double(), train_dataset=points(64).double(), latent_prior="uniform",
        per_device_train_batch_size=64, max_steps=4,
    )  # fmt: skip
    generator.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    trainer.train()
    expected = [("critic", 0), ("critic", 1), ("generator", 1), ("critic", 2), ("critic", 3), ("generator", 3)]
    for result, (purpose, step) in zip(seen, expected, strict=True):
        assert torch.equal(result, 2 * ItemRandomNumbers((42, purpose, step), 0, 64).uniform((64, 3)) - 1)
    codes = torch.cat(seen).flatten()
    assert -1 < codes.min() < -0.95 and 0.95 < codes.max() < 1
    assert scipy_stats.kstest(codes.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e3])
def test_the_gradient_of_the_generator_is_clipped(tmp_path: Path, limit: float) -> None:
    """A step of plain gradient descent is as long as its gradient; the critic is then as the generator saw it."""
    generator, critic = tiny_generator().double(), tiny_critic().double()
    start = copy.deepcopy(generator)
    trainer = wgan_trainer(
        tmp_path, generator, critic, train_dataset=points(8).double(), optim="sgd", max_grad_norm=limit, n_critic=1,
        max_steps=1,
    )  # fmt: skip
    trainer.train()
    loss = -critic(start(latents("generator", 0, 8))).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(start.parameters()))])
    moved, before = (torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (generator, start))
    norm = gradient.norm()
    assert 3e-3 < norm < 1
    scale = limit / (norm + 1e-6) if limit == 1e-3 else 1.0
    torch.testing.assert_close(moved, before - 1e-2 * scale * gradient, rtol=1e-10, atol=1e-12)


def test_lazy_penalty_is_scaled(tmp_path: Path) -> None:
    """At equal weights, the term of one step in three is three times that of every step."""
    every, lazy = (
        wgan_trainer(tmp_path, learning_rate=1e-12, penalty_every=n, max_steps=6, logging_steps=n) for n in (1, 3)
    )
    every.train()
    lazy.train()
    terms = logged(every, "penalty_term")
    assert terms[0] > 0
    assert logged(lazy, "penalty_term") == pytest.approx([terms[0], terms[3]], rel=1e-4)
    assert logged(lazy, "gradient_penalty") == pytest.approx(
        [logged(every, "gradient_penalty")[k] for k in (0, 3)], rel=1e-4
    )


def test_weights_are_clipped_after_each_critic_step(tmp_path: Path) -> None:
    trainer = wgan_trainer(tmp_path, penalty="none", clip_limit=0.05)
    trainer.train()
    assert max(p.abs().max().item() for p in trainer.critic.parameters()) == pytest.approx(0.05)
    assert max(p.abs().max().item() for p in trainer.generator.parameters()) > 0.05
    assert logged(trainer, "gradient_penalty") == [] and len(logged(trainer, "wasserstein_estimate")) == 6


@pytest.mark.parametrize("given", [{"steps": 0}, {"warmup": 0}, {"warmup_steps": -1}, {"warmup_every": 2.5}])
def test_schedules_that_are_refused(given: dict[str, Any]) -> None:
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"{name}={value}: give a whole number from"):
        CriticSchedule(**given)


def test_schedule_of_the_critic() -> None:
    """Against counting, with a warm-up that comes back."""
    schedule = CriticSchedule(steps=3, warmup=7, warmup_steps=2, warmup_every=5)
    needed = [7 if g < 2 or g % 5 == 0 else 3 for g in range(40)]
    assert [schedule.critic_steps(g) for g in range(41)] == [sum(needed[:g]) for g in range(41)]
    done, follows = 0, []
    for critic_step in range(sum(needed)):
        follows.append(schedule.generator_follows(critic_step))
        done += follows[-1]
        assert schedule.generator_steps(critic_step + 1) == done
    assert done == 40


def test_learning_rates_follow_each_networks_own_steps(tmp_path: Path) -> None:
    trainer = wgan_trainer(
        tmp_path, max_steps=8, n_critic=2, critic_lr_scheduler_type="linear", generator_lr_scheduler_type="linear",
        generator_learning_rate=1.0,
    )  # fmt: skip
    trainer.train()
    assert logged(trainer, "learning_rate") == pytest.approx([1e-2 * (1 - k / 8) for k in range(8)])
    # Rates after the step: four generator steps, after critic steps 2, 4, 6 and 8.
    assert logged(trainer, "generator_learning_rate") == pytest.approx([1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0])
    assert logged(trainer, "generator_steps") == [0, 1, 1, 2, 2, 3, 3, 4]


def test_violation_is_the_largest_norm(tmp_path: Path) -> None:
    critic = nn.Linear(2, 1)
    critic.weight.data = torch.tensor([[3.0, 4.0]])
    trainer = wgan_trainer(tmp_path, critic=critic, learning_rate=1e-12, max_steps=1, penalty_target=2.0)
    trainer.train()
    assert logged(trainer, "gradient_violation") == pytest.approx([3.0], rel=1e-5)
    assert logged(trainer, "gradient_penalty") == pytest.approx([9.0], rel=1e-5)


def test_bfloat16(tmp_path: Path) -> None:
    """Networks run in bfloat16, the penalty and the mean of values in float32; close to float32 training."""
    kinds: list[torch.dtype] = []

    class Watched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            values: Tensor = super().forward(x)
            kinds.append(values.dtype)
            return values

    full, half = (
        wgan_trainer(tmp_path, critic=Watched(*tiny_critic()), bf16=bf16, learning_rate=1e-3, penalty_lambda=1.0)
        for bf16 in (False, True)
    )
    full.train()
    assert set(kinds) == {torch.float32}
    kinds.clear()
    half.train()
    assert set(kinds) == {torch.bfloat16, torch.float32}  # values; gradients for the penalty
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert logged(half, "wasserstein_estimate") == pytest.approx(logged(full, "wasserstein_estimate"), abs=0.02)
    assert logged(half, "gradient_violation") == pytest.approx(logged(full, "gradient_violation"), abs=0.02)
    ends = [torch.cat([p.detach().flatten() for p in t.model.parameters()]) for t in (full, half)]
    assert 0 < (ends[0] - ends[1]).norm() / ends[0].norm() < 0.01


@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop", "sgd"])
def test_kinds_of_optimizers(tmp_path: Path, optim: str) -> None:
    trainer = wgan_trainer(tmp_path, optim=optim)
    before = everything_of(trainer)
    trainer.train()
    same = [n for n, w in everything_of(trainer).items() if torch.equal(w, before[n])]
    assert set(same) <= {"critic.5.bias"}  # a constant changes neither estimate nor slope


def everything_of(trainer: WGANTrainer) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in trainer.model.state_dict().items()}


@pytest.mark.parametrize("form", ["tensor", "pairs", "dicts", "dataset"])
def test_forms_of_data(tmp_path: Path, form: str) -> None:
    """All are the same training."""
    data = points(24)
    forms: dict[str, Any] = {
        "tensor": data,
        "pairs": TensorDataset(data, torch.arange(24)),
        "dicts": [{"image": x.tolist(), "label": k} for k, x in enumerate(data)],
    }
    if form == "dataset":
        datasets = pytest.importorskip("datasets")
        forms["dataset"] = datasets.Dataset.from_dict({"label": list(range(24)), "pixel_values": data.tolist()})
    one, other = (wgan_trainer(tmp_path, train_dataset=d, max_steps=2) for d in (data, forms[form]))
    one.train()
    other.train()
    expected = everything(one)
    assert all(torch.equal(t, expected[name]) for name, t in everything(other).items())


def test_batch_of_one(tmp_path: Path) -> None:
    for where in ("line", "local_both"):
        trainer = wgan_trainer(tmp_path, per_device_train_batch_size=1, penalty_points=where)
        trainer.train()
        assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_numbers_of_an_item_do_not_depend_on_its_batch() -> None:
    whole = ItemRandomNumbers((1, "a", 2), 0, 10)
    parts = [ItemRandomNumbers((1, "a", 2), k, 5) for k in (0, 5)]
    for shape in ((2, 3), ()):
        assert torch.equal(whole.uniform((10, *shape)), torch.cat([p.uniform((5, *shape)) for p in parts]))
    assert not torch.equal(whole.uniform((10,)), whole.uniform((10,)))


def splitmix(state: int, number: int) -> int:
    """Steele, Lea, Flood 2014, in whole numbers of Python."""
    x = (state + 0x9E3779B97F4A7C15 * (number + 1)) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_draws_are_those_of_the_published_generator() -> None:
    """Bit for bit."""
    draws = ItemRandomNumbers((3, "latents", 7), 5, 4)
    for call in range(2):
        digest = hashlib.blake2b(repr((3, "latents", 7, call)).encode(), digest_size=8).digest()
        start = int.from_bytes(digest, "little")
        expected = [
            [((splitmix(splitmix(start, item), position) >> 11) + 0.5) / 2**53 for position in range(6)]
            for item in range(5, 9)
        ]
        assert draws.uniform((4, 6)).tolist() == expected


def test_the_norm_of_the_gradients_is_computed_where_it_is_logged(tmp_path: Path) -> None:
    """With the logs of a trainer that always computes it."""

    class Counting(WGANTrainer):
        always = False
        computed = 0

        def needs_gradient_norm(self) -> bool:
            needed = self.always or super().needs_gradient_norm()
            self.computed += needed
            return needed

    for settings, count in (
        ({"logging_steps": 3}, 2),
        ({"logging_steps": 3, "logging_first_step": True}, 3),
        ({"logging_strategy": "epoch"}, 7),
        ({"logging_strategy": "no"}, 0),
    ):
        results = []
        for always in (False, True):
            trainer = wgan_trainer(tmp_path, kind=Counting, max_steps=7, **settings)
            trainer.always = always
            trainer.train()
            results.append((logged(trainer, "grad_norm"), logged(trainer, "loss"), everything(trainer)))
            assert trainer.computed == (7 if always else count)
        assert results[0][:2] == results[1][:2]
        assert all(torch.equal(value, results[1][2][name]) for name, value in results[0][2].items())


def test_draws_are_uniform_and_normal() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    draws = ItemRandomNumbers((0, "x", 0), 0, 200)
    assert scipy_stats.kstest(draws.uniform((200, 100)).flatten().numpy(), "uniform").pvalue > 1e-3
    normal = draws.normal((200, 100))
    assert scipy_stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(normal.T) - torch.eye(100)
    assert correlation.abs().max() < 6 / 200**0.5


def test_arguments_from_the_command_line() -> None:
    given = ["--output_dir", "out", "--latent_size", "8", "--penalty", "two", "--ema_decay", "0.9", "--eval_emd"]
    (args,) = HfArgumentParser(WGANTrainingArguments).parse_args_into_dataclasses([*given, "--report_to", "none"])
    assert (args.latent_size, args.penalty, args.ema_decay, args.eval_emd) == (8, "two", 0.9, True)
    assert (args.learning_rate, args.adam_beta1, args.max_grad_norm) == (1e-4, 0.5, 0.0)


def test_best_checkpoint_is_the_one_with_the_smallest_distance(tmp_path: Path) -> None:
    args = wgan_arguments(
        tmp_path, metric_for_best_model="emd", eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, eval_emd=True,
    )  # fmt: skip
    trainer = WGANTrainer(tiny_generator(), tiny_critic(), args=args, train_dataset=points(), eval_dataset=points(20))
    trainer.train()
    assert trainer.state.best_metric == min(logged(trainer, "eval_emd"))


def test_collator_stacks_what_is_not_floating_point_never() -> None:
    with pytest.raises(ValueError, match="samples of type torch.uint8: give floating-point ones"):
        collate_samples([torch.zeros(2, dtype=torch.uint8)] * 2)
    batch = collate_samples([(torch.zeros(2).numpy(), 1), (torch.ones(2).numpy(), 0)])
    assert torch.equal(batch["samples"], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
