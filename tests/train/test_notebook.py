"""The Trainer's table in a notebook shows kappa beside the loss."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from hf_fam import FAMTrainer, FAMTrainingArguments
from support.tiny import tiny_bert

DATA = [{"input_ids": [k % 7, 3, 4], "labels": k % 3} for k in range(8)]


@pytest.mark.parametrize("evaluation", ["no", "steps"])
@pytest.mark.parametrize("kind", [FAMTrainer, Trainer])
def test_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: str, kind: Any) -> None:
    pytest.importorskip("IPython")
    notebook = importlib.import_module("transformers.utils.notebook")
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", notebook.NotebookProgressCallback)
    args = FAMTrainingArguments(
        str(tmp_path), max_steps=2, logging_steps=1, eval_strategy=evaluation, eval_steps=1, report_to="none",
        use_cpu=True, save_strategy="no", disable_tqdm=False,
    )  # fmt: skip
    trainer = kind(model=tiny_bert(), args=args, train_dataset=DATA, eval_dataset=DATA)
    tables: list[list[Any]] = []
    monkeypatch.setattr(notebook.NotebookTrainingTracker, "display", lambda tracker: tables.append(tracker.inner_table))
    trainer.train()
    head, *rows = tables[-1]
    assert ("Kappa" in head and "Term" in head) == (kind is FAMTrainer) and len(rows) == 2
    if kind is FAMTrainer:
        logged = [log["fam_kappa"] for log in trainer.state.log_history if "fam_kappa" in log]
        assert [row[head.index("Kappa")] for row in rows] == logged
        assert not any("fam_kappa" in log for log in trainer.state.log_history if "eval_loss" in log)
