"""Language models that read images as tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .case import IMAGE, ITEMS, TOKENS, VOCABULARY, WIDTH, Batch, Case, Sizes, images, tokens

# The tokens behind the words: the end and the start of an image, an image, a video.
IMAGE_END, IMAGE_START, PATCH, VIDEO = range(VOCABULARY, VOCABULARY + 4)
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1}
TEXT: Sizes = {
    "vocab_size": VOCABULARY + 4,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 32,
    **SPECIAL,
}
LLAVA: Sizes = {
    "text_config": {"model_type": "llama", **TEXT},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": WIDTH,
        "image_size": IMAGE,
        "patch_size": 8,
    },
    "image_token_index": PATCH,
    "vision_feature_layer": -1,
}
QWEN2_VL: Sizes = {
    "text_config": {
        **TEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]},
    },
    "vision_config": {
        "depth": 1,
        "embed_dim": WIDTH,
        "hidden_size": WIDTH,
        "num_heads": 2,
        "mlp_ratio": 1,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "image_token_id": PATCH,
    "video_token_id": VIDEO,
    "vision_start_token_id": IMAGE_START,
    "vision_end_token_id": IMAGE_END,
}


def described(*image: int) -> Batch:
    """Texts behind an image; its tokens are no labels."""
    ids = torch.cat([torch.tensor(image).expand(ITEMS, -1), tokens(ITEMS, TOKENS)], 1)
    return {"input_ids": ids, "labels": ids.masked_fill(ids >= VOCABULARY, -100)}


def llava_batch(model: nn.Module) -> Batch:
    """Four patches an image."""
    return {**described(*[PATCH] * 4), "pixel_values": images()}


def qwen_batch(model: nn.Module) -> Batch:
    """Sixteen patches an image, four of which become one token."""
    batch = described(IMAGE_START, *[PATCH] * 4, IMAGE_END)
    is_patch: Tensor = batch["input_ids"] == PATCH
    return {
        **batch,
        "pixel_values": torch.randn(ITEMS, 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * ITEMS),
        "mm_token_type_ids": is_patch.long(),
    }


DOWN = "model.language_model.layers.0.mlp.down_proj"

VISION_LANGUAGE = [
    Case("LlavaForConditionalGeneration", "image-text LM", LLAVA, llava_batch, "lm_head", DOWN),
    Case("Qwen2VLForConditionalGeneration", "image-text LM", QWEN2_VL, qwen_batch, "lm_head", DOWN),
]
