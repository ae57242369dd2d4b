"""A head trained on stored features is the head that is trained the slow way, and the saved model is a whole one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
)

from hf_fam.frozen.content_hash import content_hash, dataset_hash
from hf_fam.frozen.frozen_backbone import (
    FrozenBackbone,
    detach,
    freeze_backbone,
    keep_frozen_part_in_evaluation_mode,
)
from hf_fam.frozen.stored_features import FeatureDataset, collate_features, stored_features
from support.tiny import largest_difference, plain_arguments, weights

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 32, "num_labels": 3}


def text_items(count: int = 24, by_token: bool = False) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    items = []
    for k in range(count):
        length = 4 + k % 5
        tokens = torch.randint(3, 50, (length,), generator=generator).tolist()
        labels = [-100, *(t % 3 for t in tokens[1:])] if by_token else k % 3
        items.append({"input_ids": tokens, "attention_mask": [1] * length, "labels": labels})
    return items


def pad(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    width = max(len(item["input_ids"]) for item in items)
    fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}
    batch = {}
    for name in items[0]:
        rows = [item[name] for item in items]
        if isinstance(rows[0], list):
            rows = [row + [fill[name]] * (width - len(row)) for row in rows]
        batch[name] = torch.tensor(rows)
    return batch


def image_items(count: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": k % 3} for k in range(count)]


def stack(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def models() -> dict[str, Any]:
    return {
        "bert": lambda: BertForSequenceClassification(BertConfig(**TEXT, classifier_dropout=0.0)),
        "roberta": lambda: RobertaForSequenceClassification(
            RobertaConfig(**TEXT, classifier_dropout=0.0, pad_token_id=1)
        ),
        "distilbert": lambda: DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=50, max_position_embeddings=32, dim=16, n_layers=2, n_heads=2, hidden_dim=16, num_labels=3,
                seq_classif_dropout=0.0,
            )
        ),
        "tokens": lambda: BertForTokenClassification(BertConfig(**TEXT, classifier_dropout=0.0)),
        "vit": lambda: ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **SIZES)),
        "resnet": lambda: ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, layer_type="basic")
        ),
    }  # fmt: skip


def data_of(name: str) -> tuple[list[dict[str, Any]], Any]:
    if name in ("vit", "resnet"):
        return image_items(), stack
    return text_items(by_token=name == "tokens"), pad


class SlowTrainer(Trainer):
    """Runs the whole model in every step; its frozen part stays in evaluation mode."""

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        model.train = lambda mode=True: (nn.Module.train(model, mode), mode and to_mode(model))[0]  # type: ignore
        return super().training_step(model, *args, **kwargs)


def to_mode(model: nn.Module) -> None:
    own = vars(model).pop("train")
    keep_frozen_part_in_evaluation_mode(model)
    model.train = own  # type: ignore[method-assign]


def fast(model: Any, items: Any, collator: Any, folder: Path) -> tuple[FeatureDataset, FrozenBackbone]:
    backbone = FrozenBackbone(model, collator(items[:1]))
    backbone.attach(model)
    backbone.check(model, collator(items[:5]))
    return stored_features(backbone, model, items, collator, settings=None, folder=folder), backbone


@pytest.mark.parametrize("name", models())
def test_the_fast_way_is_the_slow_way(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    slow = models()[name]()
    items, collator = data_of(name)
    freeze_backbone(slow)
    quick, before = copy.deepcopy(slow), weights(slow)
    settings = {"max_steps": 8, "per_device_train_batch_size": 6, "learning_rate": 3e-2, "adam_epsilon": 1e-4}
    args = plain_arguments(tmp_path, **settings, remove_unused_columns=False)
    SlowTrainer(model=slow, args=args, train_dataset=items, data_collator=collator).train()
    features, _ = fast(quick, items, collator, tmp_path)
    Trainer(model=quick, args=args, train_dataset=features, data_collator=collate_features).train()
    vars(slow).pop("train", None)
    assert largest_difference(weights(slow), weights(quick)) < 1e-4
    assert largest_difference(before, weights(quick)) > 1e-2
    batch = collator(items)
    detach(quick)
    assert "forward" not in vars(quick)
    with torch.no_grad():
        torch.testing.assert_close(quick.eval()(**batch).logits, slow.eval()(**batch).logits, atol=1e-3, rtol=1e-3)


def test_the_saved_model_is_a_whole_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, (items, collator) = models()["bert"](), data_of("bert")
    freeze_backbone(model)
    features, _ = fast(model, items, collator, tmp_path)
    args = plain_arguments(tmp_path / "out", learning_rate=3e-2)
    trainer = Trainer(model=model, args=args, train_dataset=features, data_collator=collate_features)
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = model.eval()(features=torch.stack([features[k]["features"] for k in range(24)])).logits
        torch.testing.assert_close(loaded.eval()(**collator(items)).logits, expected, atol=1e-5, rtol=1e-5)


def test_features_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same weights and data; another weight or row makes other features."""
    from hf_fam.frozen import stored_features as module

    computed: list[int] = []
    own = module.compute_features
    monkeypatch.setattr(module, "compute_features", lambda *args: (computed.append(1), own(*args))[1])
    torch.manual_seed(0)
    model, (items, collator) = models()["bert"](), data_of("bert")
    freeze_backbone(model)
    first, _ = fast(model, items, collator, tmp_path)
    with torch.no_grad():
        model.classifier.weight.add_(1.0)  # trained, so it does not count
    second, _ = fast(model, items, collator, tmp_path)
    assert len(computed) == 1 and torch.equal(first.features, second.features)
    fast(model, items[::-1], collator, tmp_path)
    with torch.no_grad():
        model.bert.pooler.dense.weight.add_(1e-3)
    fast(model, items, collator, tmp_path)
    assert len(computed) == 3
    assert not [*tmp_path.glob("*.tmp")]


def test_new_layers_of_the_backbone_are_trained() -> None:
    model = models()["bert"]()
    names = freeze_backbone(model, new=["bert.pooler.dense.weight", "bert.pooler.dense.bias"])
    assert names == [
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias",
    ]  # fmt: skip
    items, collator = data_of("bert")
    backbone = FrozenBackbone(model, collator(items[:1]))
    assert backbone.first_layer == "bert.pooler.dense"
    backbone.attach(model)
    backbone.check(model, collator(items[:5]))


def test_a_head_that_reads_more_than_features_is_refused() -> None:
    """GPT-2 takes the logits of the last token, and which one that is, the features do not tell."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2, num_labels=3, pad_token_id=1)
    model = GPT2ForSequenceClassification(config)
    items, collator = data_of("bert")
    freeze_backbone(model)
    backbone = FrozenBackbone(model, collator(items[:1]))
    backbone.attach(model)
    with pytest.raises(ValueError, match="cannot be trained on stored features"):
        backbone.check(model, collator(items[:5]))


def test_hashes_tell_content_apart() -> None:
    rows = [{"x": [1, 2], "y": "a"}, {"x": [3], "y": "b"}]
    assert dataset_hash(rows) == dataset_hash([dict(reversed(row.items())) for row in rows])
    assert len({dataset_hash(rows), dataset_hash(rows[::-1]), dataset_hash(rows[:1]), content_hash(rows)}) == 4
    assert content_hash([1, [2]]) != content_hash([[1], 2]) != content_hash(["1", [2]])
    assert content_hash(torch.zeros(2, 3)) != content_hash(torch.zeros(3, 2))
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(rows)
    changed = table.with_transform(lambda batch: {"z": batch["x"]})
    assert dataset_hash(table) == dataset_hash(changed) != dataset_hash(table.select([1, 0]))
