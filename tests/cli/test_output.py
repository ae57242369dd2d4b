"""Standard output that is closed, that nobody reads, or whose disk is full: no traceback, and the right status."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bad_input.models import make_models
from support.launch import ROOT

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is of Linux")
# Python writes at once with PYTHONUNBUFFERED, and else at its end.
PLAIN = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
ENVIRONMENTS = [{**PLAIN, "PYTHONPATH": str(ROOT)}, {**PLAIN, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}]


@pytest.fixture
def prediction(tmp_path: Path) -> list[str]:
    pytest.importorskip("datasets")
    (tmp_path / "q.csv").write_text("text\n" + "a text\n" * 9)
    return ["predict", make_models(tmp_path)["classifier"], str(tmp_path / "q.csv")]


def run(
    words: list[str], environment: dict[str, str], stdout: int | None, before: Callable[[], None] | None = None
) -> tuple[int, str]:
    program = [sys.executable, "-m", "hf_fam", *words]
    result = subprocess.run(program, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment,
                            preexec_fn=before)  # fmt: skip
    return result.returncode, result.stderr


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["--help"], ["train", "causal_lm", "--help"]])
def test_help(words: list[str], environment: dict[str, str]) -> None:
    is_silent = words == ["--help"] and "PYTHONUNBUFFERED" in environment  # argparse keeps the error to itself
    with open("/dev/full", "w") as full:
        result = run(words, environment, full.fileno())
    assert is_silent or result == (1, f"hf-fam {words[0]}: No space left on device.\n")
    read, write = os.pipe()
    os.close(read)
    assert run(words, environment, write) == (0 if is_silent else 1, "")
    os.close(write)
    assert run(words, environment, None, lambda: os.close(1)) == (0, "")


def test_predictions(prediction: list[str]) -> None:
    with open("/dev/full", "w") as full:
        assert run(prediction, ENVIRONMENTS[0], full.fileno()) == (1, "hf-fam predict: No space left on device.\n")
    status, said = run(prediction, ENVIRONMENTS[0], None, lambda: os.close(1))
    assert status == 0 and said.startswith("Predictions of 9 rows")
