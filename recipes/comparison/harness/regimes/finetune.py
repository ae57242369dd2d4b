"""Fine-tuning of all-MiniLM-L6-v2: all of it, its upper blocks, LoRA, pooler and head, or the head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from ..embeddings import minilm_path, tokenizer
from ..tasks import IMAGES, Examples, Task
from .base import CommonSettings, Items, Regime


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings, besides the common ones.

    Attributes:
        max_length: of a text, in tokens.
        trainable: ``"all"``, ``"classifier"``, with the pooler ``"head"``, ``"blocks 2"`` (upper ones), or ``"lora 8"``
            (its rank).
        bf16: autocast, half the time on processors that have it.
    """

    learning_rate: float = 1e-4
    batch_size: int = 16
    max_length: int = 64
    trainable: str = "all"
    bf16: bool = True


class FineTuning(Regime):
    """The pooler and a new head on the first token; a learning rate that falls linearly."""

    Settings = Settings

    def reads(self, task: Task) -> bool:
        """Return True for texts."""
        return task.name not in IMAGES

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """Return precision, and batches of texts of about the same length."""
        return {"bf16": settings.bf16, "train_sampling_strategy": "group_by_length"}

    def collator(self) -> Any:
        """Pad to the longest text of a batch."""
        return DataCollatorWithPadding(tokenizer())

    def items(self, examples: Examples, settings: Settings, cache: Path) -> Items:
        """Return tokens; those of a pair of sentences together."""
        columns = [list(column) for column in zip(*examples.inputs, strict=True)]
        encoded = tokenizer()(*columns, truncation=True, max_length=settings.max_length)
        return [
            {name: encoded[name][k] for name in encoded} | {"labels": int(label)}
            for k, label in enumerate(examples.labels)
        ]

    def model(self, train: Items, classes: int, settings: Settings) -> nn.Module:
        """Return the pretrained model below a new head."""
        model = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=classes)
        unfreeze(model, settings.trainable)
        return model


def unfreeze(model: nn.Module, trainable: str) -> None:
    """Leave trainable what the setting says; the classifier always is.

    Raises:
        ValueError: the setting is unknown.
    """
    if trainable == "all":
        return
    kind, _, number = trainable.partition(" ")
    if kind == "lora":
        import peft

        rank = int(number)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])
        peft.inject_adapter_in_model(config, model)
    blocks = len(model.bert.encoder.layer)
    above = ["classifier"] if kind == "classifier" else ["classifier", "bert.pooler", "lora_"]
    if kind == "blocks":
        above += [f"bert.encoder.layer.{k}." for k in range(blocks - int(number), blocks)]
    elif kind not in ("classifier", "head", "lora"):
        raise ValueError(f"trainable={trainable!r}: give 'all', 'classifier', 'head', 'blocks N' or 'lora RANK'.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in above))
