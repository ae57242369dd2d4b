"""The image recipe on residual, transformer and EfficientNet models, by every method and at two layers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    ConvNextImageProcessorPil,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    EfficientNetImageProcessorPil,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

pytest.importorskip("datasets")
pytest.importorskip("pytorch_optimizer")

from support.families.vision import EFFICIENTNET, RESNET
from support.tiny_recipes import SHORT, image_folders, typed, vision_model

SIZE = 16


def resnet(folder: Path) -> str:
    torch.manual_seed(0)
    return saved(folder, ResNetForImageClassification(ResNetConfig(**RESNET, num_labels=2)), ConvNextImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_pct=0.875
    ))  # fmt: skip


def efficientnet(folder: Path) -> str:
    torch.manual_seed(0)
    config = EfficientNetConfig(**{**EFFICIENTNET, "num_labels": 2, "image_size": SIZE})
    size = {"height": SIZE, "width": SIZE}
    processor = EfficientNetImageProcessorPil(size=size, crop_size=size)
    return saved(folder, EfficientNetForImageClassification(config), processor)


def saved(folder: Path, model: PreTrainedModel, processor: Any) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


# What makes the model, its head and its representation (docs/generated/support.md).
MODELS: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "resnet": (resnet, "classifier.1", "resnet.encoder.stages.1.layers.0.layer.2.convolution"),
    "vit": (vision_model, "classifier", "vit.layers.1.mlp.fc2"),
    "efficientnet": (efficientnet, "classifier", "efficientnet.encoder.top_conv"),
}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("images")
    shared = {**image_folders(folder), **SHORT, "per_device_train_batch_size": 8, "cache_dir": folder / "cache"}
    return {name: {**shared, "model_name_or_path": make(folder / name)} for name, (make, _, _) in MODELS.items()}


def run(method: str, given: dict[str, Any]) -> dict[str, float]:
    return importlib.import_module("hf_fam.recipes.image_classification").main(
        typed("image_classification", method, given)
    )


def statistics(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_file(folder / "model.safetensors").items() if "running" in name}


@pytest.mark.parametrize("layer", ["head", "representation"])
@pytest.mark.parametrize("name", MODELS)
def test_layers(flags: dict[str, dict[str, Any]], tmp_path: Path, name: str, layer: str) -> None:
    found = run("fam", {**flags[name], "fam_layer": layer, "fam_lambda": 0.01, "output_dir": tmp_path})
    assert found["eval_nll"] > 0
    expected = MODELS[name][1 if layer == "head" else 2]
    text = ModelCard.load(tmp_path / "README.md").text
    assert f"| layer | {expected.replace('_', chr(92) + '_')} |" in text
    estimator = "closed\\_form" if layer == "head" else "gauss\\_newton"
    assert f"| estimator of κ | {estimator} |" in text


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "resnet" else pytest.mark.slow) for n in MODELS])
def test_methods(flags: dict[str, dict[str, Any]], tmp_path: Path, name: str) -> None:
    """All start from the same weights and data; where a model has running statistics, all note them once a step."""
    strengths = {"fam": {"fam_lambda": 1.0}, "plain": {}, "sam": {"sam_rho": 0.5}}
    for method, strength in strengths.items():
        run(method, {**flags[name], **strength, "output_dir": tmp_path / method})
    ends = {method: load_file(tmp_path / method / "model.safetensors") for method in strengths}
    weight = f"{MODELS[name][1]}.weight"
    for one, other in (("fam", "plain"), ("plain", "sam")):
        assert (ends[one][weight] - ends[other][weight]).abs().max() > 1e-5
    # The first batch is the same everywhere; the learning rate of the first step is 0.
    firsts = [statistics(tmp_path / method / "checkpoint-1") for method in strengths]
    assert bool(firsts[0]) == (name != "vit")
    for key, value in firsts[0].items():
        torch.testing.assert_close(firsts[1][key], value)
        torch.testing.assert_close(firsts[2][key], value)


def test_the_best_checkpoint_is_what_is_saved(flags: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Of a model whose weights have other names in files, which the Trainer does not load (checkpoints.py)."""
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "nll"}
    # The rate is 0 in the first step and too large in the others.
    run("plain", {**flags["vit"], **best, "greater_is_better": False, "learning_rate": 1.0, "output_dir": tmp_path})
    files = [load_file(folder / "model.safetensors") for folder in (tmp_path, *sorted(tmp_path.glob("checkpoint-*")))]
    saved, first, _, last = (torch.cat([value.flatten() for _, value in sorted(found.items())]) for found in files)
    assert torch.equal(saved, first) and not torch.equal(first, last)


def test_new_weights(flags: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """They are a function of the seed, and the card calls the model trained from scratch."""
    given = {**flags["resnet"], "from_scratch": True, "max_steps": 1}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("plain", {**given, "seed": seed, "output_dir": tmp_path / name})
    folders = [*(tmp_path / name for name in "abc"), Path(given["model_name_or_path"])]
    a, b, c, given_weights = (load_file(folder / "model.safetensors")["classifier.1.weight"] for folder in folders)
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, given_weights)
    text = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert "trained from scratch" in text and "base_model" not in text


def test_augmentation_is_drawn_from_the_seed() -> None:
    from PIL import Image

    from hf_fam.recipes.common.augmentation import augment, cutout, parse_augmentation

    white = Image.new("RGB", (32, 32), (255, 255, 255))
    black = [sum(pixel == (0, 0, 0) for pixel in cutout(white).getdata()) for _ in range(50)]
    assert max(black) <= 16 * 16 and min(black) >= 8 * 8
    assert white.getextrema() == ((255, 255),) * 3  # the image of the data set is left alone
    noise = Image.effect_noise((32, 32), 50)
    names = parse_augmentation("flip_crop_cutout")
    torch.manual_seed(3)
    first = augment(noise, names)
    torch.manual_seed(3)
    assert augment(noise, names).tobytes() == first.tobytes() != noise.tobytes()
    for wrong in ("flipcrop", "crop_crop", ""):
        with pytest.raises(ValueError, match="choose none, or some of flip, crop, cutout"):
            parse_augmentation(wrong)
