"""A step makes the host wait for the device no more often than plain training does, on a simulated accelerator.

What is looked at now and then is read in few waits, and the numbers are those of the CPU.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.card import is_possible
from support.launch import ROOT, launch

pytestmark = pytest.mark.skipif(not is_possible(), reason="torch has no device types written in Python")

# Most waits of a look: the form of the loss, the coupling of rows, whether there is curvature, zero and finite values.
MOST_WAITS = 7


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("waits")
    launch(ROOT / "tests" / "support" / "waits.py", str(folder), config=None)
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    assert result["looked at"] == [0, 1, 2, 4]
    return result


def test_the_term_alone_never_waits(found: dict[str, Any]) -> None:
    waits = {
        name: [w for step, w in enumerate(term["waits"]) if step not in found["looked at"] and w]
        for name, term in found["terms"].items()
    }
    assert len(waits) == 18
    assert {name: w for name, w in waits.items() if w} == {}
    assert [w for step, w in enumerate(found["attached"]) if step not in found["looked at"]] == [{}] * 4


def test_a_look_waits_a_few_times_however_many_rows_there_are(found: dict[str, Any]) -> None:
    waits = {name: max(sum(w.values()) for w in term["waits"]) for name, term in found["terms"].items()}
    assert max(waits.values()) > 0, "the counter does not count"
    assert {name: w for name, w in waits.items() if w > MOST_WAITS} == {}


def test_the_numbers_are_those_of_the_cpu(found: dict[str, Any]) -> None:
    assert {name: term["error"] for name, term in found["terms"].items() if not term["error"] < 1e-12} == {}
    assert all(term["smallest_kappa"] > 0 for name, term in found["terms"].items() if "centered" not in name)


def test_a_step_of_the_trainer_waits_as_often_as_plain_training(found: dict[str, Any]) -> None:
    assert len(found["trainings"]) == 8
    for name, training in found["trainings"].items():
        plain, fam = training["plain"]["waits"], training["fam"]["waits"]
        assert min(plain) > 0, "the counter does not count"
        # The perturbation is looked at before the first step, too. attach checks the linearity of the layer last.
        looked_at = [k - 1 for k in (1, 2, 4, 8)] if name == "perturbation" else found["looked at"]
        steps = [step for step in range(len(plain)) if step not in looked_at]
        assert len(steps) == 4
        assert [fam[k] for k in steps] == [plain[k] for k in steps], (name, plain, fam)


def test_layer_head_and_loss_may_be_on_different_devices(found: dict[str, Any]) -> None:
    assert len(found["apart"]) == 21
    assert {name: error for name, error in found["apart"].items() if not error < 1e-12} == {}
