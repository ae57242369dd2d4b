"""Every argument of the public functions refuses what it cannot be, in one sentence that names it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from hf_fam import FAMCallback, FlatLogisticRegression, FlatnessCallback, RelativeFlatness, attach
from hf_fam.compare import compare
from hf_fam.flatness.strength import delta_of, lambda_of
from hf_fam.frozen.frozen_backbone import FrozenBackbone, freeze_backbone
from hf_fam.frozen.stored_features import stored_features
from hf_fam.gan import CriticSchedule, WGANTrainingArguments, gradient_penalty, interpolate
from hf_fam.gan.points import LocalPoints
from hf_fam.inputs.text import LONGEST_MESSAGE
from hf_fam.landscape import (
    SplitCertificate,
    design_minimum,
    escape_path,
    find_critical_point,
    merge_duplicates,
    path_to_infimum,
    split_certificate,
    split_neuron,
    widen,
)
from hf_fam.landscape.callback import WidenCallback
from hf_fam.measure.feature_density import feature_density
from hf_fam.measure.generalization_gap import bound_terms, decompose_gap
from hf_fam.measure.measuring import measure_relative_flatness
from hf_fam.measure.representativeness import cross_validated_gap
from hf_fam.measure.robustness import FeatureRobustness, feature_robustness
from hf_fam.methods import METHODS, method_called, register


class Stubborn:
    """An object without a text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


X, Y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
CROSS_ENTROPY = nn.CrossEntropyLoss()
# None of these is a number, a name, a sequence of numbers or a module.
# A case may not hang.
pytestmark = pytest.mark.timeout(20)

WRONG: dict[str, Any] = {
    "huge": 10**400,
    "negative": -(10**400),
    "array": np.ones(3) * np.nan,
    "tensor": torch.tensor([[1.0, float("nan")]]),
    "nan": float("nan"),
    "long": "x" * 5000,
    "bytes": b"\x00\xff",
    "object": Stubborn(),
    "dictionary": {"a": 1},
    "complex": 1j,
    "text": "\x1b[31mmany\n",
    "none": None,
}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def data() -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(X, Y)


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    return CROSS_ENTROPY(model(batch[0]), batch[1])


def captured(strength: Any) -> None:
    with RelativeFlatness(network(), estimator="perturbation").capture(strength):
        pass


def strengthened(strength: Any) -> None:
    attach(network(), 0.1).strength = strength


def measured_by_default(**given: Any) -> Any:
    return measured(measure_relative_flatness, **given)


def measured(function: Callable[..., Any], **given: Any) -> Any:
    return function(network(), data(), **{"loss_fn": cross_entropy, **given})


def penalized(**given: Any) -> Any:
    return gradient_penalty(nn.Linear(3, 1), X, **given)


def interpolated(**given: Any) -> Any:
    codes = {"z0": torch.zeros(1, 2), "z1": torch.ones(1, 2)}
    return interpolate(nn.Linear(2, 3), **{**codes, "energy": "pullback", "steps": 1, **given})


def gap(**given: Any) -> Any:
    curve = FeatureRobustness("head", "gaussian", (0.1,), (0.02,), (0.001,), (0.02,), (0.0,), 1.0, 4, 0.1, 60, 8, False)
    return decompose_gap(curve, **{"train_loss": 0.1, "test_loss": 0.2, **given})


@functools.cache
def certificate() -> SplitCertificate:
    return split_certificate(network(), CROSS_ENTROPY, (X, Y), "0", neuron=0)


def escaped(**given: Any) -> Any:
    return escape_path(network(), **{"certificate": certificate(), "loss": CROSS_ENTROPY, "data": (X, Y), **given})


def never(seed: int) -> Any:
    raise AssertionError("a Trainer was made")


def compared(**given: Any) -> Any:
    return compare(**{"make_trainer": never, **given})


def fitted(**given: Any) -> Any:
    return FlatLogisticRegression(**given).fit(X.numpy(), Y.numpy())


def stored(**given: Any) -> Any:
    return stored_features(None, network(), data(), list, **{"settings": None, "folder": Path("never-made"), **given})


OF_WGAN = {field.name for field in fields(WGANTrainingArguments)} - {field.name for field in fields(TrainingArguments)}

CALLS: dict[str, Callable[[Any], Any]] = {
    **{
        f"RelativeFlatness {name}": lambda value, name=name: RelativeFlatness(network(), **{name: value})
        for name in ("layer", "estimator", "probes", "generator", "gradient", "center", "smoothing")
    },
    "RelativeFlatness strength": captured,
    "attach strength": lambda value: attach(network(), value),
    "attach layer": lambda value: attach(network(), 0.1, value),
    "attach row_probes": lambda value: attach(network(), 0.1, row_probes=value),
    "attach smoothing": lambda value: attach(network(), 0.1, smoothing=value),
    "AttachedFlatness strength": strengthened,
    **{
        f"FAMCallback {name}": lambda value, name=name: FAMCallback(**{name: value})
        for name in ("fam_lambda", "fam_layer", "fam_warmup_steps", "fam_smoothing")
    },
    **{
        f"feature_robustness {name}": lambda value, name=name: measured(feature_robustness, **{name: value})
        for name in ("layer", "deltas", "matrices", "samples", "batch_size", "seed")
    },
    **{
        f"feature_density {name}": lambda value, name=name: measured(feature_density, **{name: value})
        for name in ("layer", "deltas", "folds", "most_dimensions", "batch_size", "seed")
    },
    **{
        f"cross_validated_gap {name}": lambda value, name=name: measured(cross_validated_gap, **{name: value})
        for name in ("layer", "deltas", "folds", "samples", "predictor", "batch_size", "seed")
    },
    "bound_terms kappa": lambda value: bound_terms(value, 3, 5),
    "bound_terms in_features": lambda value: bound_terms(0.1, value, 5),
    "bound_terms num_items": lambda value: bound_terms(0.1, 3, value),
    **{
        f"CriticSchedule {name}": lambda value, name=name: CriticSchedule(**{name: value})
        for name in ("steps", "warmup", "warmup_steps", "warmup_every")
    },
    **{
        f"WidenCallback {name}": lambda value, name=name: WidenCallback(
            **{"layer": "0", "by": 2, "at_step": 1, name: value}
        )
        for name in ("by", "at_step", "ratio")
    },
    **{
        f"split_neuron {name}": lambda value, name=name: split_neuron(
            network(), **{"layer": "0", "neuron": 0, "ratio": 0.3, name: value}
        )
        for name in ("layer", "neuron", "ratio")
    },
    "widen layer": lambda value: widen(network(), value, by=1),
    "widen by": lambda value: widen(network(), "0", by=value),
    "widen ratio": lambda value: widen(network(), "0", by=1, ratio=value),
    **{
        f"find_critical_point {name}": lambda value, name=name: find_critical_point(
            network(), CROSS_ENTROPY, (X, Y), **{name: value}
        )
        for name in ("steps", "dense_limit", "weight_decay")
    },
    **{
        f"split_certificate {name}": lambda value, name=name: split_certificate(
            network(), CROSS_ENTROPY, (X, Y), **{"layer": "0", "neuron": 0, name: value}
        )
        for name in ("layer", "neuron", "ratio", "dense_limit", "weight_decay")
    },
    **{
        f"design_minimum {name}": lambda value, name=name: design_minimum(
            network(), **{"inputs": X, "layer": "0", name: value}
        )
        for name in ("layer", "neuron", "ratio", "depth", "scale", "dense_limit")
    },
    "merge_duplicates layer": lambda value: merge_duplicates(network(), value),
    "merge_duplicates tolerance": lambda value: merge_duplicates(network(), tolerance=value),
    "path_to_infimum points": lambda value: path_to_infimum(network(), CROSS_ENTROPY, (X, Y), points=value),
    **{f"gradient_penalty {name}": lambda value, name=name: penalized(**{name: value}) for name in ("side", "target")},
    **{f"LocalPoints {name}": lambda value, name=name: LocalPoints(**{name: value}) for name in ("around", "radius")},
    **{
        f"interpolate {name}": lambda value, name=name: interpolated(**{name: value})
        for name in ("z0", "z1", "energy", "curve", "points", "degree", "h", "steps", "learning_rate", "quantiles")
    },
    **{
        f"WGANTrainingArguments {name}": lambda value, name=name: WGANTrainingArguments(
            output_dir="never-made", report_to="none", use_cpu=True, **{name: value}
        )
        for name in sorted(OF_WGAN)
    },
    **{
        f"interpolate {name}": lambda value, name=name: interpolated(**{name: value})
        for name in ("generator", "scorer", "features", "score_range", "calibration", "chunk_size", "seed", "sphere")
    },
    "interpolate resample": lambda value: interpolated(resample=value),
    **{
        f"escape_path {name}": lambda value, name=name: escaped(**{name: value})
        for name in ("certificate", "loss", "to_ratio", "slide_points", "steps", "reduction")
    },
    "find_critical_point reduction": lambda value: find_critical_point(
        network(), CROSS_ENTROPY, (X, Y), reduction=value
    ),
    "delta_of strength": lambda value: delta_of(value, 3),
    "delta_of in_features": lambda value: delta_of(0.1, value),
    "lambda_of delta": lambda value: lambda_of(value, 3),
    "lambda_of in_features": lambda value: lambda_of(0.1, value),
    **{
        f"{function.__name__} {name}": lambda value, function=function, name=name: function(**{name: value})
        for function in (FlatnessCallback, measured_by_default)
        for name in (
            *("layers", "measures", "batch_size", "collate_fn", "loss_fn"),
            *("normalize_features", "estimator", "probes", "weight_decay", "seed"),
        )
    },
    "measure_relative_flatness relative_error": lambda value: measured_by_default(relative_error=value),
    "measure_relative_flatness progress": lambda value: measured_by_default(progress=value),
    "FlatnessCallback items": lambda value: FlatnessCallback(items=value),
    "FlatnessCallback trainer": lambda value: FlatnessCallback(trainer=value),
    **{
        f"FlatLogisticRegression {name}": lambda value, name=name: fitted(**{name: value})
        for name in ("delta", "smoothing", "center", "tol", "max_iter", "warm_start", "verbose")
    },
    **{
        f"{kind.__name__} {kind.field or 'strength'}": lambda value, kind=kind: kind(value) for kind in METHODS.values()
    },
    "method_called method": method_called,
    "register method": register,
    **{
        f"compare {name}": lambda value, name=name: compared(**{name: value})
        for name in (
            *("make_trainer", "methods", "test_dataset", "scoring_dataset", "metric", "higher_is_better", "margin"),
            *("seeds", "budget", "grid_size", "tuning_repeats", "confidence", "jobs", "output_dir", "on_progress"),
        )
    },
    "freeze_backbone model": lambda value: freeze_backbone(value),
    "freeze_backbone new": lambda value: freeze_backbone(network(), value),
    "FrozenBackbone model": lambda value: FrozenBackbone(value, {}),
    "FrozenBackbone example": lambda value: FrozenBackbone(network(), value),
    "stored_features batch_size": lambda value: stored(batch_size=value),
    "compare make_trainer(seed)": lambda value: compared(make_trainer=lambda seed: value),
    "stored_features folder": lambda value: stored(folder=value),
    **{f"decompose_gap {name}": lambda value, name=name: gap(**{name: value}) for name in ("train_loss", "test_loss")},
}


# None stands for a default.
OPTIONAL = {
    *(f"RelativeFlatness {name}" for name in ("probes", "generator", "center", "smoothing")),
    *("FAMCallback fam_lambda", "design_minimum scale", "merge_duplicates layer", "find_critical_point reduction"),
    *(f"interpolate {name}" for name in ("scorer", "features", "score_range", "chunk_size")),
    *("escape_path to_ratio", "escape_path reduction", "escape_path loss", "split_certificate reduction"),
    *(f"FlatnessCallback {name}" for name in ("collate_fn", "loss_fn", "trainer")),
    *("measured_by_default collate_fn", "measured_by_default loss_fn"),
    *("measure_relative_flatness relative_error", "measure_relative_flatness progress"),
    *(f"{kind.__name__} {kind.field or 'strength'}" for kind in METHODS.values()),
    *(f"compare {name}" for name in ("test_dataset", "scoring_dataset", "higher_is_better", "margin")),
    *(f"compare {name}" for name in ("budget", "output_dir", "on_progress")),
    *(f"WGANTrainingArguments {field.name}" for field in fields(WGANTrainingArguments) if field.default is None),
    *("WGANTrainingArguments n_critic_warmup", "WGANTrainingArguments penalty", "cross_validated_gap predictor"),
}
# Any text is a name of a layer or of a folder, which only the model or the disk can refuse.
NAMES = {"FAMCallback fam_layer", "FlatnessCallback layers", "compare output_dir"}


def is_wrong(call: str, wrong: str) -> bool:
    if wrong == "none":
        return call not in OPTIONAL
    if (call, wrong) == ("FrozenBackbone example", "dictionary"):  # a batch, which only the model can refuse
        return False
    return call not in NAMES or wrong not in ({"text"} if call == "compare output_dir" else {"text", "long"})


@pytest.mark.parametrize(
    ("call", "wrong"), [(call, wrong) for call in CALLS for wrong in WRONG if is_wrong(call, wrong)]
)
def test_one_sentence(call: str, wrong: str) -> None:
    name = call.split()[-1]
    with pytest.raises((ValueError, TypeError)) as refusal:
        CALLS[call](WRONG[wrong])
    message = str(refusal.value)
    assert name in message and len(message) < LONGEST_MESSAGE and "\n" not in message
    assert type(refusal.value) in (ValueError, TypeError)


def test_numbers_in_strings_are_numbers() -> None:
    """As YAML may have left them."""
    critic = nn.Linear(3, 1)
    assert torch.equal(gradient_penalty(critic, X, target="0.5"), gradient_penalty(critic, X, target=0.5))
    assert LocalPoints(radius="0.5").radius == 0.5
    assert interpolated(h="0.2", learning_rate="1e-3").samples is not None
