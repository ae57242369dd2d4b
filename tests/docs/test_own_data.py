"""The lines of docs/own-data.md run as they stand there, from the built wheel, in a clean environment.

Clean means: a new virtual environment whose only hf_fam is the installed wheel, an empty folder, and no checkout on the
path. torch and the other packages are those of this environment, lent by a path file, so that nothing is downloaded. A
tiny model stands in the place of the one on the Hub.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from transformers import AutoImageProcessor

from support.launch import ROOT
from support.tiny_recipes import encoder, image_folders, text_files, vision_model

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


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment with the wheel."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("clean")
    source = folder / "source"
    shutil.copytree(ROOT / "hf_fam", source / "hf_fam", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False, symlinks=os.name != "nt")
    commands = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    (wheel,) = folder.glob("*.whl")
    install = ["--python", commands / "python", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, *install, wheel], check=True, capture_output=True, env=environment(commands))
    (site,) = (folder / "env").rglob("site-packages")
    (site / "lent.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return commands


def environment(commands: Path) -> dict[str, str]:
    """Variables without the checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip


def run(words: list[str], folder: Path, commands: Path) -> str:
    result = subprocess.run(words, cwd=folder, env=environment(commands), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def page_run(block: int, model: str, folder: Path, commands: Path) -> tuple[str, list[dict[str, str]], str]:
    """What train prints, the rows of predict, and what the pipeline prints; two steps are trained."""
    train, predict, use = lines(block)[-3:]
    assert (train[:2], predict[:2], use[:2]) == (["hf-fam", "train"], ["hf-fam", "predict"], ["python", "-c"])
    train[train.index(MODEL) + 1] = model
    # At the end, where flags win: what makes it short, and nothing else.
    summary = run([*train, "--max_steps", "2", "--use_cpu", "--cache_dir", str(folder / "cache")], folder, commands)
    run(predict, folder, commands)
    with (folder / predict[-1]).open(newline="", encoding="utf-8") as file:
        return summary, [*csv.DictReader(file)], run(use, folder, commands)


@pytest.mark.slow
def test_the_environment_is_clean(clean: Path, tmp_path: Path) -> None:
    found = run(["python", "-c", "import hf_fam; print(hf_fam.__file__)"], tmp_path, clean)
    assert Path(found.strip()).is_relative_to(clean.parent)
    assert run(["hf-fam"], tmp_path, clean).startswith("usage: hf-fam")


@pytest.mark.slow
def test_own_csv(tmp_path: Path, clean: Path) -> None:
    text_files(tmp_path, lambda n: ("yes", "no")[n * n % 3 == 1])
    shutil.move(tmp_path / "train.csv", tmp_path / "questions.csv")
    shutil.move(tmp_path / "test.csv", tmp_path / "new.csv")
    summary, rows, printed = page_run(0, encoder(tmp_path / "tiny"), tmp_path, clean)
    assert re.search(r"'label': '(yes|no)'", printed)
    assert len(rows) == 7 and {row["class"] for row in rows} <= {"yes", "no"}
    assert [*rows[0]] == ["input", "class", "probability_no", "probability_yes"]
    assert "rows      28 to train, 4 to validate" in summary and "classes   no 18, yes 10" in summary
    assert "hf-fam predict out/questions new.csv --output predictions.csv" in summary
    assert len([*(tmp_path / "out" / "questions").glob("checkpoint-*")]) == 1
    card = (tmp_path / "out" / "questions" / "README.md").read_text(encoding="utf-8")
    assert "\nhf-fam train text_classification --train_file questions.csv" in card


@pytest.mark.slow
def test_own_images(tmp_path: Path, clean: Path) -> None:
    model = vision_model(tmp_path / "tiny")
    try:
        AutoImageProcessor.from_pretrained(model, backend="pil")
    except ImportError as error:
        pytest.skip(f"this transformers prepares images by torchvision only: {error}")
    image_folders(tmp_path)
    shutil.move(tmp_path / "train", tmp_path / "photos")
    next((tmp_path / "photos" / "cat").iterdir()).rename(tmp_path / "photos" / "cat" / "1.png")
    _, rows, printed = page_run(1, model, tmp_path, clean)
    assert re.search(r"'label': '(cat|dog)'", printed)
    assert len(rows) == 32 and os.path.join("photos", "cat", "1.png") in {row["input"] for row in rows}


def test_the_first_line_installs_an_extra_that_exists() -> None:
    (extra,) = re.findall(r"^pip install '\.\[(\w+)\]'$", PAGE, re.MULTILINE)
    assert f"\n{extra} = [\n" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
