"""Code that is saved with a model runs when it is allowed to, whatever stands on the standard input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.launch import ROOT

CONFIG = '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"%s}, "architectures": ["OwnModel"]}'
CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

class Own(BertConfig):
    model_type = "own"
    def __init__(self, **kwargs):
        super().__init__(**{{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, **kwargs}})

class OwnModel(BertForSequenceClassification):
    config_class = Own
"""


def run(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], bool]:
    """The command with a `y` on its standard input; whether the code ran."""
    marker = folder / "marker"
    marker.unlink(missing_ok=True)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(CONFIG % ', "AutoModelForSequenceClassification": "own.OwnModel"')
    (model / "own.py").write_text(CODE.format(marker=str(marker)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "hf_fam", words[0], str(model), *words[1:]]
    done = subprocess.run(
        command, cwd=folder, env=environment, input="y\n" * 9, capture_output=True, text=True, timeout=120
    )
    return done, marker.exists()


@pytest.mark.parametrize("command", ["layers", "measure"])
def test_code_of_a_model_is_not_run(tmp_path: Path, command: str) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,0\n")
    more = ["--dataset", "a.csv"] if command == "measure" else []
    done, has_run = run(tmp_path, command, *more)
    assert not has_run and done.returncode == 1 and done.stdout == ""
    assert "contains code of its own: read it, and add --trust_remote_code" in done.stderr.splitlines()[-1]


def test_code_of_a_model_that_is_allowed_runs(tmp_path: Path) -> None:
    done, has_run = run(tmp_path, "layers", "--trust_remote_code")
    assert has_run and done.returncode == 0, done.stderr
    assert "closed_form" in done.stdout
