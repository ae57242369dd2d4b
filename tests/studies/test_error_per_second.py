"""The table of errors per second is measured, and its exact values are kappa."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import TensorDataset

from support.recipe_scripts import recipe_scripts

pytest.importorskip("curvlinops")

FOLDER = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture
def scripts() -> Iterator[dict[str, ModuleType]]:
    with recipe_scripts(FOLDER, "error_cases", "error_per_second") as modules:
        yield modules


def test_a_table_is_measured(scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row for each method; more products have smaller errors, and the released function is exact."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    released = tmp_path / "released"
    released.mkdir()
    # The whole Hessian, as the released function computes it: one row after the other, and moved to a device.
    (released / "utils.py").write_text(
        "import torch\n"
        "def calculateNeuronwiseHessians_fc_layer(weight, loss, normalize):\n"
        "    (g,) = torch.autograd.grad(loss, weight, create_graph=True)\n"
        "    rows = [torch.autograd.grad(v, weight, retain_graph=True)[0].cuda() for v in g.flatten()]\n"
        "    h = torch.stack(rows).reshape(*weight.shape, *weight.shape)\n"
        "    return torch.einsum('sjtj,st->', h, weight @ weight.T).detach(), None\n"
    )
    output = tmp_path / "table.md"
    scripts["error_per_second"].main(
        [
            "--output",
            str(output),
            "--repetitions",
            "12",
            "--cases",
            "MLP, independent rows",
            "--released",
            str(released),
        ]
    )
    rows = [line.strip("| ").split(" | ") for line in output.read_text().splitlines()[4:]]
    assert [row[2:4] for row in rows] == [
        ["hf_fam", "4"], ["hf_fam", "16"], ["curvlinops, Hutchinson", "4"], ["curvlinops, Hutchinson", "16"],
        ["curvlinops, Hutch++", "24"], ["released code", "1024"],
    ]  # fmt: skip
    errors = [float(row[5].removesuffix(" %")) for row in rows]
    assert errors[5] < 1e-10 < 0.1 < errors[1] < errors[0] < 40
    assert all(0.1 < error < 40 for error in errors[2:5])
    assert all(float(row[4]) > 0 and float(row[6]) > 0 for row in rows)


def test_kappa_by_pre_activations_is_that_of_the_whole_hessian(scripts: dict[str, ModuleType]) -> None:
    """The exact value of a layer whose Hessian is too large."""
    cases = scripts["error_cases"]
    torch.manual_seed(1)
    whole = cases.below_attention()
    few = TensorDataset(*(t[:6] for t in whole.data.tensors))
    loss = cases.loss_fn(whole.model, few.tensors)
    exact = cases.dense_flatness(loss, whole.weight, weights_only=True).kappa.item()
    assert cases.kappa_by_pre_activations(whole.model, whole.layer, few, columns=50) == pytest.approx(exact, rel=1e-9)
