"""What becomes of wrong labels: the look at a trained model, and the regimes that it needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).parents[2] / "recipes" / "comparison"
sys.path.insert(0, str(FOLDER))

pytest.importorskip("pytorch_optimizer")
pytest.importorskip("yaml")

import why  # noqa: E402


def test_nearer_to_the_wrong_class() -> None:
    """Two classes at -1 and +1; of the two with a wrong label one has moved to where its label is."""
    true = np.array([0, 0, 1, 1, 0, 0])
    labels = np.array([0, 0, 1, 1, 1, 1])
    features = np.array([-1.1, -0.9, 0.9, 1.1, 0.8, -0.8])[:, None]
    assert why.nearer(features, labels, true).tolist() == [False, False, False, False, True, False]


def test_look_at_a_layer_gives_features_and_kappa() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    parts = [(x[:5], y[:5]), (x[5:], y[5:])]
    features, kappa = why.look_at_layer(model, [lambda p=p: F.cross_entropy(model(p[0]), p[1]) for p in parts], 0)
    assert np.array_equal(features, x.numpy()) and kappa > 0
    assert not model[0]._forward_pre_hooks


def test_page_compares_seed_by_seed() -> None:
    def record(method: str, seed: int, accuracy: float) -> dict[str, Any]:
        others = dict.fromkeys(("nll", "kappa", "wrong_learned", "wrong_moved", "shared", "train_loss"), 0.5)
        return {"trunk": "all", "method": method, "seed": seed, "accuracy": accuracy, **others}

    page = why.page([record(m, s, 0.5 + s / 10 + (m != "plain") / 20) for m in ("plain", "kappa") for s in (0, 1)])
    row = next(line for line in page.splitlines() if line.startswith("| all | kappa |"))
    assert [cell.strip() for cell in row.split("|")[3:6]] == ["2", "60.0", "+5.0"]
    assert len({line.count("|") for line in page.splitlines() if line.startswith("|")}) == 1


def test_finished_runs_are_not_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numbers = dict.fromkeys(("accuracy", "nll", "kappa", "wrong_learned", "wrong_moved", "shared", "train_loss"), 0.5)
    for trunk, method in [(t, m) for t in why.TRUNKS for m in why.METHODS if why.useful(t, m)]:
        with open(tmp_path / "runs.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps({"trunk": trunk, "method": method, "seed": 0, **numbers}) + "\n")
    monkeypatch.setattr(why, "look", None)
    page = tmp_path / "why.md"
    why.main(
        ["--data", str(tmp_path), "--results", str(tmp_path / "runs.jsonl"), "--output", str(page), "--seeds", "0"]
    )
    assert page.read_text(encoding="utf-8").count("| plain | 1 |") == len(why.TRUNKS)
