"""Images, alone and with texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ResNetConfig

from .case import (
    CLASSES,
    IMAGE,
    ITEMS,
    VOCABULARY,
    WIDTH,
    Batch,
    Case,
    Refusal,
    Sizes,
    batch_of,
    classes,
    images,
    tokens,
)
from .encoders import ENCODER
from .language import SEQ2SEQ

PICTURES = batch_of(pixel_values=images, labels=classes)
SEGMENTS = batch_of(pixel_values=images, labels=lambda: classes(ITEMS, IMAGE, IMAGE))

VIT: Sizes = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": WIDTH,
    "image_size": IMAGE,
    "patch_size": 8,
}
CLASSIFIER = {**VIT, "num_labels": CLASSES}
SWIN: Sizes = {
    "image_size": IMAGE,
    "patch_size": 4,
    "embed_dim": 4,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 2,
    "mlp_ratio": 1.0,
    "num_labels": CLASSES,
}
CONVNEXT: Sizes = {
    "num_stages": 2,
    "hidden_sizes": [4, 4],
    "depths": [1, 1],
    "image_size": IMAGE,
    "num_labels": CLASSES,
}
RESNET: Sizes = {"embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "bottleneck"}
SEGFORMER: Sizes = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [4, 8],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [1, 1],
    "num_labels": CLASSES,
    "decoder_hidden_size": WIDTH,
}
MOBILENET: Sizes = {
    "depth_multiplier": 0.05,
    "min_depth": 4,
    "depth_divisible_by": 4,
    "finegrained_output": False,
    "output_stride": 8,
    "num_labels": CLASSES,
}
EFFICIENTNET: Sizes = {
    "width_coefficient": 0.1,
    "depth_coefficient": 0.1,
    "depth_divisor": 4,
    "hidden_dim": 128,
    "in_channels": [32, 32],
    "out_channels": [32, 64],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
    "num_labels": CLASSES,
    "image_size": IMAGE,
}
CLIP: Sizes = {
    "text_config": {**ENCODER, "eos_token_id": VOCABULARY - 1, "bos_token_id": 0, "pad_token_id": 1},
    "vision_config": VIT,
    "projection_dim": WIDTH,
}


def detr_sizes() -> Sizes:
    backbone = ResNetConfig(**RESNET, out_features=["stage2"])
    own = {"num_queries": 4, "num_labels": CLASSES, "backbone": None, "backbone_config": backbone}
    return {**{k: v for k, v in SEQ2SEQ.items() if k != "vocab_size"}, **own}


def objects() -> list[dict[str, Tensor]]:
    return [{"class_labels": classes(2), "boxes": torch.rand(2, 4) * 0.4 + 0.1} for _ in range(ITEMS)]


def pairs(model: nn.Module) -> Batch:
    """Images and texts that belong together; without labels, and with a loss that has to be asked for."""
    texts = tokens()
    texts[:, -1] = VOCABULARY - 1
    return {"input_ids": texts, "pixel_values": images(), "return_loss": True}


def classification(model: str, sizes: Sizes, representation: str, head: str = "classifier", **more: Any) -> Case:
    """Image classification."""
    return Case(model, "image classification", sizes, PICTURES, head, representation, **more)


MLP = "layers.0.mlp.fc2"

VISION = [
    classification("ViTForImageClassification", CLASSIFIER, f"vit.{MLP}"),
    classification("DeiTForImageClassification", CLASSIFIER, f"deit.{MLP}"),
    classification("SwinForImageClassification", SWIN, "swin.encoder.layers.1.blocks.0.mlp.fc2"),
    classification("ConvNextForImageClassification", CONVNEXT, "convnext.encoder.stages.1.layers.0.pwconv2"),
    classification(
        "ResNetForImageClassification",
        {**RESNET, "num_labels": CLASSES},
        "resnet.encoder.stages.1.layers.0.layer.2.convolution",
        "classifier.1",
    ),
    classification("Dinov2ForImageClassification", {**CLASSIFIER, "mlp_ratio": 1}, "dinov2.encoder.layer.0.mlp.fc2"),
    classification("BeitForImageClassification", CLASSIFIER, f"beit.{MLP}"),
    classification("SegformerForImageClassification", SEGFORMER, "segformer.stages.1.blocks.0.mlp.fc2"),
    Case(
        "SegformerForSemanticSegmentation",
        "segmentation",
        SEGFORMER,
        SEGMENTS,
        "decode_head.classifier",
        "decode_head.linear_fuse",
        head_estimator="hessian",
        note="upsampled logits: no closed form",
    ),
    classification(
        "MobileNetV2ForImageClassification",
        MOBILENET,
        "mobilenet_v2.conv_1x1.convolution",
    ),
    classification(
        "EfficientNetForImageClassification",
        EFFICIENTNET,
        "efficientnet.encoder.top_conv",
    ),
    Case(
        "DetrForObjectDetection",
        "object detection",
        detr_sizes(),
        batch_of(pixel_values=images, labels=objects),
        "class_labels_classifier",
        "model.decoder.layers.0.mlp.fc2",
        note="classes alone; the boxes' loss is no part of Gauss-Newton",
    ),
    Case(
        "CLIPForImageClassification",
        "image classification",
        {**CLIP, "num_labels": CLASSES},
        PICTURES,
        "classifier",
        "vision_model.encoder.layers.0.mlp.fc2",
    ),
    Case(
        "CLIPModel",
        "contrastive",
        CLIP,
        pairs,
        "text_projection",
        "visual_projection",
        refused={
            "auto": Refusal("no layer into the logits", "no layer into the logits was found"),
            "representation": Refusal("no layer into the logits", "has further layers, or products, above it"),
        },
        note='any layer by its name, such as text_projection, with "hessian"',
        instead={"fam_layer": "text_projection", "fam_estimator": "hessian"},
    ),
]
