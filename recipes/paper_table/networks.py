"""ResNet-18 and wide residual networks for images of 32 pixels, which transformers does not have.

Written after He et al. 2016 and Zagoruyko and Komodakis 2016, with what the FAM paper's released scripts do otherwise:
a linear layer to ``embedding_size`` features before the classifier, biases in the wide network's convolutions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class CifarResNetConfig(PreTrainedConfig):
    """Basic blocks by stage, channels by stage, and features before the classifier (0: those of the last stage)."""

    model_type = "cifar_resnet"

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        channels: Sequence[int] = (64, 128, 256, 512),
        embedding_size: int = 0,
        **kwargs: object,
    ) -> None:
        self.blocks, self.channels, self.embedding_size = list(blocks), list(channels), embedding_size
        super().__init__(**kwargs)


class WideResNetConfig(PreTrainedConfig):
    """``depth = 6 n + 4``; channels 16, 16, 32, 64, the last three times ``width``."""

    model_type = "wide_resnet"

    def __init__(
        self, depth: int = 28, width: int = 10, dropout: float = 0.0, embedding_size: int = 0, **kwargs: object
    ) -> None:
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth={depth}: give 6 n + 4, such as 28.")
        self.depth, self.width, self.dropout, self.embedding_size = depth, width, dropout, embedding_size
        super().__init__(**kwargs)


class BasicBlock(nn.Module):
    """Convolution, normalization, rectifier, twice; the rectifier comes after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class WideBlock(nn.Module):
    """Normalization, rectifier, convolution, twice, with dropout between."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.conv1(self.norm1(x).relu()))
        return self.conv2(self.norm2(y).relu()) + self.shortcut(x)


class _Classifier(PreTrainedModel):
    """A trunk, the mean over positions, perhaps an embedding, the classifier."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def _add_head(self, features: int) -> None:
        size = self.config.embedding_size
        self.embedding = nn.Linear(features, size) if size else nn.Identity()
        self.classifier = nn.Linear(size or features, self.config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own, as in the released scripts."""
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        logits = self.classifier(self.embedding(self.trunk(pixel_values).mean((-2, -1))))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class CifarResNet(_Classifier):
    """ResNet of basic blocks with a 3 x 3 stem and no pooling before the mean."""

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        first = config.channels[0]
        layers: list[nn.Module] = [nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
        inputs = first
        for stage, (count, outputs) in enumerate(zip(config.blocks, config.channels, strict=True)):
            for k in range(count):
                layers.append(BasicBlock(inputs, outputs, 2 if stage > 0 and k == 0 else 1))
                inputs = outputs
        self.trunk = nn.Sequential(*layers)
        self._add_head(inputs)


class WideResNet(_Classifier):
    """WRN-depth-width."""

    config_class = WideResNetConfig

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__(config)
        channels = [16, *(k * config.width for k in (16, 32, 64))]
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1)]
        for stage, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
            for k in range((config.depth - 4) // 6):
                stride = 2 if stage > 0 and k == 0 else 1
                layers.append(WideBlock(outputs if k else inputs, outputs, stride, config.dropout))
        self.trunk = nn.Sequential(*layers, nn.BatchNorm2d(channels[-1]), nn.ReLU())
        self._add_head(channels[-1])


def register() -> None:
    """Let transformers' Auto classes find them; saved models carry this file (``trust_remote_code``)."""
    for config, model in ((CifarResNetConfig, CifarResNet), (WideResNetConfig, WideResNet)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForImageClassification.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModelForImageClassification")
