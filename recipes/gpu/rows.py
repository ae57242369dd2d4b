"""The models of the cost table, with random weights: shapes, batches, and who is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

HEAD = {"fam_lambda": 0.003}
REPRESENTATION = {"fam_lambda": 0.001, "fam_layer": "representation"}
PERTURBATION = {**REPRESENTATION, "fam_estimator": "perturbation"}
ROW_PROBES = {"fam_lambda": 1e-6, "fam_estimator": "row_probes"}
EXACT = {"fam_lambda": 1e-6, "fam_estimator": "closed_form"}

HALF = {"bf16": True}
CLASSES = 77


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        model: makes the model, tiny or not.
        batch: makes a batch, tiny or not, on the host.
        fam: fam_* arguments by name.
        others: further contenders.
        given: arguments of the Trainer.
        memory: least GPU memory in GiB.
    """

    model: Callable[[bool], nn.Module]
    batch: Callable[[bool], dict[str, Tensor]]
    fam: dict[str, dict[str, Any]]
    others: tuple[str, ...] = ()
    given: dict[str, Any] = field(default_factory=dict)
    memory: float = 0.0


def bert(tiny: bool) -> nn.Module:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(num_labels=CLASSES, **(small if tiny else {})))


def roberta(tiny: bool) -> nn.Module:
    width, layers = (32, 2) if tiny else (1024, 24)
    config = RobertaConfig(
        num_labels=CLASSES, vocab_size=50_265, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=2 if tiny else 16, intermediate_size=4 * width, max_position_embeddings=514,
        type_vocab_size=1,
    )  # fmt: skip
    return RobertaForSequenceClassification(config)


def vit(tiny: bool) -> nn.Module:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    size = {"image_size": 32, "patch_size": 16} if tiny else {"image_size": 224, "patch_size": 16}
    return ViTForImageClassification(ViTConfig(num_labels=1000, **size, **(small if tiny else {})))


def resnet(tiny: bool) -> nn.Module:
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    model = ResNetForImageClassification(ResNetConfig(num_labels=1000, **(small if tiny else {})))
    return model.to(memory_format=torch.channels_last)


def small_resnet(tiny: bool) -> nn.Module:
    """About 0.7 million parameters, for images of 32 x 32: the launching of kernels is most of its step."""
    hidden, depths = ([8, 16], [1, 1]) if tiny else ([32, 64, 128], [2, 2, 2])
    config = ResNetConfig(num_labels=10, embedding_size=hidden[0], hidden_sizes=hidden, depths=depths,
                          layer_type="basic")  # fmt: skip
    return ResNetForImageClassification(config)


class StoredFeatures(nn.Module):
    """A linear classifier of features that are computed once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(features)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def llama(tiny: bool, width: int = 2048, layers: int = 16, intermediate: int = 8192, tied: bool = True) -> nn.Module:
    config = LlamaConfig(
        vocab_size=5000 if tiny else 128_256, hidden_size=32 if tiny else width,
        num_hidden_layers=2 if tiny else layers,
        num_attention_heads=4 if tiny else 32, num_key_value_heads=2 if tiny else 8,
        intermediate_size=64 if tiny else intermediate, max_position_embeddings=2048, tie_word_embeddings=tied,
        use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16)


def llama_with_adapters(tiny: bool) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    return get_peft_model(llama(tiny), adapters)


def texts(rows: int, length: int, vocabulary: int, classes: int) -> dict[str, Tensor]:
    """Random tokens; labels are classes, or the tokens themselves for 0 classes."""
    ids = torch.randint(vocabulary, (rows, length))
    return {"input_ids": ids, "labels": torch.randint(classes, (rows,)) if classes else ids.clone()}


def images(rows: int, size: int, classes: int, channels_last: bool = False) -> dict[str, Tensor]:
    pixels = torch.randn(rows, 3, size, size)
    pixels = pixels.contiguous(memory_format=torch.channels_last) if channels_last else pixels
    return {"pixel_values": pixels, "labels": torch.randint(classes, (rows,))}


def features(rows: int, width: int) -> dict[str, Tensor]:
    return {"features": torch.randn(rows, width), "labels": torch.randint(CLASSES, (rows,))}


def language(tiny: bool) -> dict[str, Tensor]:
    return texts(2, 8, 5000, 0) if tiny else texts(4, 2048, 128_256, 0)


_ENCODER = {"head": HEAD, "representation": REPRESENTATION, "perturbation": PERTURBATION}
_CHECKPOINTED = {
    **HALF, "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
}  # fmt: skip
_VOCABULARY = {"row_probes": ROW_PROBES, "exact": EXACT}

ROWS: dict[str, Row] = {
    "bert": Row(
        bert, lambda tiny: texts(2 if tiny else 32, 8 if tiny else 128, 30_000, CLASSES), _ENCODER,
        ("sam", "neftune"), HALF,
    ),
    "roberta": Row(
        roberta, lambda tiny: texts(2 if tiny else 32, 8 if tiny else 128, 50_000, CLASSES), _ENCODER,
        ("sam", "neftune"), HALF,
    ),
    "vit": Row(
        vit, lambda tiny: images(2 if tiny else 64, 32 if tiny else 224, 1000), {"head": HEAD}, ("sam",), HALF
    ),
    "resnet": Row(
        resnet, lambda tiny: images(2 if tiny else 64, 32 if tiny else 224, 1000, True), {"head": HEAD}, ("sam",), HALF
    ),
    "small_resnet": Row(small_resnet, lambda tiny: images(4 if tiny else 128, 32, 10), {"head": HEAD}, ("sam",)),
    "stored_features": Row(
        lambda tiny: StoredFeatures(32 if tiny else 768), lambda tiny: features(64, 32 if tiny else 768),
        {"head": HEAD}, ("sam",),
    ),
    "llama_1b": Row(llama, language, _VOCABULARY, ("neftune",), _CHECKPOINTED, 60),
    "llama_1b_lora": Row(llama_with_adapters, language, _VOCABULARY, ("neftune",), _CHECKPOINTED, 60),
    "llama_8b_slice": Row(
        lambda tiny: llama(tiny, 4096, 4, 14_336, tied=False), language, _VOCABULARY, (), _CHECKPOINTED, 100
    ),
}  # fmt: skip
