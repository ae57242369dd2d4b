"""Code in the files of a checkpoint never runs, neither when training is resumed nor when layers are listed."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from hf_fam.cli.main import main
from support.tiny import fam_trainer, tiny_bert

FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin", "pytorch_model.bin"]


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished")
    fam_trainer(path, tiny_bert(), max_steps=2, save_strategy="steps", save_steps=1, fam_lambda=0.1).train()
    return path


@pytest.mark.parametrize("kind", ["archive", "pickle"])
@pytest.mark.parametrize("name", FILES)
def test_code_in_a_checkpoint_never_runs(finished: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder, marker = Path(shutil.copytree(finished, tmp_path / "copy")), tmp_path / "it-ran"
    checkpoint = folder / "checkpoint-1"
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    if kind == "archive":
        torch.save({"state": Evil(marker)}, checkpoint / name)
    else:
        (checkpoint / name).write_bytes(pickle.dumps({"state": Evil(marker)}))
    trainer = fam_trainer(folder, tiny_bert(seed=1), max_steps=2, fam_lambda=0.1)
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        trainer.train(resume_from_checkpoint=str(checkpoint))
    with contextlib.suppress(Exception, SystemExit):
        main(["layers", str(checkpoint)])
    assert not marker.exists()
    with contextlib.suppress(Exception):
        torch.load(checkpoint / name, weights_only=False)
    assert marker.exists(), "the file is not what it is meant to be"
