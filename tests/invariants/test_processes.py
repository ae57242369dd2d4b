"""However a step's batch is cut into processes and micro-batches, training is the same: weights and logs.

1 process x 8 items == 2 processes x 4 == 2 x 2 x accumulation 2 == 1 x 1 x accumulation 8, for the head and hidden
layers, closed forms and probes: an item's random signs are a function of seed, step and item
(hf_fam/calculus/signs.py), so all arrangements draw the same ones. float64 models, one case in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.arrangements import CASES, IN_ORDER, LARGE, LARGE_CLASSES, UNEQUAL, long_texts, trained
from support.launch import launch
from support.tiny import texts

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

SCRIPT = Path(__file__).parents[1] / "support" / "arrangements.py"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What two processes made of all cases, in one launch."""
    folder = tmp_path_factory.mktemp("two_processes")
    launch(SCRIPT, str(folder))
    found = torch.load(folder / "found.pt")
    assert {result["processes"] for result in found.values()} == {2}
    return found


def distance(one: Tensor, other: Tensor) -> float:
    """Relative to the weights."""
    return float((one - other).norm() / other.norm())


def assert_same(result: dict[str, Any], reference: dict[str, Any], name: str) -> None:
    exact = CASES[name].double
    assert result["same_everywhere"], "the processes have different weights"
    assert distance(result["weights"], reference["weights"]) < (1e-10 if exact else 1e-6)
    for key in ("loss", "fam_kappa", "fam_term", "fam_lambda", "grad_norm"):
        assert result[key] == pytest.approx(reference[key], rel=1e-6 if exact else 1e-4), key


@pytest.mark.parametrize("name", CASES)
def test_arrangements_agree(tmp_path: Path, two_processes: dict[Any, Any], name: str) -> None:
    reference = trained(tmp_path, name, 8, 1)
    silent = int(CASES[name].settings.get("fam_center", False))  # the first step only shows the mean
    assert reference["processes"] == 1 and len(reference["fam_kappa"]) == CASES[name].steps - silent
    for cut in ((4, 1), (2, 2)):
        assert_same(two_processes[(name, 40, *cut)], reference, name)
        # 40 items in batches of 4 or 2 x 4: none is repeated; but texts are weighted by the tokens of their batch.
        near = 1e-3 if CASES[name].data in (texts, long_texts) else 1e-5
        assert two_processes[(name, 40, *cut)]["eval_loss"] == pytest.approx(reference["eval_loss"], rel=near)
    cuts = {cut: trained(tmp_path, name, *cut) for cut in ((4, 2), (1, 8))}
    for result in cuts.values():
        assert_same(result, reference, name)
    # The ratio of gradients is measured on the first micro-batch, of 8 items or of 4 here.
    near = 1e-5 if CASES[name].double else 1e-3
    assert two_processes[name, 40, 4, 1]["fam_grad_ratio"] == pytest.approx(reference["fam_grad_ratio"], rel=near)
    assert two_processes[name, 40, 2, 2]["fam_grad_ratio"] == pytest.approx(cuts[4, 2]["fam_grad_ratio"], rel=near)
    plain = trained(tmp_path, name, 8, 1, fam_lambda=0.0, fam_loss_scaling="corrected")
    moved = distance(reference["weights"], plain["weights"])
    assert moved > 1e-4, "the term is too small to be missed"


@pytest.mark.parametrize("name", LARGE)
def test_term_of_a_large_head_needs_no_memory(tmp_path: Path, two_processes: dict[Any, Any], name: str) -> None:
    """In two processes as in one: it acts in the backward pass, when the temporaries of the loss are freed."""
    plain = trained(tmp_path, name, 4, 2, fam_lambda=0.0)
    logits = 4 * 31 * LARGE_CLASSES * 8
    assert plain["peak_memory"] > 2 * logits
    for result in (trained(tmp_path, name, 4, 2), two_processes[name, 40, 4, 1]):
        assert result["peak_memory"] < plain["peak_memory"] + logits / 4


@pytest.mark.parametrize("name", UNEQUAL)
def test_last_step_with_fewer_micro_batches(tmp_path: Path, two_processes: dict[Any, Any], name: str) -> None:
    """20 items in steps of 8, two processes of 2 items: in the third step each has one micro-batch instead of two."""
    reference = trained(tmp_path, name, 8, 1, items=20, max_steps=7)
    assert_same(two_processes[name, 20, 2, 2], reference, name)
    assert_same(trained(tmp_path, name, 2, 4, items=20, max_steps=7), reference, name)


@pytest.mark.parametrize("name", UNEQUAL)
def test_last_batch_that_has_to_be_filled(tmp_path: Path, two_processes: dict[Any, Any], name: str) -> None:
    """20 items for two processes of 4: accelerate fills the last batch with the first 4 items, so one process that has
    them at its end does the same. (What two processes train on then is not what one trains on: no equality.)"""
    data = CASES[name].data(20)
    reference = trained(tmp_path, name, 8, 1, data=data + data[:4], max_steps=7, **IN_ORDER)
    assert_same(two_processes[(name, 20, 4, 1, *IN_ORDER)], reference, name)


@pytest.mark.parametrize("name", UNEQUAL)
def test_last_batch_that_is_dropped(tmp_path: Path, two_processes: dict[Any, Any], name: str) -> None:
    reference = trained(tmp_path, name, 8, 1, items=20, max_steps=7, dataloader_drop_last=True)
    assert_same(two_processes[name, 20, 4, 1, "dataloader_drop_last"], reference, name)
