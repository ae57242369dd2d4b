"""The benchmark of what a comparison costs beside its trainings counts every second once."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel, Trainer

pytest.importorskip("datasets")

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "benchmarks"))

import machinery

from support.languages import tiny_tokenizer
from support.tiny_recipes import SIZES


def test_time_inside_another_function_is_counted_there() -> None:
    watch = machinery.Stopwatch()
    inner = watch.timed("inner", lambda: time.sleep(0.02))
    outer = watch.timed("outer", lambda: (inner(), time.sleep(0.02)))
    outer()
    assert watch.seconds["inner"] == 0.0 and watch.seconds["outer"] >= 0.04
    inner()
    assert 0.02 <= watch.seconds["inner"] < watch.seconds["outer"]


@pytest.mark.parametrize("case", sorted(machinery.CASES))
def test_a_comparison_is_taken_apart(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    BertModel(BertConfig(vocab_size=50, max_position_embeddings=512, **SIZES)).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(machinery, "encoder_folder", lambda folder: tmp_path / "model")
    monkeypatch.setitem(machinery.CASES, case, (*machinery.CASES[case], "--max_steps", "2"))
    own = Trainer.train
    total, runs, seconds = machinery.measure(case, 2, tmp_path / "data")
    assert runs == 2 * 2 + 2 * 2 and Trainer.train is own
    assert set(seconds) == {machinery.TRAINING, machinery.PREDICTION, machinery.MAKING, machinery.WRITING}
    assert 0 < sum(seconds.values()) < total
    parts = {machinery.TRAINING: 1.5, machinery.WRITING: 0.25}
    monkeypatch.setattr(machinery, "measure", lambda *_: (2.0, 4, machinery.Counter(parts)))
    machinery.main(["--case", case])
    assert "machinery                0.50 s    125.0 ms a run    33.3 % of training" in capsys.readouterr().out
