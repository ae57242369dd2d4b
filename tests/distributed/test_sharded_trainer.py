"""FAMTrainer under FSDP2: gradients, weights and logs are those of one process and of DistributedDataParallel.

Two and four CPU processes over gloo, which accelerate takes for GPUs (tests/support/cpus_as_gpus).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.launch import ROOT, launch
from support.sharded_trainings import (
    CASES,
    COUNTED,
    DEBUGGED,
    EQUAL,
    FAULTS,
    MORE,
    UNEQUAL,
    UNEQUAL_SETTINGS,
    trained,
)

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

SCRIPT = ROOT / "tests" / "support" / "sharded_trainings.py"
# Largest relative difference of the weights after five steps in float64.
TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("sharded")
    launch(SCRIPT, str(folder), EQUAL, MORE, as_gpus=True)
    result: dict[Any, Any] = torch.load(folder / "found.pt", weights_only=False)
    return result


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What two or four processes found."""
    if request.param == 2:
        return request.getfixturevalue("found")
    folder = tmp_path_factory.mktemp("four")
    launch(SCRIPT, str(folder), EQUAL, as_gpus=True, processes=request.param)
    return torch.load(folder / "found.pt", weights_only=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The same training in this process, once."""
    folder, results = tmp_path_factory.mktemp("alone"), {}

    def train(name: str, **given: Any) -> dict[str, Any]:
        key = (name, *given.values())
        if key not in results:
            results[key] = trained(folder, name, 1, sharded=False, **given)
        return results[key]

    return train


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    return float((one["weights"] - other["weights"]).norm() / other["weights"].norm())


@pytest.mark.parametrize("name", CASES)
def test_several_processes_equal_one(several: Any, alone: Any, name: str) -> None:
    one, averaged, sharded = alone(name), several[name, False], several[name, True]
    assert sharded["model"].startswith("FSDP") and not averaged["model"].startswith("FSDP")
    without = alone(name, fam_lambda=1e-30 if "perturbed" in name else 0.0)
    assert difference(without, one) > 1e-4, "the term is too small to be missed"
    for result in (averaged, sharded):
        assert difference(result, one) < TOLERANCE
        for log in ("loss", "fam_kappa", "fam_lambda"):
            assert result[log] == pytest.approx(one[log], rel=1e-6), log


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_a_process_that_ends_takes_the_others_with_it(tmp_path: Path, kind: str) -> None:
    """Within ten seconds. The fault is told of once; the others say that their connection ended."""
    printed = launch(SCRIPT, str(tmp_path), kind, as_gpus=True, fails=True)
    assert time.time() - float((tmp_path / "time").read_text()) < 10
    # The launcher sums up once.
    assert printed.count("Root Cause (first observed failure)") == 1
    errors = re.findall(r"^\[rank(\d)\]: RuntimeError: (.*)", printed, re.MULTILINE)
    assert [e for e in errors if "fault" in e[1]] == ([("1", "this process has a fault")] if kind == "raising" else [])
    # gloo's words depend on what the other process was about: closed by peer, reset by peer, broken pipe.
    assert all("gloo/transport/tcp" in said for process, said in errors if process == "0")


def test_unequal_batches(several: Any, alone: Any) -> None:
    """The last accumulation of an epoch ends early."""
    assert difference(several["unequal"], alone(UNEQUAL, **UNEQUAL_SETTINGS)) < TOLERANCE


def test_auto_says_what_it_chose(found: Any) -> None:
    head, hidden = found["wrapped with the last norm", True], found["perturbed, auto", True]
    (said,) = [w for w in head["warnings"] if "FSDP" in w]
    assert said == (
        "FSDP shards the model: the flatness term of 'lm_head' acts in the backward pass "
        '(fam_estimator="closed_form").'
    )
    (said,) = [w for w in hidden["warnings"] if "FSDP" in w]
    assert "'model.layers.0.mlp.down_proj' acts by perturbing its features" in said
    assert hidden["estimator"] == "perturbation"
    assert [w for w in found["perturbed", True]["warnings"] if "FSDP" in w] == []


def test_another_loss_perturbs_the_features(found: Any) -> None:
    """Before the first step, and with one line."""
    result = found["another loss", True]
    said = [w for w in result["warnings"] if "Perturbing the features instead" in w]
    assert len(said) == 1 and "'classifier'" in said[0]
    assert result["estimator"] == "perturbation"
    assert all(kappa != 0 for kappa in result["fam_kappa"])


@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_resumed_training_equals_an_uninterrupted_one(found: Any, kind: str) -> None:
    assert found["resumed", kind] == 0


def test_callback_in_the_stock_trainer(found: Any, alone: Any) -> None:
    result, one = found["callback"], alone("wrapped with the last norm")
    assert difference(result, one) < TOLERANCE
    assert result["fam_kappa"] == pytest.approx(one["fam_kappa"], rel=1e-6)


def test_model_that_transformers_shards_when_it_loads(found: Any, alone: Any) -> None:
    result = found["loaded sharded"]
    assert result["model"].startswith("FSDP")
    # Loading keeps the frequencies of the position embedding in float32.
    assert difference(result, alone("wrapped with the last norm")) < 1e-7


def test_bfloat16_is_within_its_rounding(several: Any, alone: Any) -> None:
    """Weights in float32; forward and backward pass in bfloat16."""
    exact, rounded = alone("wrapped with the last norm"), several["bfloat16"]
    without = alone("wrapped with the last norm", fam_lambda=0.0)
    assert difference(rounded, exact) < 0.1 * difference(without, exact)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("tensor", "tensor parallelism (tp_size=2) is not supported"),
        ("tensor, attach", "the weight of layer 'lm_head' is split between processes"),
        ("tensor, RelativeFlatness", "the weight of layer 'lm_head' is split between processes"),
        ("version 1", "FSDP version 1 is not supported: use version 2"),
        ("hessian", 'estimator="hessian" does not work'),
        ("gauss_newton", 'or "perturbation" for any layer'),
        ("dense", 'Use "auto" or "closed_form" for the head'),
    ],
)
def test_refused_before_training(found: Any, kind: str, words: str) -> None:
    assert words in found["refused"][kind]


@pytest.mark.parametrize("name", COUNTED)
def test_a_step_exchanges_nothing_but_the_mean(found: Any, name: str) -> None:
    """No weight is gathered twice; centering adds m + 1 numbers, and on CPUs one number says whether all may go on."""
    with_term, plain = (Counter(found[key]["collectives"]) for key in ((name, True), ("plain", name)))
    assert sum(plain.values()) >= 4, "weights are gathered and gradients scattered"
    mean = {("c10d::allreduce_", 17): 1} if name == "centered" else {}
    assert with_term - plain == {("c10d::allreduce_", 1): 1, **mean}
    assert not plain - with_term


@pytest.mark.parametrize("name", DEBUGGED)
def test_torch_counts_the_same(found: Any, name: str) -> None:
    """torch's CommDebugMode, whose backward hooks on all modules leave the training as it is."""
    result, undisturbed = found["debugged", name], found[name, True]
    assert result["estimator"] == undisturbed["estimator"] and difference(result, undisturbed) < TOLERANCE
    with_term, plain = Counter(result["with term"]), Counter(result["plain"])
    own_count = Counter(kind.replace("::", ".") for kind, _ in found["plain", name]["collectives"])
    assert not own_count - plain
    assert plain - own_count == {"c10d_functional.all_reduce": 1}, "the norm of the gradients, inside DTensor"
    assert with_term - plain == {"c10d.allreduce_": 1} and not plain - with_term
