"""What a command prints besides its own lines: the Trainer's bar and metrics, and warnings without source lines."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from hf_fam.cli.quiet import short_warnings
from hf_fam.recipes.common.models import warn_of_random_backbone
from support.launch import environment
from support.tiny_recipes import encoder, image_folders, text_files, vision_model

# Bars and remarks of the libraries.
NOISE = ("Flattening", "Map:", "LOAD REPORT", "Loading weights", "Writing model shards", "pin_memory", "mtime",
         "not sharded", "kernels", "UserWarning", "site-packages", "preparation_time")  # fmt: skip


def trained(task: str, folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "hf_fam", "train", task, *words, "--output_dir", str(folder / "out"),
               "--cache_dir", str(folder / "cache"), "--use_cpu", "True"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    printed = result.stdout + result.stderr
    assert [word for word in NOISE if word in printed] == []
    return printed


def test_a_training_prints_what_a_user_needs(tmp_path: Path) -> None:
    """With two checkpoints, of which the older one is removed; the bar and the metrics of the Trainer are there."""
    model, files = encoder(tmp_path / "model"), text_files(tmp_path, lambda n: ("no", "yes")[n % 2])
    words = ("--train_file", files["train_file"], "--model_name_or_path", model, "--num_train_epochs", "2")
    printed = trained("text_classification", tmp_path, *words)
    assert "Warning: --max_seq_length=128: the model takes 32 tokens, so texts are cut there.\n" in printed
    assert "100%|" in printed and "'fam_kappa'" in printed and "eval_accuracy" in printed
    # What predict and measure read: the length of the training.
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 32


def test_a_fitted_head_has_no_epoch(tmp_path: Path) -> None:
    model, folders = vision_model(tmp_path / "model"), image_folders(tmp_path / "photos")
    words = ("--train_dir", folders["train_dir"], "--model_name_or_path", model, "--freeze_backbone")
    printed = trained("image_classification", tmp_path, *words)
    assert "fit of the head on cpu" in printed and "epoch" not in printed


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.formatwarning
    with short_warnings():
        assert warnings.formatwarning("look here", UserWarning, "a.py", 3) == "Warning: look here\n"
    assert warnings.formatwarning is before


def test_a_backbone_that_is_not_in_the_checkpoint_is_said() -> None:
    """The report of transformers is hidden; a new head and pooler are no news."""
    model = SimpleNamespace(base_model_prefix="bert")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_random_backbone(model, ["classifier.weight", "bert.pooler.dense.bias"], "'m'")
    with pytest.warns(UserWarning, match=r"1 weights of the backbone of 'm' are not in its checkpoint .* bert.layer.0"):
        warn_of_random_backbone(model, ["classifier.weight", "bert.layer.0"], "'m'")
