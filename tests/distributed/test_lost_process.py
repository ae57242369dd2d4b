"""A process of `hf-fam train` that ends takes the others with it within ten seconds, and they print nothing."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from hf_fam.cli import main as cli
from support.launch import ROOT, launch
from support.tiny_recipes import made, typed

SCRIPT = ROOT / "tests" / "support" / "lost_process.py"


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("kind", ["killed", "raising", "refusing"])
def test_survivors_are_silent(tmp_path: Path, kind: str) -> None:
    recipe = "text_classification"
    given = {**made(recipe, tmp_path), "per_device_train_batch_size": 4, "output_dir": tmp_path / "out"}
    printed = launch(SCRIPT, kind, recipe, *typed(recipe, "fam", given), fails=True)
    assert time.time() - float((tmp_path / "out" / "time").read_text()) < 10
    assert not [word for word in ("gloo/transport", "[rank0]: ", "another process") if word in printed]
    said = [line for line in printed.splitlines() if line.endswith("this process has a fault")]
    assert (
        said
        == {
            "killed": [],
            "raising": ["[rank1]: RuntimeError: this process has a fault"],
            "refusing": ["hf-fam train: this process has a fault"],
        }[kind]
    )
    # The launcher names the process that ended first.
    (summary,) = re.findall(r"Root Cause \(first observed failure\):(.*)", printed, re.DOTALL)
    assert re.search(r"rank +: 1 ", summary)


def test_without_a_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Which would have ended the process meanwhile."""
    monkeypatch.setattr(cli, "SECONDS_FOR_THE_LAUNCHER", 0)

    def lose(*given: object) -> None:
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]")

    monkeypatch.setattr(cli.train_command, "run", lose)
    assert cli.main(["train", "text_classification"]) == 1
    assert capsys.readouterr().err == ("hf-fam train: another process of this training has ended: see its message.\n")
