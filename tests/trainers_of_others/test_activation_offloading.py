"""TRL's activation_offloading: refused by the mixin, and FAMCallback, its remedy, trains as without it.

TRL itself needs a GPU for it. Here, saved tensors that can be unpacked only once stand for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl", reason="TRL is not installed")
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.trainer import sft_trainer

from hf_fam import FAMArguments, FAMCallback, FAMMixin
from support.languages import sentences, tiny_tokenizer
from support.tiny import PLAIN, assert_same_weights, logged, tiny_llama


class FAMSFTTrainer(FAMMixin, SFTTrainer):
    """What the documentation tells users to write."""


class UnpackedOnce:
    """Counts its tensors, and gives each back once."""

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        self.packed = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack):
            yield

    def pack(self, tensor: Tensor) -> int:
        self.packed += 1
        self.tensors[self.packed] = tensor
        return self.packed

    def unpack(self, number: int) -> Tensor:
        if number not in self.tensors:
            raise ValueError(f"Untracked tensor {number}")
        return self.tensors.pop(number)


def host(path: Path, **given: object) -> dict[str, object]:
    options = {**PLAIN, "max_steps": 3, "bf16": False, "gradient_checkpointing": False, **given}
    return {
        "model": tiny_llama(tie_word_embeddings=True, pad_token_id=0),
        "args": SFTConfig(output_dir=str(path), **options),
        "train_dataset": Dataset.from_dict(sentences()),
        "processing_class": tiny_tokenizer(),
    }


class Offloading(SFTTrainer):
    """Unpacks every saved tensor once."""

    def training_step(self, *args: object, **kwargs: object) -> Tensor:
        self.unpacked_once = UnpackedOnce()
        with self.unpacked_once():
            return super().training_step(*args, **kwargs)


def test_the_mixin_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_trainer, "get_act_offloading_ctx_manager", lambda **_: contextlib.nullcontext())
    given = host(tmp_path, activation_offloading=True)
    with pytest.raises(ValueError, match=r"activation_offloading=True .* callbacks=\[FAMCallback") as refusal:
        FAMSFTTrainer(**given, fam_args=FAMArguments(fam_lambda=0.1))
    assert len(str(refusal.value)) < 300
    FAMSFTTrainer(**given, fam_args=FAMArguments(fam_lambda=0.0))


def test_the_mixin_would_unpack_twice(tmp_path: Path) -> None:
    """What the refusal is about: without it, the first step ends in this error."""

    class Both(FAMMixin, Offloading):
        pass

    with pytest.raises(ValueError, match="Untracked tensor"):
        Both(**host(tmp_path), fam_args=FAMArguments(fam_lambda=0.1, fam_layer="representation")).train()


def test_the_callback_trains_as_without_it(tmp_path: Path) -> None:
    trainers = []
    for kind in (SFTTrainer, Offloading):
        trainer = kind(**host(tmp_path), callbacks=[FAMCallback(0.1)])
        torch.manual_seed(3)
        trainer.train()
        trainers.append(trainer)
    assert trainers[1].unpacked_once.packed > 10
    assert_same_weights(trainers[0].model, trainers[1].model)
    assert logged(trainers[0], "fam_kappa") == logged(trainers[1], "fam_kappa")
