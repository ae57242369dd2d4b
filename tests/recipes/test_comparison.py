"""A run of hf-fam compare is the run of hf-fam train with the same seed and settings."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from hf_fam.compare import compare
from hf_fam.recipes.common.comparison import RecipeTrainers
from support.tiny_recipes import made, typed


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("method", ["plain", "fam", "mixup"])
def test_one_run_is_one_training(method: str, freeze: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = "text_classification"
    given: dict[str, Any] = {**made(task, tmp_path / "made"), "freeze_backbone": freeze, "learning_rate": 0.05}
    argv = typed(task, "plain", {**given, "output_dir": tmp_path / "compared"})
    trainers = RecipeTrainers(task, tuple(argv), ("plain", method))
    methods = [m for m in trainers.chosen() if m.name == method]
    result = compare(
        trainers, methods if method != "plain" else ["fam"], test_dataset=trainers.test_dataset, seeds=2, grid_size=1
    )
    compared = next(m for m in result.methods if m.name == method)
    for seed in (0, 1):
        words = [
            *typed(task, "plain", {**given, "output_dir": tmp_path / f"{seed}", "seed": seed}),
            f"--method={method}",
        ]
        monkeypatch.setattr("sys.argv", ["hf-fam", "train", task, *words])
        found = importlib.import_module(f"hf_fam.recipes.{task}").main(words)
        assert compared.scores[seed] == pytest.approx(100 * found["predict_accuracy"])
        if seed == 0:
            nll = found["predict_nll"]
        else:
            assert compared.nll == pytest.approx((nll + found["predict_nll"]) / 2, rel=1e-4)
