"""The lines of docs/own-data.md run as they stand there, with a tiny model in the place of the one on the Hub."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from transformers import AutoImageProcessor

from hf_fam.cli import main as cli
from support.tiny_recipes import ROOT, encoder, image_folders, text_files, vision_model

PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
MODEL = "--model_name_or_path"


def lines(block: int) -> list[list[str]]:
    """The words of each command of a block; what is quoted may go over several lines."""
    text = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[block].replace("\\\n", " ")
    found: list[list[str]] = []
    pending = ""
    for line in text.splitlines():
        pending = f"{pending}\n{line}" if pending else line
        try:
            found.append(shlex.split(pending))
            pending = ""
        except ValueError:  # a quotation goes on
            continue
    assert not pending
    return found


def train_and_use(block: int, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run ``hf-fam train`` of the block for two steps in a folder; what the last line then prints."""
    monkeypatch.chdir(folder)
    train, use = lines(block)[-2:]
    assert train[:2] == ["hf-fam", "train"]
    train[train.index(MODEL) + 1] = model
    # At the end, where flags win: what makes it short, and nothing else.
    short = ["--max_steps", "2", "--use_cpu", "--cache_dir", str(folder / "cache")]
    monkeypatch.setattr("sys.argv", [*train, *short])
    assert cli.main([*train[1:], *short]) == 0
    assert use[:2] == ["python", "-c"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, *use[1:]], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_own_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text_files(tmp_path, lambda n: ("yes", "no")[n * n % 3 == 1])
    shutil.move(tmp_path / "train.csv", tmp_path / "questions.csv")
    printed = train_and_use(0, encoder(tmp_path / "tiny"), tmp_path, monkeypatch)
    assert re.search(r"'label': '(yes|no)'", printed)
    card = (tmp_path / "out" / "questions" / "README.md").read_text(encoding="utf-8")
    assert "\nhf-fam train text_classification --train_file questions.csv" in card


def test_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vision_model(tmp_path / "tiny")
    try:
        AutoImageProcessor.from_pretrained(model, backend="pil")
    except ImportError as error:
        pytest.skip(f"this transformers prepares images by torchvision only: {error}")
    image_folders(tmp_path)
    shutil.move(tmp_path / "train", tmp_path / "photos")
    next((tmp_path / "photos" / "cat").iterdir()).rename(tmp_path / "photos" / "cat" / "1.png")
    printed = train_and_use(1, model, tmp_path, monkeypatch)
    assert re.search(r"'label': '(cat|dog)'", printed)


def test_the_first_line_installs_an_extra_that_exists() -> None:
    (extra,) = re.findall(r"^pip install 'hf-fam\[(\w+)\]'$", PAGE, re.MULTILINE)
    assert f"\n{extra} = [\n" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
