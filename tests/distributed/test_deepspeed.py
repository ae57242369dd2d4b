"""FAMTrainer under DeepSpeed ZeRO stages 1, 2 and 3, in CPU processes over gloo: weights are those of one process.

DeepSpeed is no dependency of hf_fam: without it, these tests are skipped. `make test-deepspeed` installs it beside the
environment and runs them.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.run

from support.deepspeed_trainings import (
    ADAPTED,
    CONFIGURED,
    EVERYTHING,
    FEW,
    FIRST,
    NAMES,
    REFUSED,
    STAGES,
    in_float32,
)
from support.launch import ROOT, free_port, launch
from support.sharded_trainings import UNEQUAL, UNEQUAL_SETTINGS, trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed"),
]

SCRIPT = ROOT / "tests" / "support" / "deepspeed_trainings.py"
# Largest relative difference of the weights after five steps in float32.
TOLERANCE = 1e-6


def launched(folder: Path, processes: int, *names: str) -> dict[Any, Any]:
    """What several processes found."""
    torchrun = [torch.distributed.run.__file__, f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    launch(Path(torchrun[0]), *torchrun[1:], str(SCRIPT), str(folder), *names, config=None, as_gpus=True)
    found: dict[Any, Any] = torch.load(folder / "found.pt", weights_only=False)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What two processes found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        return launched(tmp_path_factory.mktemp("deepspeed"), 2, EVERYTHING)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The same training in this process, once."""
    folder, results = tmp_path_factory.mktemp("alone"), {}
    in_float32()

    def train(name: str, **given: Any) -> dict[str, Any]:
        key = (name, *given.values())
        if key not in results:
            results[key] = trained(folder, name, 1, sharded=False, **given)
        return results[key]

    return train


def difference(several: dict[str, Any], one: dict[str, Any]) -> float:
    return float((several["weights"].float() - one["weights"]).norm() / one["weights"].norm())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(found: Any, alone: Any, stage: int, name: str) -> None:
    """The head in the backward pass, and perturbed layers."""
    if stage == 3 and name in ADAPTED:  # never with an empty weight
        assert "is split between processes in its forward pass" in found[stage, name]
        return
    one, two = alone(name), found[stage, name]
    without = alone(name, fam_lambda=1e-30 if "perturbed" in name else 0.0)
    assert difference(without, one) > 100 * TOLERANCE, "the term is too small to be missed"
    assert difference(two, one) < TOLERANCE
    for log in ("loss", "fam_lambda"):
        assert two[log] == pytest.approx(one[log], rel=1e-5), log
    assert two["fam_kappa"] == pytest.approx(one["fam_kappa"], rel=1e-3, abs=1e-9)


def test_four_processes_equal_one(tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    four = launched(tmp_path, 4, *FEW)
    for stage in STAGES:
        for name in FEW:
            assert difference(four[stage, name], alone(name)) < TOLERANCE, (stage, name)


@pytest.mark.parametrize("stage", [2, 3])
def test_configuration_of_accelerate(tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    """In bfloat16."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    launch(SCRIPT, str(tmp_path), CONFIGURED, config=f"deepspeed_zero{stage}.yaml", as_gpus=True)
    result = torch.load(tmp_path / "found.pt", weights_only=False)[CONFIGURED]
    assert any("DeepSpeed trains the model" in warning for warning in result["warnings"])
    exact, without = alone(FIRST), alone(FIRST, fam_lambda=0.0)
    assert difference(result, exact) < 0.1 * difference(without, exact)


@pytest.mark.parametrize("stage", STAGES)
def test_unequal_batches(found: Any, alone: Any, stage: int) -> None:
    """The last accumulation of an epoch ends early."""
    assert difference(found[stage, "unequal"], alone(UNEQUAL, **UNEQUAL_SETTINGS)) < TOLERANCE


@pytest.mark.parametrize("stage", STAGES)
def test_model_that_is_split_while_it_is_loaded(found: Any, alone: Any, stage: int) -> None:
    assert difference(found[stage, "loaded"], alone(FIRST)) < TOLERANCE


@pytest.mark.parametrize("stage", STAGES)
def test_callback_in_the_stock_trainer(found: Any, alone: Any, stage: int) -> None:
    result, one = found[stage, "callback"], alone(FIRST)
    assert difference(result, one) < TOLERANCE
    assert result["fam_kappa"] == pytest.approx(one["fam_kappa"], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_training_equals_an_uninterrupted_one(found: Any, stage: int) -> None:
    assert found[stage, "resumed"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_is_within_its_rounding(found: Any, alone: Any, stage: int) -> None:
    exact, without = alone(FIRST), alone(FIRST, fam_lambda=0.0)
    assert difference(found[stage, "bfloat16"], exact) < 0.1 * difference(without, exact)


def test_auto_says_what_it_chose(found: Any) -> None:
    (said,) = [w for w in found[3, "tied"]["warnings"] if "DeepSpeed" in w]
    assert said == (
        "DeepSpeed trains the model: the flatness term of 'lm_head' acts in the backward pass "
        '(fam_estimator="closed_form").'
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_gathers_nothing_twice(found: Any, stage: int) -> None:
    """On CPUs one number says whether all may go on."""
    with_term, plain = (Counter(found[stage, name]["collectives"]) for name in (FIRST, "plain"))
    assert sum(plain.values()) > 1
    assert with_term - plain == {("c10d::allreduce_", 1): 1} and not plain - with_term


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("estimator", REFUSED)
def test_what_differentiates_the_loss_is_refused(found: Any, stage: int, estimator: str) -> None:
    assert f'estimator="{estimator}" does not work in a model that FSDP shards' in found[stage, estimator]
