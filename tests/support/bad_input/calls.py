# ruff: noqa: E501
"""Values that a Python program may give to arguments of hf_fam by mistake."""

from __future__ import annotations

import datetime
import decimal
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_fam import FAMArguments, FAMCallback, FlatnessCallback, RelativeFlatness, attach, measure_relative_flatness


@dataclass(frozen=True)
class Call:
    """A call with one wrong argument."""

    name: str
    call: Callable[[], object]
    names: tuple[str, ...]
    expected: str = "refused"
    kind: str = "arguments"

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"


class Stubborn:
    """An object with no usable text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


def values() -> dict[str, Any]:
    """Values that no numeric argument takes."""
    return {
        "huge": 10**400, "minus-huge": -(10**400), "array": np.array([1.0, 2.0]), "empty-array": np.array([]),
        "tensor": torch.ones(3), "matrix": torch.ones(2, 2), "meta": torch.ones(1, device="meta"), "nan": float("nan"),
        "inf": float("inf"), "complex": 1j, "list": [1], "dict": {"a": 1}, "bytes": b"1", "long": "x" * 5000,
        "escape": "\x1b[31mred\n\nred", "class": int, "function": len, "stream": io.StringIO(), "date": datetime.date(1, 1, 1),
        "long-list": list(range(5000)), "decimal-nan": decimal.Decimal("sNaN"), "object": Stubborn(), "negative": -1,
        "surrogate": "\ud800", "set": {1}, "module": nn.Linear(1, 1), "path": Path("x"), "text": "many",
    }  # fmt: skip


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def measured(**given: Any) -> object:
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
    given = {"layers": "head", "loss_fn": loss_of, **given}
    return measure_relative_flatness(network(), given.pop("data", data), **given)


def all_calls() -> list[Call]:
    calls = []

    def add(name: str, function: Callable[..., Any], argument: str, value: Any, *names: str) -> None:
        call = functools.partial(function, **{argument: value})
        calls.append(Call(name, call, (argument, *names)))

    for label, value in values().items():
        for argument in (
            "fam_lambda",
            "fam_probes",
            "fam_warmup_steps",
            "fam_center",
            "fam_estimator",
            "fam_loss_scaling",
        ):
            if (argument, label) in {("fam_lambda", "decimal-nan")}:
                pass
            add(f"{argument}-{label}", FAMArguments, argument, value)
        if label not in ("module", "long", "escape", "surrogate", "text"):
            add(f"fam_layer-{label}", FAMArguments, "fam_layer", value)
        for argument in (
            "probes",
            "relative_error",
            "weight_decay",
            "batch_size",
            "measures",
            "estimator",
            "layers",
            "seed",
        ):
            if (argument, label) == ("seed", "negative"):
                continue
            add(f"measure-{argument}-{label}", measured, argument, value, argument.removesuffix("s"))
        add(f"callback-items-{label}", FlatnessCallback, "items", value)
    return calls


__all__ = ["FAMCallback", "RelativeFlatness", "all_calls", "attach"]
