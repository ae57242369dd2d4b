"""Texts that are longer than a model's positions are cut there, whatever max_seq_length says."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from support.languages import tiny_tokenizer
from support.tiny_recipes import SHORT, SIZES, encoder, language_model, typed


def roberta(folder: Path) -> str:
    """A model that counts positions from behind the padding."""
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=50, max_position_embeddings=34, pad_token_id=1, type_vocab_size=1, **SIZES)
    RobertaForMaskedLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("recipe", "make"),
    [("text_classification", encoder), ("text_classification", roberta), ("causal_lm", language_model)],
)
def test_texts_of_a_million_characters(tmp_path: Path, recipe: str, make: Any) -> None:
    model = make(tmp_path / "model")
    tokenizer = tmp_path / "model" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text().replace('"model_max_length": 16', '"model_max_length": 100000'))
    rows = "".join(f"{'word ' * (200_000 if k == 3 else 400)},{'ab'[k % 2]}\n" for k in range(16))
    (tmp_path / "texts.csv").write_text("text,label\n" + rows)
    given = {**SHORT, "model_name_or_path": model, "train_file": tmp_path / "texts.csv", "max_steps": 1}
    folders = {"output_dir": tmp_path / "out", "cache_dir": tmp_path / "cache", "max_seq_length": 500}
    with pytest.warns(UserWarning, match="max_seq_length=500: the model takes 32 tokens"):
        found = importlib.import_module(f"hf_fam.recipes.{recipe}").main(typed(recipe, "fam", {**given, **folders}))
    assert math.isfinite(found["train_loss"])
