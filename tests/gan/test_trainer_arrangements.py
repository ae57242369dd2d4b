"""However a step's batch is cut into micro-batches and processes, WGAN training is the same: weights, states, logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.gans import ARRANGED, NORMALIZED, trained
from support.launch import launch

SCRIPT = Path(__file__).parents[1] / "support" / "gans.py"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What two processes made of all settings, in one launch."""
    folder = tmp_path_factory.mktemp("two_processes")
    launch(SCRIPT, str(folder))
    values = torch.load(folder / "found.pt")
    assert {result["processes"] for result in values.values()} == {2}
    return values


def assert_same(result: dict[str, Any], reference: dict[str, Any]) -> None:
    assert result["same"], "the processes have different weights"
    assert result["found"].keys() == reference["found"].keys()
    for name, expected in reference["found"].items():
        torch.testing.assert_close(result["found"][name], expected, rtol=1e-9, atol=1e-11, msg=name)
    for name, expected in reference["logs"].items():
        assert result["logs"][name] == pytest.approx(expected, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("name", ARRANGED)
@pytest.mark.parametrize("items", [40, 22], ids=["equal", "unequal"])
def test_micro_batches_agree(tmp_path: Path, name: str, items: int) -> None:
    """22 items in steps of 8: the third step has 6, as micro-batches of 4 and 2."""
    reference = trained(tmp_path, name, 8, 1, items=items)
    assert len(reference["logs"]["wasserstein_estimate"]) == 6 and len(reference["logs"]["generator_loss"]) >= 2
    assert all(penalty > 0 for penalty in reference["logs"]["gradient_penalty"])
    for batch, parts in ((4, 2), (2, 4)):
        assert_same(trained(tmp_path, name, batch, parts, items=items), reference)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("name", ARRANGED)
def test_two_processes_agree(tmp_path: Path, two_processes: dict[Any, Any], name: str) -> None:
    reference = trained(tmp_path, name, 8, 1)
    for cut in ((4, 1), (2, 2)):
        assert_same(two_processes[(name, 40, *cut)], reference)
    assert_same(two_processes[name, 20, 2, 2], trained(tmp_path, name, 8, 1, items=20))


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_agree_on_the_power_iteration(tmp_path: Path, two_processes: dict[Any, Any]) -> None:
    """Its vectors are among the buffers that are compared."""
    reference = trained(tmp_path, NORMALIZED, 8, 1)
    assert sum(name.endswith("._u") for name in reference["found"]) == 3
    assert_same(two_processes[NORMALIZED, 40, 4, 1], reference)


def test_a_wrong_share_would_be_noticed(tmp_path: Path) -> None:
    """The comparison above can fail: other data, other weights."""
    one = trained(tmp_path, "one-sided, line", 8, 1)
    with pytest.raises(AssertionError):
        assert_same(trained(tmp_path, "one-sided, line", 8, 1, items=20), one)
