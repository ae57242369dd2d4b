"""A recipe whose weights are not finite ends with an error and saves no model, whatever the method."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from support.tiny_recipes import made, typed


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made("text_classification", tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("method", "given"),
    [("fam", {}), ("plain", {}), ("sam", {}), ("plain", {"lr_milestones": ".5", "lr_gamma": 0.5})],
    ids=["fam", "plain", "sam", "schedule"],
)
def test_no_model_is_saved(flags: dict[str, Any], tmp_path: Path, method: str, given: dict[str, Any]) -> None:
    output = tmp_path / "output"
    given = {**flags, **given, "output_dir": output, "learning_rate": 1e308, "max_steps": 2, "save_strategy": "no"}
    arguments = typed("text_classification", method, given)
    with pytest.raises(FloatingPointError, match="is not finite|is nan|is inf"):
        importlib.import_module("hf_fam.recipes.text_classification").main(arguments)
    assert not [*output.rglob("*.safetensors")]
