"""The access token is used and never written: not into training_args.bin, not by repr."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from hf_fam import FAMArguments, FAMSeq2SeqTrainingArguments, FAMTrainer, FAMTrainingArguments
from support.tiny import tiny_bert

SECRET = "hf_abcdefghijk"


@dataclass
class OwnArguments(FAMArguments, TrainingArguments):
    """Of a user, with the repr that dataclass makes."""


@pytest.mark.parametrize("kind", [FAMTrainingArguments, FAMSeq2SeqTrainingArguments, OwnArguments, TrainingArguments])
def test_tokens(kind: Any, tmp_path: Path) -> None:
    args = kind(output_dir=str(tmp_path), hub_token=SECRET, report_to="none", use_cpu=True)
    trainer = FAMTrainer(model=tiny_bert(), args=args)
    trainer.save_model()
    assert SECRET.encode() not in (tmp_path / "training_args.bin").read_bytes()
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).hub_token is None
    assert SECRET not in repr(trainer.args) + str(trainer.args)
    assert trainer.args.hub_token == SECRET == copy.deepcopy(trainer.args).hub_token  # it still pushes
    assert f"Bearer {trainer.args.hub_token}" == f"Bearer {SECRET}"
    assert pickle.loads(pickle.dumps(args)).hub_token is None
