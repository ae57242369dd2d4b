"""TRL's KTOTrainer: at its reference the loss has the curvature of cross-entropy, and in the next step it has not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", "1.16", reason="an older TRL, or none, has no KTOTrainer")
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from hf_fam import FAMArguments, FAMMixin, RelativeFlatness
from hf_fam.flatness.estimators.dense import dense_flatness
from support.languages import preferences, tiny_tokenizer
from support.tiny import PLAIN, tiny_llama

SMALL: dict[str, Any] = {"hidden_size": 8, "attn_implementation": "eager", "pad_token_id": 0, "initializer_range": 0.3}


class FAMKTOTrainer(FAMMixin, KTOTrainer):
    """What the documentation tells users to write."""


def unpaired() -> dict[str, list[Any]]:
    found = preferences(48)
    answers = [found["chosen" if k % 2 else "rejected"][k] for k in range(len(found["prompt"]))]
    return {"prompt": found["prompt"], "completion": answers, "label": [k % 2 == 1 for k in range(len(answers))]}


def test_kappa_is_never_that_of_another_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every step it is the dense kappa, or that of probes."""
    found: list[tuple[str, float, float]] = []
    estimate = RelativeFlatness.__call__

    def compared(flatness: RelativeFlatness, loss: torch.Tensor) -> torch.Tensor:
        kappa = estimate(flatness, loss)
        true = dense_flatness(loss, flatness.layer.module.weight).kappa
        found.append((flatness.estimator, float(kappa.detach()), float(true.detach())))
        return kappa

    monkeypatch.setattr(RelativeFlatness, "__call__", compared)
    # Batches 0 to 4 are at the reference, and the schedule does not look at 5, 6 and 7.
    options = {
        **PLAIN,
        "max_steps": 2,
        "gradient_accumulation_steps": 5,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    options["output_dir"] = str(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = FAMKTOTrainer(
            model=tiny_llama(**SMALL),
            ref_model=tiny_llama(**SMALL),
            args=KTOConfig(**options),
            train_dataset=Dataset.from_dict(unpaired()),
            processing_class=tiny_tokenizer(),
            fam_args=FAMArguments(fam_lambda=1e-6, fam_estimator="closed_form"),
        )
        trainer.train()
    assert len(found) == 10
    for estimator, kappa, true in found:
        assert estimator == "hessian" or kappa == pytest.approx(true, rel=1e-2, abs=1e-6)
    assert [estimator for estimator, *_ in found] == ["closed_form"] * 5 + ["hessian"] * 5
