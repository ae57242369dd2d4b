"""Layers are widened in the middle of a training: the optimizer has the new parameters and the right moments."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_fam.landscape import split_neuron
from hf_fam.landscape.callback import WidenCallback, widen_in_training
from support.tiny import classified, tiny_bert

PATTERN = "*.intermediate.dense"


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults = {"max_steps": 6, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    return TrainingArguments(str(folder), **{**defaults, **options})


class Spy(TrainerCallback):
    """The loss of a fixed batch after each step, and what the optimizer trains."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.strangers: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, rows = kwargs["model"], classified(6)
        batch = {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}
        model.eval()
        with torch.no_grad():
            self.losses.append(model(**batch).loss.item())
        model.train()
        own = {id(p) for p in model.parameters()}
        trained = [p for group in kwargs["optimizer"].param_groups for p in group["params"]]
        self.strangers.append(sum(id(p) not in own for p in trained) + len(own) - len(trained))


def test_within_one_training(tmp_path: Path) -> None:
    before, after = Spy(), Spy()
    model = tiny_bert()
    callback = WidenCallback(PATTERN, by=8, at_step=3)
    trainer = Trainer(
        model, arguments(tmp_path, save_strategy="steps", save_steps=4), train_dataset=classified(16),
        callbacks=[before, callback, after],
    )  # fmt: skip
    trainer.train()
    assert after.strangers == [0] * 6 and model.config.intermediate_size == 24
    assert after.losses[2] == pytest.approx(before.losses[2], rel=1e-6), "the function stays"
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    assert not any(torch.equal(weight[16 + k], row) for k in range(8) for row in weight[:16]), "the copies part"
    moments = trainer.optimizer.state[weight]
    assert moments["exp_avg"].shape == weight.shape == (24, 16) and int(moments["step"]) == 6
    resumed = type(model).from_pretrained(tmp_path / "checkpoint-4")
    assert resumed.config.intermediate_size == 24
    again = Trainer(resumed, arguments(tmp_path), train_dataset=classified(16), callbacks=[callback])
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, value in resumed.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-6, atol=1e-7)


def networks() -> list[tuple[nn.Module, str, Tensor]]:
    linear = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    convolution = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)
    ).eval()
    return [
        (linear, "0", torch.randn(9, 3)),
        (convolution, "0", torch.randn(5, 3, 6, 6)),
        (convolution, "3", torch.randn(5, 3, 6, 6)),
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.AdamW(p, 0.0, amsgrad=True),
        lambda p: torch.optim.SGD(p, 0.0, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, 0.0, eps=1e-30, momentum=0.5),
        lambda p: torch.optim.Adagrad(p, 0.0),
    ],
)
def test_moments_are_those_of_the_split_network(build: Any, number: int) -> None:
    """With a learning rate of zero, a network that was split before has the same history, and its own states tell."""
    torch.manual_seed(0)
    model, layer, x = networks()[number]
    model, x = model.double(), x.double()
    early = copy.deepcopy(model)
    order = [1, 1, 0]
    for neuron in order:
        split_neuron(early, layer, neuron, 1.5)
    states = []
    for network in (model, early):
        optimizer = build(network.parameters())
        for step in range(3):
            optimizer.zero_grad()
            (network(x) * (step + 1)).square().sum().backward()
            optimizer.step()
        states.append(optimizer)
    late = states[0]
    widen_in_training(model, late, layer, by=3, ratio=1.5, neurons=order)
    for (name, p), (_, expected) in zip(model.named_parameters(), early.named_parameters(), strict=True):
        torch.testing.assert_close(p, expected)
        for key, value in states[1].state[expected].items():
            torch.testing.assert_close(late.state[p][key], value, rtol=1e-6, atol=1e-9, msg=f"{name} {key}")
    assert [id(p) for p in late.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_states_of_another_shape_begin_anew() -> None:
    from transformers.optimization import Adafactor

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(9, 3)
    optimizer = Adafactor(model.parameters())
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
        if model[0].out_features == 4:
            widen_in_training(model, optimizer, "0", by=2)
    assert model[0].out_features == 6 and set(optimizer.state) == set(model.parameters())


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"at_step": 9}, {}, "at_step=9: the training has only 6 steps"),
        ({"layer": "*.nothing"}, {}, "matches no linear layer"),
        ({}, {"torch_compile": True}, "with torch.compile"),
    ],
)
def test_refused_before_anything_is_trained(
    given: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = tiny_bert()
    before = copy.deepcopy(model.state_dict())
    callback = WidenCallback(**{"layer": PATTERN, "by": 8, "at_step": 3, **given})
    args = arguments(tmp_path)
    for name, value in options.items():
        setattr(args, name, value)
    with pytest.raises(ValueError, match=message):
        Trainer(model, args, train_dataset=classified(16), callbacks=[callback]).train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_the_launcher_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    callback = WidenCallback(layer=PATTERN, by=8, at_step=3)
    with pytest.raises(ValueError, match=r"with torch\.compile"):
        Trainer(tiny_bert(), arguments(tmp_path), train_dataset=classified(16), callbacks=[callback]).train()


@pytest.mark.parametrize("given", [{"by": 0}, {"at_step": 0}, {"at_step": 2.5}, {"ratio": float("nan")}])
def test_bad_arguments(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))}="):
        WidenCallback(**{"layer": PATTERN, "by": 8, "at_step": 3, **given})
