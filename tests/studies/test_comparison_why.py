"""What becomes of wrong labels: the look at a trained model, and the regimes that it needs."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import BertConfig, BertModel

FOLDER = Path(__file__).parents[2] / "recipes" / "comparison"
sys.path.insert(0, str(FOLDER))

pytest.importorskip("pytorch_optimizer")
pytest.importorskip("yaml")

import run as comparison  # noqa: E402
import why  # noqa: E402
from harness import embeddings, tasks  # noqa: E402
from harness.methods import make  # noqa: E402
from harness.regimes import REGIMES, frozen_head, frozen_images, loop  # noqa: E402


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


@pytest.mark.parametrize("hidden, layers", [("new", 2), ("none", 1)])
def test_heads_on_frozen_features(monkeypatch: pytest.MonkeyPatch, hidden: str, layers: int) -> None:
    asked = []

    def embed(texts: list[tuple[str, ...]], cache: Path, tokens: str) -> torch.Tensor:
        asked.append(tokens)
        return torch.randn(len(texts), 6, generator=torch.Generator().manual_seed(len(texts)))

    monkeypatch.setattr(frozen_head, "embed", embed)
    labels = np.arange(40) % 2
    pool = tasks.Examples([(f"text {k}",) for k in range(40)], labels)
    split = tasks.split(tasks.Task("cola", train=20, validation=10), pool, pool, 0)
    settings = frozen_head.Settings(epochs=2, tokens="mean", hidden=hidden)
    outcome = frozen_head.run(split, settings, make("plain", {}), 0, Path())
    assert set(asked) == {"mean"} and outcome.logits["test"].shape == (40, 2)
    assert sum(isinstance(m, nn.Linear) for m in frozen_head.head(6, 2, hidden)) == layers
    with pytest.raises(ValueError, match="hidden='some'"):
        frozen_head.head(6, 2, "some")


def test_linear_classifier_on_a_frozen_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads tanh(W phi + b) of the pooler's own W and b, which stay as they are, and trains one layer."""
    sizes = {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
    torch.manual_seed(0)
    pooler = BertModel(BertConfig(vocab_size=5, **sizes)).pooler
    weight, bias = pooler.dense.weight.detach().clone(), torch.randn(6)
    pooler.dense.bias.data.copy_(bias)
    monkeypatch.setattr(frozen_head, "_pooler", lambda: pooler)
    features = torch.randn(40, 6)
    monkeypatch.setattr(frozen_head, "embed", lambda texts, cache, tokens: features[: len(texts)])
    seen = {}

    def train(model: nn.Module, inputs: dict[str, torch.Tensor], *rest: object) -> None:
        seen.update(inputs=inputs, layers=[m for m in model.modules() if isinstance(m, nn.Linear)])

    monkeypatch.setattr(frozen_head, "train", train)
    pool = tasks.Examples([(f"text {k}",) for k in range(40)], np.arange(40) % 2)
    split = tasks.split(tasks.Task("cola", train=20, validation=10), pool, pool, 0)
    frozen_head.run(split, frozen_head.Settings(hidden="frozen"), make("plain", {}), 0, Path())
    assert_close(seen["inputs"]["test"], torch.tanh(features @ weight.T + bias))
    assert not seen["inputs"]["train"].requires_grad
    assert [tuple(m.weight.shape) for m in seen["layers"]] == [(2, 6)]


@pytest.mark.parametrize("tokens", ["mean", "first"])
def test_features_of_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: str) -> None:
    """Padding does not count, each text is read once, and features come in the order of the texts."""
    read = []

    def tokenizer(*columns: list[str], **_: Any) -> dict[str, torch.Tensor]:
        read.extend(columns[0])
        words = [" ".join(row).split() for row in zip(*columns, strict=True)]
        longest = max(map(len, words))
        ids = torch.tensor([[len(w) for w in row] + [99] * (longest - len(row)) for row in words])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in words])
        return {"input_ids": ids, "attention_mask": mask}

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=input_ids.unsqueeze(-1).float())

    monkeypatch.setattr(embeddings, "tokenizer", lambda: tokenizer)
    monkeypatch.setattr(embeddings, "_model", lambda: model)
    texts = [("aaa b", "cc"), ("a", "bbb"), ("aaa b", "cc"), ("a b c", "d e f")]
    expected = torch.tensor([2.0, 2, 2, 1] if tokens == "mean" else [3.0, 1, 3, 1]).unsqueeze(1)
    for _ in range(2):
        embeddings._store.cache_clear()
        assert torch.equal(embeddings.embed(texts, tmp_path, tokens), expected)
    assert sorted(read) == ["a", "a b c", "aaa b"]


def test_a_linear_classifier_on_features_of_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Features are computed once an image, kept on disk, and come in the order of the images."""
    computed = []

    class Bright:
        def features(self, images: torch.Tensor) -> torch.Tensor:
            computed.append(len(images))
            return images.float().mean((2, 3))

    monkeypatch.setattr(embeddings, "_images_model", lambda resolution: Bright())
    images = np.random.default_rng(0).integers(0, 256, (70, 3, 4, 4), dtype=np.uint8)
    images[69] = images[0]
    expected = torch.from_numpy(images).float().mean((2, 3))
    for _ in range(2):
        embeddings._store.cache_clear()
        torch.testing.assert_close(embeddings.embed_images(images, tmp_path), expected, rtol=0, atol=0)
    assert sum(computed) == 69

    pool = tasks.Examples(images, np.arange(70) % 2)
    split = tasks.split(tasks.Task("cifar10", train=16, validation=8), pool, pool.take(np.arange(12)), 0)
    fam = make("fam", {"strength": 0.001, "layer": "head"})
    outcome = frozen_images.run(split, frozen_images.Settings(epochs=1, batch_size=8), fam, 0, tmp_path)
    assert outcome.steps == 2 and outcome.logits["test"].shape == (12, 2)
    assert sum(computed) == 69


@pytest.mark.parametrize("regime", ["scratch_images", "scratch_vit"])
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_images_from_scratch(regime: str, channels: int, side: int) -> None:
    pool = tasks.Examples(np.zeros((40, channels, side, side), np.uint8), np.arange(40) % 2)
    pool.inputs[:] = (pool.labels * 200)[:, None, None, None]
    split = tasks.split(tasks.Task("fashion_mnist", train=16, validation=8), pool, pool.take(np.arange(12)), 0)
    fam = make("fam", {"strength": 0.001, "layer": "head"})
    settings = REGIMES[regime].Settings(epochs=1, batch_size=8)
    outcome, plain = (REGIMES[regime].run(split, settings, method, 0, Path()) for method in (fam, make("plain", {})))
    assert not np.allclose(outcome.logits["test"], plain.logits["test"], atol=1e-7)
    assert outcome.steps == 2 and all(np.isfinite(outcome.logits[part]).all() for part in loop.PARTS)


def test_workers_stop_when_their_parent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def end(code: int) -> None:
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(comparison, "execute", lambda run, data, cache: {"done": run})
    options: Any = Namespace(data=None, cache=None)
    assert comparison.execute_unless_left(os.getppid(), "a run", options) == {"done": "a run"}
    with pytest.raises(SystemExit):
        comparison.execute_unless_left(os.getppid() + 1, "a run", options)
    assert ended == [1]


def test_finished_runs_are_not_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numbers = dict.fromkeys(("accuracy", "nll", "kappa", "wrong_learned", "wrong_moved", "shared", "train_loss"), 0.5)
    for trunk, method in [(t, m) for t in why.TRUNKS for m in why.METHODS if why.useful(t, m)]:
        why.append_line(tmp_path / "runs.jsonl", {"trunk": trunk, "method": method, "seed": 0, **numbers})
    monkeypatch.setattr(why, "look", None)
    page = tmp_path / "why.md"
    why.main(
        ["--data", str(tmp_path), "--results", str(tmp_path / "runs.jsonl"), "--output", str(page), "--seeds", "0"]
    )
    assert page.read_text(encoding="utf-8").count("| plain | 1 |") == len(why.TRUNKS)
